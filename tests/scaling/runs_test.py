"""Cool-downs that branch off one run; a sweep that is stopped goes on."""

import functools
import json
import os
import signal
import types

import numpy as np
import pytest

from configs import scaling_law
from star_jax.metrics.report import write_json
from star_jax.scaling import measure, plan, run, runs
from star_jax.train.checkpoint import find_run, read_params
from star_jax.train.loop import train_and_evaluate
from tests.train.fake import FakeTask

FIGURES = {"all": 2.0, "last": 1.0, "scales": [1.0]}
FOUND = {
  "loss": {"new": FIGURES},
  "error": {"new": FIGURES},
  "gap": 0.0,
  "gap_error": 0.0,
}


def config():
  c = scaling_law.get_config("runlocal")
  c.training.optimizer.name = "adamw"
  c.sizes, c.seeds = (1, 2), (0,)
  return c


class Prepared(runs.Runs):
  def prepare(self):
    facts = {"learning_rate": 0.1, "stream": {"tokenizer": "abc"}}
    write_json(self.out / runs.PREPARED, facts)
    return facts


@pytest.fixture
def fake(monkeypatch):
  """Linear regression in the place of the transformer; stop(step, folder)
  may end a run."""
  control = types.SimpleNamespace(stop=lambda step, folder: False, trained=[])

  def train(config, workdir):
    def on_step(step):
      control.trained.append((workdir.parent.name, workdir.name, step))
      if control.stop(step, workdir.name):
        os.kill(os.getpid(), signal.SIGTERM)

    task = FakeTask(config, on_step=on_step)
    return train_and_evaluate(config, workdir, task=task)

  monkeypatch.setattr(runs, "train_and_evaluate", train)
  monkeypatch.setattr(run, "Runs", Prepared)
  monkeypatch.setattr(runs, "TransformerTask", lambda config: None)
  monkeypatch.setattr(runs, "measure", lambda *args: FOUND)
  return control


def kernel(folder):
  return np.asarray(read_params(find_run(folder)[0])["head"]["kernel"])


@pytest.mark.long
def test_a_cooldown_is_the_run_of_its_schedule(fake, tmp_path):
  """Bitwise, wherever the sweep was stopped."""
  c = config()
  planned = plan.plan_sweep(c)
  job, sweep = planned.jobs[0], Prepared(c, tmp_path / "sweep")
  stops = [(5, "trunk"), (20, "steps-24")]
  for step, name in stops:
    fake.stop = lambda *at, want=(step, name): at == want
    with pytest.raises(runs.Stopped, match="SIGTERM"):
      for budget in planned.budgets:
        sweep.train(sweep.out, job, budget, 0.1)
  for budget in planned.budgets:
    sweep.train(sweep.out, job, budget, 0.1)
  # Every step of the trunk and of both cool-downs once.
  steps = [(name, step) for _, name, step in fake.trained]
  assert len(steps) == len(set(steps)) == planned.steps_of_job()
  for budget in planned.budgets:
    whole = sweep._run_config(job, 0.1, budget.num_steps)
    whole.optimizer.schedule = f"wsd{c.cooldown:g}"
    folder = tmp_path / f"whole-{budget.num_steps}"
    train_and_evaluate(whole, folder, task=FakeTask(whole))
    name = f"steps-{budget.num_steps}"
    np.testing.assert_array_equal(kernel(sweep.out / name), kernel(folder))


@pytest.mark.long
def test_a_trunk_past_the_branch_is_refused(fake, tmp_path):
  c = config()
  planned = plan.plan_sweep(c)
  sweep = Prepared(c, tmp_path)
  sweep.train(tmp_path, planned.jobs[0], planned.budgets[1], 0.1)
  with pytest.raises(ValueError, match="is at step 18, and a cool-down branch"):
    sweep.train(tmp_path, planned.jobs[0], planned.budgets[0], 0.1)


@pytest.mark.long
def test_a_sweep_that_was_stopped_goes_on(fake, tmp_path):
  fake.stop = lambda step, name: (step, name) == (10, "steps-12")
  results = run.run_sweep(config(), tmp_path)
  assert results["stopped"] == "SIGTERM" and not results["points"]
  fake.stop = lambda *at: False
  fake.trained.clear()
  results = run.run_sweep(config(), tmp_path)
  assert fake.trained[0] == ("d1-seed0", "steps-12", 11)
  assert results["stopped"] is None
  assert [(p["size"], p["fraction"]) for p in results["points"]] == [
    (size, fraction) for size in ("d1", "d2") for fraction in (0.5, 1.0)
  ]
  saved = json.loads((tmp_path / run.RESULTS).read_text())
  assert saved["points"] == results["points"]
  fake.trained.clear()
  run.run_sweep(config(), tmp_path)
  assert not fake.trained


