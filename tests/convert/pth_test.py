"""The restricted reader: what it reads, and what it refuses to run."""

import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from star_jax.convert import pth
from star_jax.convert.pth_write import integer, ordered_dict, tensor_program


def _tensor(key, array, shape=None, strides=None, offset=0):
  """Pickle program of a tensor on storage `key`, as torch.save writes it."""
  if strides is None:
    strides = [s // array.itemsize for s in array.strides]
  return tensor_program(
    key,
    str(array.dtype),
    array.shape if shape is None else shape,
    strides,
    offset,
    array.size,
  )


def _dict(**programs):
  return b"\x80\x02" + ordered_dict(programs) + b"."


def _write_zip(path, program, storages):
  with zipfile.ZipFile(path, "w") as z:
    z.writestr("archive/data.pkl", program)
    z.writestr("archive/byteorder", "little")
    for key, array in storages.items():
      z.writestr(f"archive/data/{key}", array.tobytes())


def _write_legacy(path, program, storages):
  info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
  with open(path, "wb") as f:
    for value in (0x1950A86A20F9469CFC6C, 1001, info):
      pickle.dump(value, f, protocol=2)
    # Legacy storage references carry a sixth entry, the view metadata.
    f.write(program.replace(b"tQ", b"NtQ"))
    pickle.dump(list(storages), f, protocol=2)
    for array in storages.values():
      f.write(struct.pack("<q", array.size) + array.tobytes())


WRITERS = {"zip": _write_zip, "legacy": _write_legacy}


@pytest.fixture(params=list(WRITERS))
def write(request):
  return WRITERS[request.param]


def test_reads_every_dtype_and_nesting(tmp_path, write):
  rng = np.random.default_rng(0)
  arrays = {
    "a": rng.standard_normal((2, 3)).astype(np.float32),
    "b": rng.standard_normal(5).astype(np.float16),
    "c": rng.standard_normal(4).astype(ml_dtypes.bfloat16),
    "d": np.array([7, -2], np.int64),
  }
  program = _dict(
    model=_dict(**{k: _tensor(k, v) for k, v in arrays.items()})[2:-1],
    step=integer(12),
  )
  path = tmp_path / "x.pth"
  write(path, program, arrays)
  value = pth.read_pth(path)
  assert value["step"] == 12 and list(value["model"]) == list("abcd")
  for key, array in arrays.items():
    assert value["model"][key].dtype == array.dtype
    np.testing.assert_array_equal(value["model"][key], array)


def test_views_share_storage_and_are_read_only(tmp_path, write):
  data = np.arange(12, dtype=np.float32)
  program = _dict(
    t=_tensor("0", data, shape=(3, 2), strides=(1, 6), offset=1),
    u=_tensor("0", data, shape=(2,), strides=(1,), offset=3),
  )
  path = tmp_path / "x.pth"
  write(path, program, {"0": data})
  state = pth.read_state_dict(path)
  np.testing.assert_array_equal(state["t"], [[1, 7], [2, 8], [3, 9]])
  np.testing.assert_array_equal(state["u"], [3, 4])
  with pytest.raises(ValueError, match="read-only"):
    state["u"][0] = 1


class _Evil:
  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_refuses_code_without_running_it(tmp_path, write):
  mark = tmp_path / "executed"
  path = tmp_path / "evil.pth"
  write(path, pickle.dumps(_Evil(f"touch {mark}"), protocol=2), {})
  with pytest.raises(ValueError, match=r"\.system.*nothing in it was"):
    pth.read_pth(path)
  assert not mark.exists()


@pytest.mark.parametrize(
  "name",
  [
    "builtins\neval", "builtins\ngetattr", "torch\nload",
    "collections\nOrderedDict.__init__", "torch.hub\nload", "numpy\nsave",
  ],
)  # fmt: skip
def test_refuses_other_globals_by_name(tmp_path, write, name):
  path = tmp_path / "evil.pth"
  write(path, b"\x80\x02c" + name.encode() + b"\n.", {})
  with pytest.raises(ValueError, match=name.replace("\n", ".")):
    pth.read_pth(path)


def test_refuses_stack_global_and_bare_pickles(tmp_path):
  mark = tmp_path / "executed"
  path = tmp_path / "evil.pth"
  path.write_bytes(pickle.dumps(_Evil(f"touch {mark}"), protocol=4))
  with pytest.raises(ValueError, match="refused"):
    pth.read_pth(path)
  assert not mark.exists()
  path.write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(ValueError, match=str(path)):
    pth.read_pth(path)


def test_tensor_beyond_its_storage(tmp_path, write):
  data = np.arange(4, dtype=np.float32)
  path = tmp_path / "x.pth"
  write(
    path, _dict(t=_tensor("0", data, shape=(5,), strides=(1,))), {"0": data}
  )
  with pytest.raises(ValueError, match="beyond its storage"):
    pth.read_pth(path)


@pytest.mark.parametrize("keep", [0, 10, 300, -4])
def test_truncated_file(tmp_path, write, keep):
  data = np.arange(200, dtype=np.float32)
  path = tmp_path / "x.pth"
  write(path, _dict(t=_tensor("0", data)), {"0": data})
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=str(path)):
    pth.read_pth(path)


def test_zip_that_lost_a_storage(tmp_path):
  data = np.arange(4, dtype=np.float32)
  path = tmp_path / "x.pth"
  _write_zip(path, _dict(t=_tensor("0", data)), {})
  with pytest.raises(ValueError, match="storage '0' is missing"):
    pth.read_pth(path)


def test_state_dict_must_be_flat(tmp_path, write):
  path = tmp_path / "x.pth"
  write(path, _dict(step=integer(3)), {})
  with pytest.raises(ValueError, match="'step' is a int"):
    pth.read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_itself(tmp_path, zipped):
  torch = pytest.importorskip("torch", reason="needs torch to write the file")
  state = {"w": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2).half()}
  path = tmp_path / "x.pth"
  buffer = io.BytesIO()
  torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
  path.write_bytes(buffer.getvalue())
  read = pth.read_state_dict(path)
  for key, tensor in state.items():
    np.testing.assert_array_equal(read[key], tensor.numpy())
