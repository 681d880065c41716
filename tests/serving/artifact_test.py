"""An exported sampler draws the pictures of the model, without star_jax."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import star_jax
from star_jax import testing
from star_jax.serving import artifact

# The last one is longer than the text window of 16 tokens.
PROMPTS = ["a red heart", "", "a blue car left of " + "a very " * 9 + "old dog"]
# As if the package were not there; pytest set the precision of products.
WITHOUT = (
  "import runpy, sys; sys.modules['star_jax'] = None;"
  "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def run(folder, *args):
  """Runs the folder's run.py in a process of its own."""
  return subprocess.run(
    [sys.executable, "-I", "-c", WITHOUT, str(folder / "run.py"), *args],
    capture_output=True,
    text=True,
    cwd=folder.parent,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
  )


def drawn(folder, *args):
  """Its pictures."""
  out = folder.parent / "pictures"
  done = run(folder, *args, f"--out={out}")
  assert not done.returncode, done.stderr
  return [np.asarray(Image.open(path)) for path in sorted(out.iterdir())]


@pytest.fixture(scope="module")
def star(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle")
  testing.save_tiny_bundle(folder)
  return star_jax.load(folder)


@pytest.fixture(scope="module")
def exported(star, tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "artifact"
  artifact.export_sampler(star, folder, batch=4, platforms=["cpu"], top_k=20)
  return folder


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*exceed the text window")
def test_run_py_draws_the_same_pixels_without_this_package(star, exported):
  pictures = drawn(exported, *PROMPTS, "--seed=4294967295", "--top_p=0.9")
  expected = star.sample(PROMPTS, seed=2**32 - 1, batch=4, top_k=20, top_p=0.9)
  assert len(pictures) == 3
  for image, other in zip(pictures, expected):
    np.testing.assert_array_equal(image, np.asarray(other))
  assert len(np.unique(pictures, axis=0)) == 3


def test_the_folder_says_what_it_is(star, exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  assert manifest["bundle"] == star.bundle.hash
  assert manifest["settings"]["top_k"] == 20
  assert manifest["inputs"]["text"] == {
    "shape": ["b", "16", "384"], "dtype": "float32"
  }  # fmt: skip
  assert manifest["outputs"]["image"]["shape"] == ["b", "12", "12", "3"]
  # Weights lie beside the program, and only those that it may read.
  weights = load_file(exported / "sampler.safetensors")
  flat = sum(x.size for x in weights.values())
  assert (exported / "sampler.stablehlo").stat().st_size < 2 * flat
  assert not [name for name in weights if "encoder" in name]
  code = (exported / "run.py").read_text()
  assert len(code.splitlines()) <= 80
  assert "import star_jax" not in code and "from star_jax" not in code


@pytest.mark.parametrize(
  "name", ["manifest.json", "sampler.safetensors", "sampler.stablehlo"]
)
def test_a_damaged_file_is_named(exported, name):
  spec = importlib.util.spec_from_file_location("run", exported / "run.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  manifest = json.loads(module.read("manifest.json", module.MANIFEST))
  digest = {**manifest["files"], "manifest.json": module.MANIFEST}[name]
  path = exported / name
  data = path.read_bytes()
  path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
  try:
    with pytest.raises(ValueError, match=f"{name} is damaged: its checksum"):
      module.read(name, digest)
    if name == "manifest.json":
      done = run(exported, "a")
      assert done.returncode == 1
      assert done.stderr == (
        f"{path} is damaged: its checksum does not match.\n"
      )
  finally:
    path.write_bytes(data)


def test_knobs_out_of_range_are_one_sentence(exported):
  done = run(exported, "a", "--top_p=1.5")
  assert done.returncode == 1
  assert done.stderr == "--top_p is 1e-06 to 1.0, got 1.5.\n"


def test_an_unknown_platform_is_refused_before_anything_is_written(
  star, tmp_path
):
  with pytest.raises(ValueError, match="Platforms are one or more of cpu, "):
    artifact.export_sampler(
      star, tmp_path / "a", batch=1, platforms=["cpu", "abacus"]
    )
  assert not (tmp_path / "a").exists()


@pytest.mark.long
def test_classes(tmp_path):
  testing.save_tiny_class_bundle(tmp_path / "bundle")
  star = star_jax.load(tmp_path / "bundle")
  folder = tmp_path / "artifact"
  artifact.export_sampler(
    star, folder, batch=2, platforms=["cpu", "cuda", "tpu"]
  )
  pictures = drawn(folder, "bb", "2", "0", "--cfg_scale=1.5")
  expected = star.sample(["bb", "2", "0"], batch=2, cfg_scale=1.5)
  for image, other in zip(pictures, expected):
    np.testing.assert_array_equal(image, np.asarray(other))
  done = run(folder, "dd")
  assert done.stderr == "'dd' is no class of this model.\n"
