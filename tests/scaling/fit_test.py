"""From the result file of a sweep to laws, predictions, tables, figures."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from star_jax.scaling import fit, points, tables

ROOT = Path(__file__).resolve().parents[2]
SIZES = {2: 78e3, 3: 209e3, 4: 429e3, 5: 760e3, 6: 1.22e6, 8: 2.63e6}
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
OPTIONS = fit.Options(resamples=100)


def true_loss(n, d):
  return 1.1 + (2e-5 * n) ** -0.45 + (1e-5 * d) ** -0.6


def made(noise=0.002, seeds=(0, 1), sizes=tuple(SIZES)):
  """A result file whose losses follow a law."""
  rng, rows = np.random.default_rng(0), []
  for depth in sizes:
    for seed in seeds:
      for fraction in FRACTIONS:
        n, d = SIZES[depth], 24e6 * fraction
        value = true_loss(n, d) * np.exp(noise * rng.standard_normal())
        figures = {"all": value, "last": 0.8 * value}
        rows.append(
          {
            "size": f"d{depth}",
            "seed": seed,
            "fraction": fraction,
            "examples": int(d / 149),
            "non_embedding": n,
            "tokens": d,
            "flops": 6 * n * d,
            "gap": 0.004 if depth < 8 else 0.02,
            "stream": {"tokenizer": "abc"},
            "loss": {"new": figures},
            "error": {"new": {k: v / 4 for k, v in figures.items()}},
          }
        )
  return {"points": rows, "most_gap": 0.01}


def split_of(results, held_out=""):
  return fit.split_points(points.points_of(results, "x"), held_out, "x")


@pytest.fixture(scope="module")
def prediction():
  return fit.predict(split_of(made()), ("loss", "all"), OPTIONS)


def test_the_held_out_size_is_predicted(prediction):
  for name in ("floor", "joint"):
    law = prediction["laws"][name]
    assert law["inside"] and law["off"] < 0.15
    assert law["off"] < min(g["off"] for g in prediction["naive"].values())
  joint = prediction["laws"]["joint"]["joint"]
  np.testing.assert_allclose(joint["alpha"], [-0.45, -0.6], atol=0.08)


def test_gains_are_from_the_largest_fitted_size():
  results = made(noise=0.0)
  found = fit.predict(split_of(results), ("loss", "all"), OPTIONS)
  five, six, eight = (true_loss(SIZES[d], 24e6) for d in (5, 6, 8))
  assert (found["held_out"], found["over"]) == ("d8", "d6")
  assert found["gain"] == pytest.approx(six - eight)
  naive = found["naive"]
  assert naive["no gain"] == {"gain": 0.0, "off": 1.0}
  last = naive["gain of the last step"]
  assert last["gain"] == pytest.approx(five - six)
  off = abs((five - six) - (six - eight)) / (six - eight)
  assert last["off"] == pytest.approx(off)


def test_nothing_that_is_fitted_sees_the_held_out_size():
  plain, other = made(), made()
  for row in other["points"]:
    if row["size"] == "d8":
      row["loss"]["new"] = {"all": 9.0, "last": 9.0}
  measure = ("loss", "all")
  for results in (plain, other):
    split = split_of(results)
    sizes = fit.fit_sizes(split, measure, OPTIONS)
    compute = fit.fit_compute(split.fitted, measure, OPTIONS)
    assert "d8" not in {p["size"] for p in compute["points"]}
    if results is plain:
      first = sizes, compute
  assert first == (sizes, compute)
  assert sizes["pearson"] < -0.97
  assert 0.2 < compute["size_exponent"] < 0.9


def test_tables_say_which_runs_have_a_gap():
  results = made(seeds=(0,))
  found = points.points_of(results, "x")
  gaps = fit.gaps(found, results)
  assert gaps["largest"] == 0.02 and len(gaps["over"]) == len(FRACTIONS)
  assert "Over it: d8, seed 0, 0.125" in tables.gap_line(gaps)
  rows = tables.run_table(found).splitlines()
  assert len(rows) == 2 + len(SIZES) * len(FRACTIONS)


def changed(**values):
  results = copy.deepcopy(made(seeds=(0,)))
  results["points"][0] |= values
  return results


@pytest.mark.parametrize(
  "results, held_out, match",
  [
    ({"points": []}, "", "x holds no point of a scaling sweep"),
    (
      {**made(), "points": made()["points"][:1]},
      "",
      r"needs at least 3 sizes beside the held-out d2, got 0 in x \(1 point\)",
    ),
    (made(sizes=(2, 3, 8)), "", "beside the held-out d8, got 2 in x"),
    (made(), "d7", "--held_out is one of the sizes d2, .* got 'd7'"),
    (changed(stream={"tokenizer": "b"}), "", "2 streams of tokens"),
    (
      changed(loss={"new": {"all": float("nan"), "last": 1.0}}),
      "",
      "The loss of d2, seed 0, after 20,134 examples is nan",
    ),
    (
      {**made(), "points": made()["points"][:-1][:-4]},
      "d4",
      "The sizes d8 have no run of the whole budget",
    ),
  ],
)
def test_what_no_law_can_be_made_of_is_refused(results, held_out, match):
  with pytest.raises(ValueError, match=match):
    split_of(results, held_out)


@pytest.mark.long
def test_the_command_writes_tables_and_figures(tmp_path):
  path = tmp_path / "results.json"
  path.write_text(json.dumps(made()))
  done = subprocess.run(
    [
      sys.executable,
      ROOT / "launch/fit_scaling.py",
      f"--results={path}",
      "--resamples=100",
    ],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "### The held-out size" in done.stdout
  found = json.loads((tmp_path / "fit.json").read_text())
  assert found["held_out"] == "d8" and set(found["measures"]) == {
    "loss last",
    "loss all",
    "error last",
    "error all",
  }
  for name in ("scaling_size.png", "scaling_compute.png", "tables.md"):
    assert (tmp_path / name).stat().st_size > 1000


def test_the_command_refuses_in_one_sentence(tmp_path):
  command = [sys.executable, ROOT / "launch/fit_scaling.py"]
  done = subprocess.run(
    [*command, f"--results={tmp_path / 'none.json'}"],
    capture_output=True,
    text=True,
  )
  assert done.returncode and "There are no results in" in done.stderr
  assert "Traceback" not in done.stderr
