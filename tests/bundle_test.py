"""Bundles come back as written; anything else is refused in one sentence."""

import json

import jax
import numpy as np
import pytest

from star_jax import bundle as B
from star_jax import testing
from star_jax.model.star import Star
from star_jax.tokenizer.vqvae import VQVAE

TEXT = B.TextSettings("minilm-l6", 16, "f" * 16)


@pytest.fixture(scope="module")
def parts():
  """Keyword arguments of `save_bundle` for a tiny model."""
  tokenizer = testing.tiny_tokenizer_config()
  star = testing.tiny_star_config(tokenizer)
  return {
    "tokenizer_config": tokenizer,
    "tokenizer_params": testing.random_params(VQVAE(tokenizer)),
    "star_config": star,
    "star_params": testing.random_params(Star(star)),
    "text": TEXT,
    "sampling": testing.SAMPLING,
    "licence": "CC-BY-4.0",
    "notes": {"steps": 3},
  }


@pytest.fixture
def saved(parts, tmp_path):
  B.save_bundle(tmp_path / "b", **parts)
  return tmp_path / "b"


def edit_header(folder, **changes):
  file = folder / "bundle.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_float32_comes_back_exactly(parts, tmp_path):
  digest = B.save_bundle(tmp_path, **parts, storage="float32")
  found = B.load_bundle(tmp_path)
  assert found.hash == digest
  assert found.tokenizer_config == parts["tokenizer_config"]
  assert found.star_config == parts["star_config"]
  assert (found.text, found.sampling) == (TEXT, testing.SAMPLING)
  assert (found.licence, found.notes) == ("CC-BY-4.0", {"steps": 3})
  for name in ("tokenizer", "star"):
    jax.tree.map(
      np.testing.assert_array_equal, found.params[name], parts[f"{name}_params"]
    )


def test_a_bundle_from_before_a_knob_draws_as_it_did(saved):
  old = dict(testing.SAMPLING)
  del old["smooth_filtered"], old["refine"], old["aspect"]
  edit_header(saved, sampling=old)
  assert B.load_bundle(saved).sampling == {
    **old,
    "smooth_filtered": True,
    "refine": "off",
    "aspect": "own",
  }


def test_float16_halves_the_file_and_keeps_the_quantizer_exact(
  parts, saved, tmp_path
):
  B.save_bundle(tmp_path / "full", **parts, storage="float32")
  small, full = (
    (folder / "star.safetensors").stat().st_size
    for folder in (saved, tmp_path / "full")
  )
  assert small < 0.75 * full
  found = B.load_bundle(saved).params
  jax.tree.map(
    np.testing.assert_array_equal,
    found["tokenizer"]["quantizer"],
    parts["tokenizer_params"]["quantizer"],
  )
  kernel = found["star"]["head"]["kernel"]
  original = parts["star_params"]["head"]["kernel"]
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, original.astype(np.float16))


def test_jax_and_transposed_arrays_are_stored_as_they_look(parts, tmp_path):
  turned = jax.tree.map(
    lambda x: np.asarray(x).T.copy().T, parts["star_params"]
  )
  turned["head"] = jax.tree.map(jax.numpy.asarray, turned["head"])
  B.save_bundle(tmp_path, **{**parts, "star_params": turned}, storage="float32")
  jax.tree.map(
    np.testing.assert_array_equal,
    B.load_bundle(tmp_path).params["star"],
    parts["star_params"],
  )


def test_hash_follows_weights_and_settings_but_not_notes(parts, tmp_path):
  first = B.save_bundle(tmp_path, **parts)
  assert B.save_bundle(tmp_path, **{**parts, "notes": {}}) == first
  other = {**parts, "text": B.TextSettings("minilm-l6", 17, "f" * 16)}
  assert B.save_bundle(tmp_path, **other) != first
  changed = jax.tree.map(np.copy, parts["star_params"])
  changed["pos_start"][0] += 1
  assert B.save_bundle(tmp_path, **{**parts, "star_params": changed}) != first


