"""The loop: exact restarts, signals, bad losses, starting points."""

import json
import os
import signal

import numpy as np
import pytest

from star_jax import chips, sharding
from star_jax.train.global_arrays import local_rows
from star_jax.train.guard import NonFiniteError
from star_jax.train.logging import read_metrics
from star_jax.train.loop import build_task, train_and_evaluate
from tests.cases import long_but
from tests.train import fake


def losses(workdir, split="train"):
  return {
    row["step"]: row["loss"]
    for row in read_metrics(workdir)
    if row["split"] == split
  }


def run(workdir, task=None, **changes):
  config = fake.config(**changes)
  return train_and_evaluate(config, workdir, task=task or fake.FakeTask(config))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  assert run(workdir)["step"] == 8
  return workdir


def test_a_run_learns_logs_every_step_and_exports(unbroken):
  found = losses(unbroken)
  assert list(found) == list(range(1, 9))
  assert found[8] < found[1]
  heldout = losses(unbroken, "heldout")
  assert list(heldout) == [0, 4, 8]  # what it started from comes first
  assert heldout[8] < heldout[0]
  assert (unbroken / "exported.npy").exists()
  curves = json.loads((unbroken / "curves.json").read_text())["curves"]
  assert len(curves["train/loss_k"][0][1]) == 2
  assert sorted(p.name for p in (unbroken / "checkpoints").iterdir()) == [
    "6",
    "8",
  ]


def test_a_checkpoint_of_another_mesh_loads(unbroken, tmp_path):
  for steps, axes in ((4, dict(fsdp=4)), (8, dict(data=2, fsdp=2))):
    config = fake.config(num_steps=8)
    config.mesh.update(dict(data=1) | axes)

    def stop(step, last=steps):
      if step == last < 8:
        os.kill(os.getpid(), signal.SIGTERM)

    task = fake.FakeTask(config, on_step=stop)
    assert train_and_evaluate(config, tmp_path, task=task)["step"] == steps
  found, expected = losses(tmp_path), losses(unbroken)
  assert found.keys() == expected.keys()
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), rtol=1e-5
  )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_the_restart_repeats_nothing(
  name, unbroken, tmp_path, capsys
):
  config = fake.config()

  def stop(step):
    if step == 4:
      os.kill(os.getpid(), getattr(signal, name))

  stopping = fake.FakeTask(config, on_step=stop)
  summary = train_and_evaluate(config, tmp_path, task=stopping)
  assert summary == {"step": 4, "stopped": name, "exported": None}
  assert "the same command goes on" in capsys.readouterr().out
  assert run(tmp_path)["step"] == 8
  # Bitwise: JSON keeps every digit.
  assert losses(tmp_path) == losses(unbroken)
  assert losses(tmp_path, "heldout") == losses(unbroken, "heldout")
  np.testing.assert_array_equal(
    np.load(tmp_path / "exported.npy"), np.load(unbroken / "exported.npy")
  )


class Stopping(fake.FakeTask):
  """Asks for a stop in the middle of an evaluation or of drawing."""

  def __init__(self, config, evaluation=-1, drawing=-1):
    super().__init__(config)
    self.evaluation, self.drawing = evaluation, drawing
    self.evaluations = self.drawings = 0

  def eval_batches(self):
    for i, batch in enumerate(super().eval_batches()):
      if i == 1 and self.evaluations == self.evaluation:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch
    self.evaluations += 1

  def pictures(self, state):
    if self.drawings == self.drawing:
      os.kill(os.getpid(), signal.SIGTERM)
    self.drawings += 1
    return super().pictures(state)


PICTURES = {"eval_batches": 3, "sample_every": 4}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("drawn")
  run(workdir, **PICTURES)
  return workdir


@pytest.mark.parametrize("asks", long_but(1, [1, 2]))
def test_a_signal_cuts_an_evaluation_which_the_restart_repeats(
  asks, drawn, tmp_path
):
  config = fake.config(**PICTURES)
  stopping = Stopping(config, evaluation=asks)
  summary = train_and_evaluate(config, tmp_path, task=stopping)
  step = 4 * asks
  assert summary == {"step": step, "stopped": "SIGTERM", "exported": None}
  assert step not in losses(tmp_path, "heldout")
  assert not list(tmp_path.glob(f"samples/*{step}.png"))
  summary = run(tmp_path, **PICTURES)
  assert summary["exported"].exists()
  assert losses(tmp_path, "heldout") == losses(drawn, "heldout")
  assert losses(tmp_path) == losses(drawn)
  names = [sorted(os.listdir(w / "samples")) for w in (tmp_path, drawn)]
  assert names[0] == names[1]


def test_the_checkpoint_is_there_before_pictures_are_drawn(tmp_path):
  config = fake.config(**PICTURES, checkpoint_every=4)
  seen = []

  class Looking(fake.FakeTask):
    def pictures(self, state):
      seen.append(os.listdir(tmp_path / "checkpoints"))
      return super().pictures(state)

  config.async_checkpoints = False
  train_and_evaluate(config, tmp_path, task=Looking(config))
  assert seen == [["4"], ["4", "8"]] or seen == [["4"], ["8", "4"]]


