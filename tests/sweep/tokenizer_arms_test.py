"""Arms of a tokenizer: equal compute, what is kept, the table."""

import json
import types

import pytest

from configs import tokenizer_arms as config_lib
from star_jax.sweep import tokenizer_arms
from star_jax.sweep.runs import Stopped

FLOPS = {"mse": (10**10, 10**10), "full": (2 * 10**10, 5 * 10**10)}


@pytest.fixture
def config(monkeypatch):
  c = config_lib.get_config()
  monkeypatch.setattr(
    tokenizer_arms,
    "step_flops",
    lambda run: FLOPS["full" if run.loss.adversarial else "mse"],
  )
  c.budget_tflops = 12.0
  return c


def test_arms_spend_the_budget_and_differ_in_what_they_say(config):
  arms = {arm.name: arm for arm in tokenizer_arms.plan_arms(config)}
  assert arms["mse"].config.num_steps == 1200
  full = arms["full"].config
  spent = full.adversary.start * 2 + (full.num_steps - full.adversary.start) * 5
  assert spent / 100 == pytest.approx(12.0, rel=0.01)
  assert dict(arms["mse"].config.loss) == dict(full.loss) | dict(
    l1=0.0, perceptual=0.0, adversarial=0.0
  )
  assert arms["mse"].seeds == (0, 1, 2) and arms["pixels"].seeds == (0,)
  with pytest.raises(ValueError, match="Unknown arms vq; the sweep has mse"):
    tokenizer_arms.plan_arms(config, ["vq"])
  config.budget_tflops = 0.001
  with pytest.raises(ValueError, match="buys no step of the arm mse"):
    tokenizer_arms.plan_arms(config)


def test_runs_go_seed_by_seed_and_end_in_a_table(config, tmp_path, monkeypatch):
  done, stop = [], [("full", 1)]

  def train(run, folder):
    turn = folder.parent.name, run.seed
    if turn in stop:
      stop.clear()
      raise Stopped("SIGTERM")
    done.append(turn)

  def evaluate(what, bundle, measure, folder):
    seed = done[-1][1]
    quality = {"ssim": 0.9, "kid": 0.01 + 0.01 * seed}
    if done[-1][0] == "full":
      quality = {"ssim": 0.8, "kid": 0.005}
    values = {"psnr": {"art": 24.0 + seed, "whole": 27.0}, "quality": quality}
    values["codebook"] = {"used_share": 0.97, "perplexity": 500.0}
    return {"tokenizer": {"values": values}}

  monkeypatch.setattr(tokenizer_arms, "train_run", train)
  monkeypatch.setattr(tokenizer_arms, "evaluate", evaluate)
  bundle = types.SimpleNamespace(hash="a", notes={})
  monkeypatch.setattr(tokenizer_arms, "load_bundle", lambda path: bundle)
  names = ["mse", "full"]
  results = tokenizer_arms.run_arms(config, tmp_path, names)
  assert results["stopped"] == "SIGTERM"
  assert done == [("mse", 0), ("full", 0), ("mse", 1)]
  results = tokenizer_arms.run_arms(config, tmp_path, names)
  assert results["stopped"] is None and done[-1] == ("full", 2)
  stored = json.loads((tmp_path / "results.json").read_text())
  assert list(stored["arms"]["full"]["seeds"]) == ["0", "1", "2"]
  text = (tmp_path / "tables.md").read_text()
  assert "25.00 ±1.00" in text and "20.00 ±10.00" in text
  # Nobody measured the Frechet distance.
  assert "| -" in text
  assert "against the reference: PSNR over the art +0.00 dB, KID -75%." in text
