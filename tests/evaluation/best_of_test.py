"""Rejection sampling and the folders that benchmark tools read."""

import dataclasses
import json
import types

import numpy as np
import pytest
from PIL import Image

from star_jax.evaluation.best_of import BestOf
from star_jax.evaluation.exports import export, read_tasks
from star_jax.evaluation.scorers import (
  ClassifierScorer,
  build_scorer,
  share_of_facts,
)
from star_jax.metrics.scene_score import SceneScore
from star_jax.samples import Samples


class Pipeline:
  """Pictures of one colour that the seed and the prompt decide."""

  bundle = types.SimpleNamespace(hash="abc")

  def __init__(self):
    self.calls = []

  def settings(self, **given):
    return {"cfg_scale": 2.0, **given}

  def sample_all(self, prompts, seed, *, batch=4, **settings):
    assert set(settings) <= {"cfg_scale"}
    self.calls.append((tuple(prompts), seed))
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 255, len(prompts))
    images = [Image.new("RGB", (4, 3), (int(v),) * 3) for v in values]
    return Samples(images, list(prompts), values[:, None], None)


class Brightness:
  name = "brightness"

  def __call__(self, images, prompts):
    return np.array([np.asarray(image).mean() for image in images])


def brightness(samples):
  return Brightness()(samples.images, None)


def test_the_best_of_each_prompt_is_kept():
  pipeline = Pipeline()
  best = BestOf(pipeline, Brightness(), 3)
  settings = best.settings(cfg_scale=1.0)
  assert settings == {"cfg_scale": 1.0, "best_of": 3, "score": "brightness"}
  drawn = best.sample_all(["a", "b", "c"], 7, batch=2, **settings)
  seeds = [seed for _, seed in pipeline.calls]
  assert seeds[0] == 7 and len(set(seeds)) == 3
  each = [
    brightness(pipeline.sample_all(["a", "b", "c"], seed)) for seed in seeds
  ]
  np.testing.assert_array_equal(brightness(drawn), np.max(each, axis=0))
  # Tokens and recipes are those of the picture that was kept.
  np.testing.assert_array_equal(drawn.tokens_BL[:, 0], np.max(each, axis=0))
  assert best.bundle.hash == "abc"


def test_a_score_that_is_not_finite_is_refused():
  class Broken:
    name = "broken"

    def __call__(self, images, prompts):
      return np.full(len(images), np.nan)

  with pytest.raises(ValueError, match="score broken of some pictures"):
    BestOf(Pipeline(), Broken(), 2).sample_all(["a"], 0)


def test_scorers_by_name():
  score = SceneScore((True, False), (True,), (), False)
  assert share_of_facts(score) == 0.5
  ctx = types.SimpleNamespace(
    config=types.SimpleNamespace(clip="", aesthetic="")
  )
  with pytest.raises(ValueError, match="--score is one of scene, classifier"):
    build_scorer("beauty", ctx)
  with pytest.raises(ValueError, match="weights of CLIP are missing"):
    build_scorer("clip", ctx)
  star = types.SimpleNamespace(num_classes=3)
  with pytest.raises(ValueError, match="this model has 3"):
    ClassifierScorer(types.SimpleNamespace(star_config=star, class_names=None))


def draw(kind, prompts, out, **more):
  options = dict(per_prompt=None, seed=0, batch=4, settings={})
  return export(kind, Pipeline(), prompts, out, **{**options, **more})


def test_geneval_folder(tmp_path):
  lines = [{"tag": "counting", "prompt": p, "include": []} for p in "xy"]
  prompts = tmp_path / "evaluation_metadata.jsonl"
  prompts.write_text("\n".join(json.dumps(line) for line in lines))
  out = tmp_path / "out"
  assert draw("geneval", prompts, out) == 2
  assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == lines[1]
  files = sorted(p.name for p in (out / "00001" / "samples").iterdir())
  assert files == [f"{j:05d}.png" for j in range(4)]
  before = (out / "00000" / "samples" / "00002.png").read_bytes()
  # What is missing is drawn again, and comes out the same.
  (out / "00000" / "samples" / "00002.png").unlink()
  assert draw("geneval", prompts, out) == 1
  assert (out / "00000" / "samples" / "00002.png").read_bytes() == before


def test_dpg_imagereward_and_mjhq_folders(tmp_path):
  (tmp_path / "dpg").mkdir()
  (tmp_path / "dpg" / "partiprompts7.txt").write_text("a cat\n")
  assert draw("dpg", tmp_path / "dpg", tmp_path / "a") == 1
  with Image.open(tmp_path / "a" / "partiprompts7.png") as sheet:
    assert sheet.size == (8, 6)
    corners = {sheet.getpixel(xy) for xy in ((0, 0), (7, 0), (0, 5), (7, 5))}
    assert len(corners) > 1
  (tmp_path / "ir.json").write_text('[{"id": "0009-1", "prompt": "a dog"}]')
  draw("imagereward", tmp_path / "ir.json", tmp_path / "b", per_prompt=2)
  assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
    "0009-1_0.png",
    "0009-1_1.png",
  ]
  entries = {"ab12": {"category": "food", "prompt": "soup"}}
  (tmp_path / "meta.json").write_text(json.dumps(entries))
  draw("mjhq", tmp_path / "meta.json", tmp_path / "c")
  assert (tmp_path / "c" / "food" / "ab12.png").exists()


def test_prompts_in_another_form_are_refused(tmp_path):
  path = tmp_path / "x.json"
  path.write_text('[{"id": 1}]')
  with pytest.raises(ValueError, match=r"x\.json does not hold prompts in the"):
    read_tasks("imagereward", path, 1)
  path.write_text("{half")
  with pytest.raises(ValueError, match="does not hold prompts"):
    read_tasks("mjhq", path, 1)
  path.write_text('{"../../up": {"category": "a", "prompt": "b"}}')
  with pytest.raises(ValueError, match="outside of the folder"):
    read_tasks("mjhq", path, 1)
  with pytest.raises(ValueError, match="There are no prompts for dpg"):
    read_tasks("dpg", tmp_path / "none", 4)
  with pytest.raises(ValueError, match="1, 4 or 9, got 3"):
    read_tasks("dpg", tmp_path, 3)
  with pytest.raises(ValueError, match="--export is one of geneval"):
    read_tasks("coco", path, 1)


def test_fields_of_a_sample_are_those_that_best_of_keeps():
  assert {f.name for f in dataclasses.fields(Samples)} == {
    "images",
    "recipes",
    "tokens_BL",
    "scales",
  }
