"""--rate: folders of a benchmark, its mean, the report's table."""

import json

import numpy as np
import pytest
from PIL import Image

from star_jax.evaluation import ratings
from star_jax.evaluation.exhibits import write_report
from star_jax.evaluation.ratings import rate_pictures


class Brightness:
  """Mean pixel plus the length of the prompt."""

  def __init__(self, name):
    self.name = name

  def __call__(self, images, prompts):
    assert len(images) == len(prompts)
    means = [np.asarray(image).mean() for image in images]
    return np.array(means) + [len(prompt) for prompt in prompts]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Two pictures of each of ten prompts, as --export=imagereward draws."""
  monkeypatch.setattr(
    ratings, "load_scorer", lambda name, config: Brightness(f"{name}, abc")
  )
  entries = [{"id": f"{i:03d}", "prompt": "x" * i} for i in range(10)]
  (tmp_path / "prompts.json").write_text(json.dumps(entries))
  (tmp_path / "images").mkdir()
  for i in range(10):
    for j in range(2):
      image = Image.new("RGB", (4, 3), (10 * i + 4 * j,) * 3)
      image.save(tmp_path / "images" / f"{i:03d}_{j}.png")
  return tmp_path


def rate(folder, names=("imagereward",), **more):
  options = dict(layout="imagereward", per_prompt=2, print_line=list)
  return rate_pictures(
    names,
    None,
    folder / "images",
    folder / "prompts.json",
    folder / "out",
    **{**options, **more},
  )


def test_the_mean_is_over_prompts(folder):
  lines = []
  result = rate(
    folder, ("imagereward", "clip"), name="ours", print_line=lines.append
  )
  expected = [11 * i + 2 for i in range(10)]
  found = result["values"]["imagereward"]
  assert found["prompts"] == pytest.approx(expected)
  assert found["mean"] == pytest.approx(np.mean(expected))
  half = 1.96 * np.std(expected, ddof=1) / np.sqrt(10)
  assert found["half"] == pytest.approx(half, rel=1e-3)
  assert result["protocol"]["imagereward"] == "imagereward, abc"
  assert "pictures a prompt: 2" in lines[0] and "| 51.5" in lines[1]
  saved = json.loads((folder / "out" / "ratings.json").read_text())
  assert saved == json.loads(json.dumps(result))
  write_report([folder / "out"], folder / "report", lines.append)
  last = (folder / "report" / "tables.md").read_text().split("###")[-1]
  assert "imagereward, abc" in last and "| ours | 51.5 +- 21" in last
  write_report([folder / "out" / "ratings.json"], folder / "r", lines.append)
  assert "| ours | 51.5 +- 21" in lines[-1]


def test_part_of_the_prompts(folder):
  assert rate(folder, limit=3)["values"]["imagereward"]["mean"] == 13


def test_refusals(folder):
  with pytest.raises(ValueError, match="clip, aesthetic, imagereward, got 'x'"):
    rate(folder, ("x",))
  with pytest.raises(ValueError, match="geneval, imagereward, mjhq, got 'dpg'"):
    rate(folder, layout="dpg")
  with pytest.raises(ValueError, match=r"lacks 10 of 30 pictures.*000_2\.png"):
    rate(folder, per_prompt=3)
  (folder / "images" / "004_1.png").write_text("no picture")
  with pytest.raises(ValueError, match=r"004_1\.png is not a readable picture"):
    rate(folder)
