"""The comparison with the authors' code, without the authors' code."""

import sys

import numpy as np
import pytest

from star_jax.metrics.versus import ours, run
from star_jax.metrics.versus.case import Case
from star_jax.tensor_file import read_tensors

TINY = {"width": 32, "heads": 2, "ch": 32, "schedule": (1, 2)}


def test_both_sides_get_the_same_weights_and_inputs(tmp_path):
  """A side that starts on its own draws what was written for the other."""
  case = Case("tiny", "decode", 1, 2, **TINY)
  ours.write_case(case, tmp_path)
  written = read_tensors(tmp_path / ours.WEIGHTS)
  kernel = ours.weights_of(case)["star"]["word_embed"]["kernel"]
  np.testing.assert_array_equal(written["var.word_embed.weight"].T, kernel)
  assert {name.partition(".")[0] for name in written} == {"var", "vae"}
  inputs = np.load(tmp_path / ours.INPUTS)
  for name, value in ours.inputs_of(case).items():
    np.testing.assert_array_equal(inputs[name], value)


@pytest.mark.long
def test_the_noise_is_that_of_the_draws(tmp_path):
  """Logits, filters and this noise give the sampler's tokens."""
  case = Case("tiny", "sample", 1, 2, **TINY)
  side = ours.Ours(case, tmp_path)
  side.check()
  found = np.load(tmp_path / ours.CHECK)
  logits_BLV = found["logits_BLV"]
  kept = np.sort(logits_BLV, axis=-1)[..., -900, None] <= logits_BLV
  noisy = np.where(kept, logits_BLV, -np.inf) + found["noise_BLV"]
  # The nucleus may remove a token that would win without it.
  same = noisy.argmax(-1) == found["idx_BL"]
  assert same.mean() > 0.7


def test_ratios_are_of_pairs():
  case = Case("a", "train", 1, 1).to_dict()
  seconds = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 6.0]}
  found = {
    "case": case,
    "seconds": seconds,
    "median": {"ours": 2.0, "theirs": 4.0},
    "ratio": {"ours": 1.0, "theirs": 2.0},
    "checks": {"ours": {}, "theirs": {"loss_difference": 1e-6}},
  }
  line = run.to_markdown([found]).splitlines()[-1]
  cells = [cell.strip() for cell in line.strip("|").split("|")]
  assert cells == [
    "a", "2.000 s", "4.000 s", "-", "2.00 (1.50 to 3.00)", "-", "loss 1.0e-06",
  ]  # fmt: skip


def test_unknown_kind_of_case():
  with pytest.raises(ValueError, match="what of a case is one of"):
    Case("a", "paint", 1, 1)


def test_a_side_that_ends_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  worker = run.Worker("theirs", tmp_path, tmp_path)
  with pytest.raises(RuntimeError, match="The side 'theirs' ended at run"):
    worker.process.wait()
    worker.ask(do="run")