@pytest.mark.long
def test_jobs_of_an_array_are_independent(fake, tmp_path):
  with pytest.raises(ValueError, match="run the same command with --prepare"):
    run.run_sweep(config(), tmp_path, only=1)
  run.run_sweep(config(), tmp_path, prepare_only=True)
  assert not fake.trained
  results = run.run_sweep(config(), tmp_path, only=1)
  assert {p["size"] for p in results["points"]} == {"d2"}
  results = run.run_sweep(config(), tmp_path, only=0)
  assert len(results["points"]) == 4
  with pytest.raises(ValueError, match="number of a job, 0 to 1, got 2"):
    run.run_sweep(config(), tmp_path, only=2)


def test_a_folder_of_another_sweep_is_refused(fake, tmp_path):
  run.run_sweep(config(), tmp_path, prepare_only=True)
  other = config()
  other.sizes = (1, 2, 3)  # may be added
  run.run_sweep(other, tmp_path, prepare_only=True)
  other.cooldown = 0.3
  with pytest.raises(ValueError, match=r"config\.cooldown is 0.2 there and"):
    run.run_sweep(other, tmp_path, prepare_only=True)


class Cache:
  """As many records as `tokens`, all of one caption."""

  def __init__(self, tokens):
    self.tokens = tokens

  def __len__(self):
    return len(self.tokens)

  def record(self, i):
    idx_VL = np.array([[self.tokens[i], 7]], np.uint16)
    return types.SimpleNamespace(idx_VL=idx_VL, keys_V=np.array([3], "<u8"))


def test_repeats_by_chance_are_counted():
  train = Cache([1, 2, 1, 3, 1])
  assert measure.count_repeats(train) == 2
  assert measure.count_repeats(train, Cache([3, 4, 3])) == 2


class FakeBatches:
  def __init__(self):
    self.at = 0

  def set_state(self, at):
    self.at = at

  def __next__(self):
    return self.at


def test_seen_examples_are_all_over_what_the_run_has_seen():
  task = types.SimpleNamespace(train_batches=FakeBatches)
  assert list(measure.seen_batches(task, 9, 3)) == [0, 4, 8]
  assert list(measure.seen_batches(task, 2, 64)) == [0, 1]


def test_the_gap_is_that_of_the_losses(monkeypatch):
  means = iter([(2.02, 2.06), (2.0, 2.0), (3.0, 3.0)])

  def evaluate(task, params, batches):
    losses = list(next(means))
    return {"losses": losses, "loss": FIGURES, "error": FIGURES}

  monkeypatch.setattr(measure, "evaluate", evaluate)
  cache = types.SimpleNamespace(in_order=lambda *args: [])
  task = types.SimpleNamespace(
    data=types.SimpleNamespace(cache=lambda split: cache),
    config=types.SimpleNamespace(batch_size=4),
    train_batches=FakeBatches,
  )
  found = measure.measure(task, {}, 8, 2)
  assert found["gap"] == pytest.approx(0.02)
  assert found["gap_error"] == pytest.approx(0.01)


def test_a_grid_has_a_row_a_size_and_a_column_a_budget(tmp_path):
  from star_jax.scaling.grid import picture_grid

  c = config()
  planned, sweep = plan.plan_sweep(c), Prepared(c, tmp_path)
  asked = []

  def draw(path, prompts, seed):
    asked.append((path.parent.parent.name, path.parent.name, seed))
    shade = 40 * len(asked)
    return [np.full((8, 8, 3), shade, np.uint8) for _ in prompts]

  grid = functools.partial(picture_grid, sweep, planned, draw=draw)
  with pytest.raises(ValueError, match="has no finished run to draw with"):
    grid(["a"], 5)
  for job in planned.jobs:
    write_json(sweep.point_path(job, planned.budgets[1]), {})
  one, two = grid(["a"], 5), grid(["a", "b"], 5)
  assert asked[:2] == [("d1-seed0", "steps-24", 5), ("d2-seed0", "steps-24", 5)]
  assert two.width == 2 * one.width and two.height == one.height
  colours = {colour for _, colour in one.getcolors(10_000)}
  assert {(40, 40, 40), (80, 80, 80), (235, 235, 235)} <= colours
  with pytest.raises(ValueError, match="at least one prompt"):
    grid([], 5)
