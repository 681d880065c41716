"""The sweep from config to tables: what is kept, what runs again."""

import json

import pytest

from configs import ablations
from star_jax.data import pipeline
from star_jax.sweep import measure, plan
from star_jax.sweep import run as run_lib
from star_jax.sweep.runs import Stopped, Sweep
from tests.data.conftest import DrawnStore, drawn_records

SCORE = {"kid": 0.01, "objects": 0.5, "colours": 0.4, "relations": 0.1}
LIKELIHOOD = {"token": 2.0, "image": 200.0, "per_scale": [3.0, 2.0]}


class FakeSweep(Sweep):
  """Trains nothing and remembers what it was asked for."""

  asked = None
  stop_at = ()

  def prepare(self):
    self.asked.append("prepare")

  def learning_rate(self, arm):
    self.asked.append((arm.name, "rate"))
    return 2e-3, {"0.002": 3.0}

  def train(self, arm, rate, seed):
    if (arm.name, seed) == self.stop_at:
      raise Stopped("SIGTERM")
    self.asked.append((arm.name, seed, rate))


class FakeYardstick:
  def __init__(self, config, options):
    del config, options

  def ceilings(self, tokenizers):
    return {name: SCORE for name in ("scenes", *tokenizers)}

  def likelihood(self, bundle, tokens, first):
    del bundle, tokens, first
    return LIKELIHOOD

  def draw(self, pipeline, name, sheet):
    del pipeline, name, sheet
    return SCORE


class FakeBundle:
  def __init__(self):
    self.hash, self.params = "abc", {"star": {}}


@pytest.fixture
def sweep(monkeypatch, tmp_path):
  """run(config) of a sweep whose parts do nothing; `asked` is what it did."""
  monkeypatch.setattr(run_lib, "Sweep", FakeSweep)
  monkeypatch.setattr(run_lib, "Yardstick", FakeYardstick)
  monkeypatch.setattr(run_lib, "load_bundle", lambda path: FakeBundle())
  monkeypatch.setattr(run_lib, "StarPipeline", lambda bundle: None)
  costs = {"star/full": {"steps": 5, "gflop": 1.0, "seconds": 0.1}}
  monkeypatch.setattr(run_lib.cost, "sampling_costs", lambda *a, **k: costs)

  def run(config, **options):
    FakeSweep.asked = asked = []
    return asked, run_lib.run_sweep(config, tmp_path, **options)

  monkeypatch.setattr(FakeSweep, "stop_at", ())
  return run


@pytest.mark.long
def test_what_is_finished_is_kept(sweep, tmp_path):
  config = ablations.get_config("runlocal")
  asked, results = sweep(config)
  assert asked == [
    "prepare",
    ("star", "rate"),
    ("star", 0, 2e-3),
    ("ar", "rate"),
    ("ar", 0, 2e-3),
  ]
  assert set(results["arms"]) == {"star", "ar"}
  assert json.loads((tmp_path / "results.json").read_text())["costs"]
  assert "### Two arms" in (tmp_path / "tables.md").read_text()
  asked, again = sweep(config)
  assert asked == ["prepare"] and again == results


@pytest.mark.long
def test_an_arm_of_another_protocol_runs_again(sweep):
  config = ablations.get_config("runlocal")
  sweep(config)
  config.measure.samples = 8
  asked, _ = sweep(config, names=["ar"])
  assert asked == ["prepare", ("ar", "rate"), ("ar", 0, 2e-3)]


def test_a_sweep_that_was_stopped_goes_on(sweep, monkeypatch, capsys):
  config = ablations.get_config("runlocal")
  monkeypatch.setattr(FakeSweep, "stop_at", ("ar", 0))
  asked, results = sweep(config)
  assert results["stopped"] == "SIGTERM" and set(results["arms"]) == {"star"}
  assert "the same command goes on from there" in capsys.readouterr().out
  monkeypatch.setattr(FakeSweep, "stop_at", ())
  asked, results = sweep(config)
  assert asked == ["prepare", ("ar", "rate"), ("ar", 0, 2e-3)]
  assert results["stopped"] is None and len(results["arms"]) == 2


def test_each_arm_takes_the_rate_of_least_loss(monkeypatch, tmp_path):
  config = ablations.get_config()
  arm = plan.plan_arms(config, ["star"])[0]
  asked = []

  def run(self, arm, workdir, rate, steps, seed):
    asked.append((workdir.name, steps, seed))
    return abs(rate - wanted)

  wanted = config.learning_rates[1]
  monkeypatch.setattr(Sweep, "_run", run)
  best, losses = Sweep(config, tmp_path).learning_rate(arm)
  assert best == wanted and len(losses) == len(config.learning_rates)
  assert asked[1] == (f"probe-{wanted:g}", arm.probe_steps, config.probe_seed)
  assert config.probe_seed not in config.seeds


@pytest.mark.long
def test_two_arms_from_the_first_picture_to_the_tables(monkeypatch, tmp_path):
  """Everything but the size is as in the sweep of docs/ablations.md."""
  store = DrawnStore(drawn_records(["twemoji"]))
  for module in (pipeline, measure):
    monkeypatch.setattr(module, "load_art", lambda folder: store)
  config = ablations.get_config("runlocal")
  results = run_lib.run_sweep(config, tmp_path)
  assert set(results["arms"]) == {"star", "ar"}
  assert set(results["ceilings"]) == {"scenes", "multi", "single"}
  scenes, multi = (results["ceilings"][name] for name in ("scenes", "multi"))
  # Nobody draws a scene better than the scene, and its features are nearest.
  assert scenes["objects"] >= multi["objects"] and scenes["objects"] > 0
  assert scenes["kid"] < multi["kid"]
  for arm in results["arms"].values():
    (seed,) = arm["seeds"].values()
    scales = seed["likelihood"]["per_scale"]
    assert len(scales) == len(arm["grids"]) and min(scales) > 0
  cost = results["costs"]
  assert cost["ar/plain"]["steps"] == 64 and cost["star/full"]["steps"] == 5
  # Guidance runs two rows a picture.
  assert cost["star/full"]["gflop"] > cost["ar/plain"]["gflop"] > 0
  shown = list((tmp_path / "sheets").glob("*.png"))
  assert len(shown) == 2
  assert (tmp_path / "samples.png").is_file()