@pytest.mark.long
def test_means_reach_across_a_stop(tmp_path):
  """A row of means is that of an unbroken run, wherever it was stopped."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  run(whole, log_every=4)
  config = fake.config(log_every=4)

  def stop(step):
    if step in (2, 7):
      os.kill(os.getpid(), signal.SIGTERM)

  for reached in (2, 7, 8):
    task = fake.FakeTask(config, on_step=stop)
    assert train_and_evaluate(config, broken, task=task)["step"] == reached
  assert list(losses(whole)) == [4, 8]
  assert losses(broken) == losses(whole)


def test_the_best_checkpoint_stays_and_the_newest_is_taken(tmp_path):
  class Worse(fake.FakeTask):
    """Every evaluation is harder than the one before."""

    evaluations = 0

    def eval_batches(self):
      self.evaluations += 1
      batches = super().eval_batches()
      return [b | {"y": b["y"] + 10 * self.evaluations} for b in batches]

  config = fake.config(
    keep_best=1, keep_checkpoints=1, checkpoint_every=1, num_steps=7
  )
  train_and_evaluate(config, tmp_path, task=Worse(config))
  heldout = losses(tmp_path, "heldout")
  assert heldout[4] < heldout[7]
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["4", "7"]
  config.num_steps = 9
  summary = train_and_evaluate(config, tmp_path, task=Worse(config))
  # The row of step 7 is not written twice, those after it are new.
  assert list(losses(tmp_path)) == list(range(1, 10)) and summary["step"] == 9
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["8", "9"]


def test_a_finished_run_trains_no_further(unbroken):
  before = losses(unbroken)
  assert run(unbroken)["step"] == 8
  assert losses(unbroken) == before


def test_a_non_finite_loss_stops_the_run_and_is_never_saved(tmp_path):
  config = fake.config(log_every=2, max_skipped=0)
  task = fake.FakeTask(config, nan_at=5)
  with pytest.raises(
    NonFiniteError,
    match=r"finite at step 6 \(loss nan.* up to step 5.* checkpoint 3 is",
  ):
    train_and_evaluate(config, tmp_path, task=task)
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_skipped_steps_are_counted_and_are_in_no_mean(tmp_path, capsys):
  config = fake.config(log_every=2, max_skipped=2)
  task = fake.FakeTask(config, nan_at=(2, 4, 5))
  assert train_and_evaluate(config, tmp_path, task=task)["step"] == 8
  assert "Step 6 is skipped (loss nan" in capsys.readouterr().out
  rows = [r for r in read_metrics(tmp_path) if r["split"] == "train"]
  skipped = {r["step"]: r["skipped"] for r in rows}
  assert skipped == {2: 0, 4: 1, 6: 3, 8: 3}
  for row in rows:
    # Of steps that were all skipped there is nothing to take a mean of.
    nothing_left = row["step"] == 6
    assert ("loss" in row) == (not nothing_left)
    assert np.isfinite(row.get("loss", 0)) and row["steps_per_second"] > 0
  assert np.isfinite(np.load(tmp_path / "exported.npy")).all()


@pytest.mark.parametrize("accumulate", long_but(1, [1, 2]))
def test_too_many_skipped_steps_in_a_row_name_their_range(tmp_path, accumulate):
  config = fake.config(max_skipped=2, checkpoint_every=5, accumulate=accumulate)
  task = fake.FakeTask(config, nan_at=(1, 3, 4, 5))
  with pytest.raises(
    NonFiniteError,
    match=r"from step 4 to 6 .* up to step 3\): 3 skipped in a row where"
    r" config.max_skipped = 2, 4 in all; checkpoint 5 is the last",
  ):
    train_and_evaluate(config, tmp_path, task=task)
  # What was saved amid them is what step 3 left, and goes on counting.
  healed = fake.FakeTask(config)
  assert train_and_evaluate(config, tmp_path, task=healed)["step"] == 8
  rows = {r["step"]: r for r in read_metrics(tmp_path) if r["split"] == "train"}
  assert rows[8]["skipped"] == 3 and np.isfinite(rows[6]["loss"])


@pytest.mark.long
def test_an_average_on_the_host_makes_the_same_run(unbroken, tmp_path, capsys):
  config = fake.config()
  config.optimizer.ema_on_host = True

  def stop(step):
    if step == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  kinds = []

  class Task(fake.FakeTask):
    def pictures(self, state):
      kinds.append(state.eval_params["head"]["kernel"].sharding.memory_kind)
      return super().pictures(state)

  config.sample_every = 2
  train_and_evaluate(config, tmp_path, task=Task(config, on_step=stop))
  train_and_evaluate(config, tmp_path, task=Task(config))
  assert losses(tmp_path) == losses(unbroken)
  # The average is a program of its own, and may round its last bit otherwise.
  heldout = losses(tmp_path, "heldout")
  assert heldout == pytest.approx(losses(unbroken, "heldout"), rel=1e-5)
  np.testing.assert_allclose(
    np.load(tmp_path / "exported.npy"),
    np.load(unbroken / "exported.npy"),
    rtol=1e-6,
  )
  assert kinds == ["device"] * 4
  assert (
    "ema_params (as the parameters, on the host)" in capsys.readouterr().out
  )
  inherited = fake.config(init_from=str(unbroken), num_steps=1)
  inherited.optimizer.ema_on_host = True
  start = tmp_path / "start"
  train_and_evaluate(inherited, start, task=fake.FakeTask(inherited))
  assert list(losses(start)) == [1]


def test_parts_that_do_not_divide_the_batch_are_refused(tmp_path):
  for accumulate, sentence in (
    (3, r"batch_size = 4 is not .* config.accumulate = 3 times the 1 parts"),
    (0, r"config.accumulate is a whole number from 1 on, got 0\."),
  ):
    with pytest.raises(ValueError, match=sentence):
      run(tmp_path, accumulate=accumulate)


def test_the_share_of_a_known_peak_is_logged(tmp_path, monkeypatch, unbroken):
  assert "mfu" not in read_metrics(unbroken)[-2]
  monkeypatch.setitem(chips._OTHERS, "cpu", 1e9)
  run(tmp_path, num_steps=2)
  row = next(r for r in read_metrics(tmp_path) if r["step"] == 2)
  # x @ kernel and the gradient of the kernel: 4 rows of 4 entries.
  assert row["mfu"] == pytest.approx(64 * row["steps_per_second"] / 1e9)


@pytest.mark.long
def test_a_profile_of_steps_lies_in_the_workdir(tmp_path, capsys):
  config = fake.config(num_steps=4)
  task = fake.FakeTask(config)
  train_and_evaluate(config, tmp_path, task=task, profile_steps="2:3")
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  out = capsys.readouterr().out
  assert f"Profile of steps 2 to 3: {tmp_path / 'profile'}" in out
  config.num_steps = 8
  with pytest.raises(ValueError, match=r"=4:6 begins with step 4.* step 4;"):
    train_and_evaluate(config, tmp_path, task=task, profile_steps="4:6")


@pytest.mark.parametrize("steps", ["3", "a:b", "0:2", "5:4", "5:9"])
def test_steps_that_cannot_be_profiled(steps, tmp_path):
  config = fake.config()
  with pytest.raises(ValueError, match=rf"from 1 to 8 .* got '{steps}'\."):
    train_and_evaluate(config, tmp_path, profile_steps=steps)


def test_init_from_takes_averaged_parameters_and_starts_at_step_zero(
  unbroken, tmp_path
):
  config = fake.config(init_from=str(unbroken), num_steps=1)
  # So small that the one step changes nothing.
  config.optimizer.learning_rate = 1e-20
  train_and_evaluate(config, tmp_path, task=fake.FakeTask(config))
  assert list(losses(tmp_path)) == [1]
  np.testing.assert_array_equal(
    np.load(tmp_path / "exported.npy"), np.load(unbroken / "exported.npy")
  )


def test_init_from_without_a_checkpoint_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"No checkpoint in .*nothing"):
    run(tmp_path / "run", init_from=str(tmp_path / "nothing"))


def test_checkpoint_of_another_model_is_refused(unbroken):
  config = fake.config()
  task = fake.FakeTask(config)
  task.width = 5
  with pytest.raises(
    ValueError, match=r"another configuration: model.width is 4 there and 5"
  ):
    train_and_evaluate(config, unbroken, task=task)


def test_two_runs_in_one_workdir_are_refused(tmp_path):
  config = fake.config()

  def second(step):
    if step == 1:
      with pytest.raises(ValueError, match="in use by another run"):
        run(tmp_path)

  task = fake.FakeTask(config, on_step=second)
  assert train_and_evaluate(config, tmp_path, task=task)["step"] == 8


def test_unwritable_workdir_is_refused_in_one_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"workdir .*file/run cannot be written"):
    run(tmp_path / "file" / "run")


def test_unknown_stage_names_the_known_ones():
  with pytest.raises(ValueError, match="transformer, refine, got 'fake'"):
    build_task(fake.config())


def test_pictures_are_saved_at_their_steps(tmp_path):
  run(tmp_path, sample_every=5)
  names = sorted(p.name for p in (tmp_path / "samples").iterdir())
  assert names == ["shade-0000005.png", "shade-0000008.png"]


def test_rows_of_a_process_are_neighbours(monkeypatch):
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  assert local_rows(mesh, 8) == slice(0, 8)

  class Apart:
    def addressable_devices_indices_map(self, shape):
      return {0: (slice(0, 2),), 1: (slice(4, 6),)}

  monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Apart())
  with pytest.raises(ValueError, match="rows of a batch that are not neighb"):
    local_rows(mesh, 8)
