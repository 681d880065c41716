"""A report from result files: names, sources, what cannot be drawn."""

import json

import numpy as np
import pytest

from star_jax.evaluation.bootstrap import mean_interval, ratio_interval
from star_jax.evaluation.exhibits import write_report


def result(
  name, network="efficientnet-lite0", word="EfficientNet-lite0 d", **v
):
  return {
    "name": name,
    "protocol": {"network": network, "backend": "cpu"},
    "values": {"frechet": 12.5, "generated": 9, **v},
    "table": [[word, "12.5", ""], ["seconds an image", "0.2", ""]],
  }


def save(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def test_report(tmp_path):
  drawn = result(
    "", seconds_per_image=0.2, steps=8, parameters=7e6, depth=8, pixels=64
  )
  drawn["values"]["comparison"] = drawn["protocol"]
  drawn["protocol"] = {"best_of": {"n": 4, "score": "scene"}}
  del drawn["name"]
  save(tmp_path / "a" / "distribution.json", drawn)
  categories = {c: {"frechet": i + 1.0} for i, c in enumerate("xyz")}
  save(
    tmp_path / "b" / "pictures.json",
    result("ours", "inception", "FID", categories=categories),
  )
  lines = []
  files = write_report(
    [tmp_path / "a", tmp_path / "b" / "pictures.json"],
    tmp_path / "out",
    lines.append,
  )
  assert [f.name for f in files] == ["tables.md", "radar.png", "scatter.png"]
  text = (tmp_path / "out" / "tables.md").read_text()
  assert text.strip() == lines[0]
  first = text.split("###")[1].splitlines()
  header = [cell.strip() for cell in first[2].split("|")]
  row = dict(zip(header, (c.strip() for c in first[4].split("|"))))
  # Other features stand in a column of their own, not under FID.
  assert row["source"] == "measured, cpu" and row["FID"] == "-"
  assert row["EfficientNet-lite0 d"] == "12.5" and row["s/image"] == "0.200"
  assert "a-re4" in first[4] and "arXiv 2404.02905, table 1" in text
  assert "| 8 " in text and "12.5 (a-re4, EfficientNet-lite0 d)" in text
  assert "1.92 (VAR-d30, FID, arXiv 2404.02905, table 1)" in text


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match=r"holds no pictures\.json"):
    write_report([tmp_path], tmp_path)
  save(tmp_path / "x.json", {"values": {}})
  with pytest.raises(ValueError, match="is not a result of --images"):
    write_report([tmp_path / "x.json"], tmp_path)


def test_intervals_count_scenes_not_facts():
  rng = np.random.default_rng(0)
  truth = rng.uniform(size=200) < 0.4
  counts = np.full(200, 5)
  value, low, high = ratio_interval(truth[None] * counts, counts, 500, 0)
  assert value == pytest.approx(truth.mean())
  # All facts of a scene go together: as wide as that of 200 scenes.
  wide = 2 * 1.96 * np.sqrt(value * (1 - value) / 200)
  assert high - low == pytest.approx(wide, rel=0.15)
  # Three seeds that agree tell no more than one.
  again = ratio_interval(
    np.repeat((truth * counts)[None], 3, 0), counts, 500, 0
  )
  assert again == pytest.approx((value, low, high))
  assert np.isnan(ratio_interval(np.zeros((1, 3)), np.zeros(3), 10, 0)[0])
  mean, half = mean_interval(np.array([1.0, 2.0, 3.0]))
  assert mean == 2 and half == pytest.approx(1.96 / np.sqrt(3), rel=1e-3)
