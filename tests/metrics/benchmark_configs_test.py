"""Benchmarks of configs/benchmark on models of a second."""

import json

import pytest
from ml_collections import ConfigDict

from star_jax.metrics.benchmark_configs import run_config


@pytest.mark.long
def test_next_scale_beside_raster_order(tmp_path):
  config = ConfigDict(
    dict(kind="complexity", repeats=1, depth=1, width=32, heads=2, grids=(2, 4))
  )
  text = run_config(config, tmp_path, None)
  found = json.loads((tmp_path / "complexity.json").read_text())["results"]
  steps = [(r["way"], r["grid"], r["steps"], r["tokens"]) for r in found]
  assert steps == [
    ("scale", 2, 2, 5), ("token", 2, 4, 4),
    ("scale", 4, 3, 21), ("token", 4, 16, 16),
  ]  # fmt: skip
  assert all(r["flops"] > 0 and r["seconds"] > 0 for r in found)
  assert text.count("raster order") == 2
  assert (tmp_path / "complexity.png").stat().st_size > 0


@pytest.mark.long
def test_parts_of_a_sampler(tmp_path):
  case = dict(
    name="tiny", what="sample", depth=1, batch=1, width=32, heads=2, ch=32,
    schedule=(1, 2),
  )  # fmt: skip
  config = ConfigDict(dict(kind="parts", repeats=1, cases=(ConfigDict(case),)))
  text = run_config(config, tmp_path, None)
  (found,) = json.loads((tmp_path / "parts.json").read_text())["results"]
  assert [scale["rows"] for scale in found["scales"]] == [2, 8]
  assert "the whole sampler" in text
  assert (tmp_path / "parts.png").exists()


@pytest.mark.long
def test_throughput_of_a_sampler_and_a_step(tmp_path):
  tiny = dict(depth=1, width=32, heads=2, ch=32, schedule=(1, 2))
  cases = (
    ConfigDict(dict(name="sample, batch 2", what="sample", batch=2, **tiny)),
    ConfigDict(dict(name="train, batch 3", what="train", batch=3, **tiny)),
  )
  config = ConfigDict(dict(kind="throughput", repeats=1, cases=cases))
  text = run_config(config, tmp_path, None)
  found = json.loads((tmp_path / "throughput.json").read_text())["results"]
  for result, pictures in zip(found, (2, 3)):
    (seconds,) = result["seconds"]
    assert result["pictures_per_second"] == pytest.approx(pictures / seconds)
    assert result["flops"] > 0 and result["attention"] == "xla"
  # Two scales read the transformer's weights twice, a step once.
  assert found[0]["weight_bytes"] == 2 * found[1]["weight_bytes"]
  assert "sample, batch 2" in text
  assert (tmp_path / "throughput.png").stat().st_size > 0


def test_configs_that_cannot_run(tmp_path):
  with pytest.raises(ValueError, match="kind of a benchmark config is one of"):
    run_config(ConfigDict(dict(kind="speed")), tmp_path, None)
  with pytest.raises(ValueError, match="Nothing to compare with: no folder"):
    run_config(ConfigDict(dict(kind="authors")), tmp_path, None)
