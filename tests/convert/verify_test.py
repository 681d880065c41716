"""launch/verify_official.py end to end, on files made for it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from star_jax import api, testing
from star_jax.bundle import load_bundle
from star_jax.convert import side_by_side, verify
from star_jax.convert.vqvae import vqvae_to_torch
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from tests.convert import official_test as made

# Smaller than there: what takes time here is compiling the samplers.
SMALL = {"schedule": [1, 2], "depth": 1}
TOKENIZER = {**made.TOKENIZER, "schedule": [1, 2], "ch_mult": [1]}
MODELS = {kind: {**model, **SMALL} for kind, model in made.MODELS.items()}


@pytest.fixture(scope="module")
def states():
  """{name: state dict under the official names} of random weights."""
  vae = VQVAEConfig.from_dict(TOKENIZER)
  out = {"vae": vqvae_to_torch(testing.random_params(VQVAE(vae), 2), vae)}
  for kind, model in MODELS.items():
    config = StarConfig.from_dict(model)
    params = testing.random_params(Star(config), 1)
    out[kind] = made.TO_TORCH[kind](params, config)
  return out


def request(states, folder, kind, **changes):
  image = folder / "picture.png"
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(image)
  values = dict(
    ckpt=made.save(
      folder / "m.pth", states[kind], nests=("trainer", "var_wo_ddp")
    ),
    vae=made.save(folder / "v.pth", states["vae"]),
    model=MODELS[kind],
    tokenizer=TOKENIZER,
    image=image,
    prompts=["a red heart", "a blue car"] if kind == "star" else ["0", "1"],
    out=folder / "out",
    text="minilm-l6" if kind == "star" else None,
    min_psnr=0.0,
  )
  return verify.Request(**{**values, **changes})


@pytest.mark.long
def test_a_star_from_pth_files(states, tmp_path):
  report = verify.verify(request(states, tmp_path, "star", mode="batch0"))
  assert report["passed"]
  assert [run["run"] for run in report["runs"]] == [
    "conditional, per_sample",
    "null half, per_sample",
    "conditional, batch0",
    "null half, batch0",
  ]
  keys = report["keys"]["star"]
  assert keys["tensors"] == len(states["star"])
  # Two zero biases of the layer and the class embedding.
  assert keys["without_use"] == 3 and keys["left_out"] == []
  assert report["torch"] == {
    "skipped": "no folder of the authors' code was given (--official_code)"
  }
  assert "needs a CLIP image tower" in report["clip_score"]
  assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
  sheet = Image.open(tmp_path / "out" / "contact_sheet.png")
  assert sheet.width > 2 * 192 and sheet.height > 4 * 192
  bundle = load_bundle(tmp_path / "out" / "bundle")
  assert bundle.star_config.legacy_batch0_cross_attention
  assert "star: 25 of 28 tensors in use, 3" in verify.summary(report)


@pytest.mark.long
def test_a_reconstruction_below_the_limit_fails(states, tmp_path):
  report = verify.verify(request(states, tmp_path, "var", min_psnr=90.0))
  assert not report["passed"]
  assert report["checks"] == {
    "keys": True, "reconstruction": False, "runs": True,
  }  # fmt: skip
  assert [run["run"] for run in report["runs"]] == ["conditional", "null half"]
  assert "FAILED: reconstruction" in verify.summary(report)


@pytest.mark.long
def test_the_halves_are_what_they_are_called(states, tmp_path):
  """The null half of per-sample rows sees no prompt: other prompts, the same
  pictures; the published cross-attention shows row 0 to every row."""
  from star_jax.pictures import to_pil  # noqa: F401

  verify.verify(request(states, tmp_path, "star"))
  star = api.load(tmp_path / "out" / "bundle")
  first, other = tmp_path / "1", tmp_path / "2"
  first.mkdir()
  other.mkdir()
  a = verify.draw_runs(star, ["a red heart", "a cat"], 0, first)
  b = verify.draw_runs(star, ["a blue car", "a cat"], 0, other)
  entropy = [[run["mean_entropy_nats"] for run in runs] for runs in (a, b)]
  same = [x == y for x, y in zip(*entropy)]
  assert same == [False, True, False, False]


def test_files_that_do_not_fit_end_in_the_report(states, tmp_path):
  broken = {k: x for k, x in states["star"].items() if k != "pos_start"}
  report = verify.verify(request({**states, "star": broken}, tmp_path, "star"))
  assert report["checks"] == {"keys": False} and not report["passed"]
  assert "1 missing key(s): pos_start" in report["keys"]["error"]
  assert (tmp_path / "out" / "report.json").is_file()


def test_why_nothing_is_compared(tmp_path):
  reason = side_by_side.missing(tmp_path / "absent")
  assert re.search("torch is not installed|has no models/vqvae.py", reason)


@pytest.mark.long
def test_launch_says_what_failed_by_its_status(states, tmp_path):
  files = request(states, tmp_path, "var")
  preset = tmp_path / "tiny.json"
  preset.write_text(
    json.dumps({"model": MODELS["var"], "tokenizer": TOKENIZER})
  )
  args = [
    sys.executable,
    str(made.ROOT / "launch" / "verify_official.py"),
    f"--ckpt={files.vae}",
    f"--vae={files.vae}",
    f"--preset={preset}",
    f"--image={files.image}",
    f"--out={tmp_path / 'out'}",
  ]
  env = dict(os.environ, JAX_PLATFORMS="cpu")
  done = subprocess.run(args, capture_output=True, text=True, env=env)
  assert done.returncode == 1, done.stderr
  assert "holds the tokenizer, a VQVAE (official_vae), asked for" in done.stdout
  args.remove(f"--image={files.image}")
  done = subprocess.run(args, capture_output=True, text=True, env=env)
  assert done.returncode == 2 and "--image must be given" in done.stderr