def test_a_tokenizer_alone_is_a_bundle(parts, tmp_path):
  keys = ("tokenizer_config", "tokenizer_params", "licence")
  B.save_bundle(tmp_path, **{key: parts[key] for key in keys})
  found = B.load_bundle(tmp_path)
  assert found.star_config is None and set(found.params) == {"tokenizer"}


def test_missing_or_foreign_folders(saved, tmp_path):
  with pytest.raises(ValueError, match="no bundle at"):
    B.load_bundle(tmp_path / "absent")
  with pytest.raises(ValueError, match=r"has no bundle\.json"):
    B.load_bundle(tmp_path)
  edit_header(saved, format="something else")
  with pytest.raises(ValueError, match="does not describe a star_jax bundle"):
    B.load_bundle(saved)


def test_other_versions_and_edited_settings(saved):
  edit_header(saved, version=99)
  with pytest.raises(ValueError, match="version 99"):
    B.load_bundle(saved)
  edit_header(saved, version=B.VERSION, text=None)
  with pytest.raises(ValueError, match="changed after it was written"):
    B.load_bundle(saved)


def test_damaged_header(saved):
  file = saved / "bundle.json"
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(ValueError, match=r"bundle\.json is damaged"):
    B.load_bundle(saved)


def test_half_written_damaged_and_missing_weights(saved):
  file = saved / "star.safetensors"
  data = file.read_bytes()
  file.write_bytes(data[:-10])
  with pytest.raises(ValueError, match="half-written"):
    B.load_bundle(saved)
  file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  with pytest.raises(ValueError, match="checksum"):
    B.load_bundle(saved)
  file.unlink()
  with pytest.raises(ValueError, match=r"incomplete: no star\.safetensors"):
    B.load_bundle(saved)


def test_parameters_of_another_config_are_named(parts, tmp_path):
  wrong = jax.tree.map(np.copy, parts["star_params"])
  wrong["head"]["bias"] = np.zeros(7, np.float32)
  with pytest.raises(ValueError, match=r"head/bias of the star .* \(7,\)"):
    B.save_bundle(tmp_path, **{**parts, "star_params": wrong})
  wrong["head"] = {"kernel": wrong["head"]["kernel"]}
  with pytest.raises(ValueError, match="lack head/bias"):
    B.save_bundle(tmp_path, **{**parts, "star_params": wrong})
  extra = {**parts["star_params"], "more": np.zeros(2, np.float32)}
  with pytest.raises(ValueError, match="no parameter more"):
    B.save_bundle(tmp_path, **{**parts, "star_params": extra})
  other = testing.tiny_tokenizer_config((1, 2, 4))
  with pytest.raises(ValueError, match="another tokenizer"):
    B.save_bundle(tmp_path, **{**parts, "tokenizer_config": other})
  assert not list(tmp_path.iterdir())


def test_values_that_would_not_come_back(parts, tmp_path):
  for value, message in ((np.nan, "not finite"), (1e6, "range of float16")):
    broken = jax.tree.map(np.copy, parts["star_params"])
    broken["head"]["kernel"][0, 0] = value
    with pytest.raises(ValueError, match=message):
      B.save_bundle(tmp_path, **{**parts, "star_params": broken})


def test_a_full_disk_leaves_the_old_bundle(parts, saved, monkeypatch):
  before = B.load_bundle(saved)
  (saved / "README").write_text("kept")
  real = B.os.fsync
  calls = []

  def full_disk(handle):
    calls.append(handle)
    if len(calls) == 2:
      raise OSError(28, "No space left on device")
    real(handle)

  monkeypatch.setattr(B.os, "fsync", full_disk)
  changed = jax.tree.map(lambda x: x + 1, parts["star_params"])
  with pytest.raises(OSError, match="No space left"):
    B.save_bundle(saved, **{**parts, "star_params": changed})
  after = B.load_bundle(saved)
  assert after.hash == before.hash
  assert {file.name for file in saved.iterdir()} == {
    "README", "bundle.json", "star.safetensors", "tokenizer.safetensors",
  }  # fmt: skip
