"""launch/convert.py: official files to bundles and back, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import star_jax
from configs.presets import PRESETS
from star_jax import testing
from star_jax.convert import official
from star_jax.convert.var import var_to_torch
from star_jax.convert.vqvae import vqvae_to_torch
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.tensor_file import read_tensors, write_tensors
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

ROOT = Path(official.__file__).parents[2]
TOKENIZER = {
  "schedule": [1, 2, 3],
  "vocab_size": 1200,
  "code_dim": 4,
  "ch": 32,
  "ch_mult": [1, 1],
  "num_res_blocks": 1,
}
MODEL = {
  **PRESETS["var_d16"],
  "schedule": [1, 2, 3],
  "vocab_size": 1200,
  "code_dim": 4,
  "depth": 2,
  "width": 16,
  "num_heads": 2,
  "num_classes": 3,
  "dtype": "float32",
}


def save(path, state):
  write_tensors(
    path,
    {key: (x.shape, str(x.dtype)) for key, x in state.items()},
    state.__getitem__,
  )
  return path


@pytest.fixture(scope="module")
def states():
  """{name: state dict under the official names} of random weights."""
  var = StarConfig.from_dict(MODEL)
  vae = VQVAEConfig.from_dict(TOKENIZER)
  return {
    "var": var_to_torch(testing.random_params(Star(var), 1), var),
    "vae": vqvae_to_torch(testing.random_params(VQVAE(vae), 2), vae),
  }


def convert(states, folder, **changes):
  files = {
    name: save(folder / f"{name}_in.safetensors", state)
    for name, state in {**states, **changes}.items()
  }
  official.convert_var(
    files["var"],
    files["vae"],
    folder / "bundle",
    model=MODEL,
    tokenizer=TOKENIZER,
    licence="none",
    storage="float32",
  )
  return folder / "bundle"


def test_there_and_back_is_bitwise(states, tmp_path):
  written = official.export_official(convert(states, tmp_path), tmp_path / "o")
  assert [path.name for path in written] == [
    "vae.safetensors",
    "var.safetensors",
  ]
  for path in written:
    found, state = read_tensors(path), states[path.stem]
    assert found.keys() == state.keys()
    for key, value in state.items():
      assert found[key].dtype == value.dtype
      np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_what_was_converted_draws_classes(states, tmp_path):
  star = star_jax.load(convert(states, tmp_path))
  assert star.bundle.sampling == official.VAR_SAMPLING
  out = star.sample(["0", "2"], return_tokens=True)
  assert out.tokens_BL.shape == (2, 14) and out.images[0].size == (6, 6)


def test_names_of_wrappers_are_taken_off(states, tmp_path):
  wrapped = {f"module._orig_mod.{k}": x for k, x in states["var"].items()}
  plain = star_jax.load(convert(states, tmp_path)).bundle.hash
  again = star_jax.load(convert(states, tmp_path, var=wrapped)).bundle.hash
  assert again == plain


def test_nested_dicts_are_unwrapped(states, tmp_path, monkeypatch):
  monkeypatch.setattr(
    official, "read_pth", lambda p: {"trainer": {"var_wo_ddp": states["var"]}}
  )
  found = official.read_official(tmp_path / "x.pth", "var")
  assert found.keys() == states["var"].keys()


def test_a_star_into_a_var_is_refused(states, tmp_path):
  star = {**states["var"], "encoder_proj.bias": np.zeros(4, np.float32)}
  with pytest.raises(ValueError, match=r"1 unknown key.*encoder_proj.bias"):
    convert(states, tmp_path, var=star)
  assert not (tmp_path / "bundle" / "bundle.json").exists()


def test_a_file_that_was_cut_off(states, tmp_path):
  path = save(tmp_path / "x.safetensors", states["var"])
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    source.read_official(path, "var")
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="not a whole safetensors file"):
    source.read_official(path, "var")


def test_a_model_of_texts_is_not_written_back(tmp_path):
  testing.save_tiny_bundle(tmp_path / "texts")
  with pytest.raises(ValueError, match="a model of texts"):
    official.export_official(tmp_path / "texts", tmp_path / "out")


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--from=hf", "--in=x", "--out=y"], "--from is one of official_var"),
    (["--from=official_var", "--in=x", "--out=y"], "--vae and --preset must"),
    (
      ["--from=official_var", "--in=x", "--vae=z", "--preset=d16", "--out=y"],
      "--preset is one of var_d16, var_d20, var_d24, var_d30, var_d36, got",
    ),
  ],
)
def test_launch_ends_in_one_sentence(args, message):
  done = subprocess.run(
    [sys.executable, str(ROOT / "launch" / "convert.py"), *args],
    capture_output=True,
    text=True,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
  )
  assert done.returncode == 2 and message in done.stderr, done.stderr
