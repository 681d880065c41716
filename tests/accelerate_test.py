"""Cheaper late scales of a loaded model: asked for, recorded, drawn again."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import star_jax
from star_jax import pictures, testing
from star_jax.bundle import load_bundle
from star_jax.programs import check_small
from star_jax.sampling.accelerate import Accelerate

SAMPLE = Path(__file__).resolve().parents[1] / "launch" / "sample.py"
ASKED = {"unguided_scales": 1, "keep_shares": (0.5,), "small_scales": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  out = [tmp_path_factory.mktemp(name) for name in ("large", "small")]
  for folder in out:
    testing.save_tiny_bundle(folder)
  return out


@pytest.fixture(scope="module")
def star(folders):
  return star_jax.load(folders[0], small_path=folders[1])


@pytest.mark.long
def test_a_picture_records_and_repeats_what_was_asked_for(star, tmp_path):
  drawn = star.sample_all("a heart", seed=3, accelerate=ASKED)
  recorded = drawn.recipes[0].settings["accelerate"]
  assert recorded == {
    "unguided_scales": 1,
    "keep_shares": [0.5],
    "small_scales": 1,
    "small_weights": star.bundle.hash,
  }
  pictures.save_png(drawn.images[0], tmp_path / "x.png", drawn.recipes[0])
  recipe = pictures.read_recipe(tmp_path / "x.png")
  again = star.redraw(recipe)
  np.testing.assert_array_equal(again.tokens_BL, drawn.tokens_BL)
  assert again.recipes == [recipe]


def test_the_default_records_nothing(star):
  assert "accelerate" not in star.settings()
  assert "accelerate" not in star.settings(accelerate=Accelerate())
  assert "accelerate" not in star.settings(accelerate={"unguided_scales": 0})


def test_what_cannot_be_done_is_one_sentence(star, folders):
  with pytest.raises(ValueError, match=r"from 0 to 3 \(the model has 3 scales"):
    star.settings(accelerate={"unguided_scales": 4})
  with pytest.raises(ValueError, match="Unknown setting of accelerate speed"):
    star.settings(accelerate={"speed": 4})
  with pytest.raises(ValueError, match="is an Accelerate or a dict"):
    star.settings(accelerate=True)
  other = {"small_scales": 1, "small_weights": "00"}
  with pytest.raises(ValueError, match="were drawn with the weights 00, the"):
    star.settings(accelerate=other)
  alone = star_jax.load(folders[0])
  with pytest.raises(ValueError, match="needs a second model of the same"):
    alone.settings(accelerate=ASKED)


def test_a_small_model_has_the_same_tokenizer_and_text_encoder(
  folders, tmp_path
):
  bundle = load_bundle(folders[0])
  check_small(bundle, load_bundle(folders[1]))
  testing.save_tiny_bundle(tmp_path, seed=1)
  with pytest.raises(ValueError, match="has another tokenizer than"):
    check_small(bundle, load_bundle(tmp_path))
  text = dataclasses.replace(bundle.text, max_tokens=3)
  with pytest.raises(ValueError, match="has another text encoder than"):
    check_small(bundle, dataclasses.replace(bundle, text=text))
  with pytest.raises(ValueError, match="holds a tokenizer alone; it cannot"):
    check_small(bundle, dataclasses.replace(bundle, star_config=None))


@pytest.mark.long
def test_the_command_takes_the_flags(folders, tmp_path):
  def launch(*flags):
    command = [sys.executable, str(SAMPLE), "a heart", f"--ckpt={folders[0]}"]
    command += [f"--out={tmp_path}", *flags]
    return subprocess.run(command, capture_output=True, text=True)

  done = launch("--keep_shares=1,0.5", "--int8_cache", "--cache_budget=3")
  assert done.returncode == 0, done.stderr
  recipe = pictures.read_recipe(tmp_path / "00_a-heart.png")
  assert recipe.settings["accelerate"] == {
    "keep_shares": [1.0, 0.5],
    "int8_cache": True,
    "cache_budget": 3,
  }
  done = launch("--keep_shares=half")
  assert done.returncode == 2
  assert "keep_shares has shares in (0, 1]" in done.stderr.splitlines()[-1]
