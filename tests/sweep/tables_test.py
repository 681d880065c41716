"""Results to tables: what is compared with what."""

import numpy as np

from star_jax.sweep import tables


def arm(image, tokenizer="multi", kid=(0.01, 0.03)):
  return {
    "tokenizer": tokenizer,
    "title": "",
    "parameters": 1_500_000,
    "examples": 1000,
    "learning_rate": 0.002,
    "probes": {"0.002": 3.0},
    "seeds": {
      str(seed): {
        "likelihood": {
          "image": value,
          "token": value / 100,
          "per_scale": [5.0, 2.0 + seed],
        },
        "draws": {
          "full": {"kid": k, "objects": 0.5, "colours": None, "relations": 0.0}
        },
      }
      for seed, (value, k) in enumerate(zip(image, kid))
    },
  }


RESULTS = {
  "arms": {
    "a": arm((300, 310)),
    "b": arm((290, 305)),
    "c": arm((285, 290)),
    "d": arm((100, 100), tokenizer="single"),
  },
  "ceilings": {"scenes": {"kid": 0.0, **dict.fromkeys(tables.SCORES, 1.0)}},
  "costs": {"a/full": {"steps": 5, "gflop": 1.5, "seconds": 0.02}},
}
ROWS = tuple((name, name, "full") for name in ("a", "b", "missing", "c", "d"))


def cells(against):
  spec = {"title": "t", "rows": ROWS, "against": against}
  lines = tables.row_table(RESULTS, spec).splitlines()[2:]
  return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def test_differences_are_paired_by_seed():
  found = cells("first")
  assert [row[0] for row in found] == ["a", "b", "c", "d"]
  # Seed by seed 290 - 300 and 305 - 310.
  assert found[1][3] == "-7.5 [-10.0, -5.0]"
  assert found[2][3] == "-17.5 [-20.0, -15.0]"
  assert cells("before")[2][3] == "-10.0 [-15.0, -5.0]"


def test_likelihoods_of_other_tokens_are_not_compared():
  assert cells("first")[3][3] == cells("before")[3][3] == "other tokens"


def test_means_come_with_half_the_range():
  row = cells("first")[0]
  assert row[2] == "305 ±5"
  assert row[4] == "0.020 ±0.010"
  assert row[5] == "50% ±0"
  # Nothing was stated, nothing is claimed.
  assert row[6] == "-"
  assert row[8:] == ["5", "1.50", "20.0"]


def test_what_is_not_there_yet_is_left_out(tmp_path):
  spec = {"title": "later", "rows": (("x", "missing", "full"),)}
  there = {"title": "now", "rows": ROWS, "against": "first"}
  tables.write_tables(RESULTS, (there, spec), tmp_path)
  text = (tmp_path / tables.TABLES).read_text()
  assert "### now" in text and "### later" not in text
  assert (tmp_path / tables.FIGURE).stat().st_size > 1000


def test_draws_of_an_arm_are_those_of_its_rows():
  specs = ({"rows": (("", "a", "full"), ("", "b", "plain"))},) * 2
  specs += ({"rows": (("", "a", "cfg"),)},)
  assert tables.draws_of(specs, "a") == ["cfg", "full"]


def test_protocols_compare_as_they_read_back():
  value = {"rates": (1e-3, 2e-3), "n": 3}
  assert tables.plain(value) == {"rates": [1e-3, 2e-3], "n": 3}
  assert np.isclose(tables.plain(value)["rates"][1], 2e-3)
