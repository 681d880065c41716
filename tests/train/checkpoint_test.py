"""What can go wrong with checkpoints, and that the one before survives."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.train.checkpoint import Checkpointer, load_params
from star_jax.train.state import Skipped, TrainState

ROOT = Path(__file__).resolve().parents[2]
# What Orbax writes down of a checkpoint.
FACTS = "_CHECKPOINT_METADATA"
IDENTITY = {"stage": "fake", "model": {"schedule": (1, 2), "depth": 2}}


def state(value, size=3):
  kernel = jnp.full((size,), value, jnp.float32)
  return TrainState(
    step=jnp.int32(value),
    skipped=Skipped.none(),
    params={"layer": {"kernel": kernel}},
    ema_params={"layer": {"kernel": kernel / 2}},
    opt_state=(jnp.float32(value), {}),
    extra={},
  )


def checkpointer(workdir, identity=IDENTITY, **options):
  options = {"keep": 2, "keep_best": 0, "asynchronous": True} | options
  return Checkpointer(workdir, identity, **options)


def save(workdir, *values, **options):
  saver = checkpointer(workdir, **options)
  for value in values:
    saver.save(value, state(value), {"position": value})
  saver.close()


def restore(workdir, identity=IDENTITY):
  reader = checkpointer(workdir, identity)
  try:
    return reader.restore_latest(jax.eval_shape(lambda: state(0)))
  finally:
    reader.close()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_newest_comes_back_bitwise_and_old_ones_go(tmp_path, asynchronous):
  save(tmp_path, 1, 2, 3, asynchronous=asynchronous)
  restored, data = restore(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, restored, state(3))
  assert data == {"position": 3}
  kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert kept == ["2", "3"]


def test_saved_values_are_those_of_the_moment_of_saving(tmp_path):
  """The state is donated to the next step while the writer still runs."""
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  saver = checkpointer(tmp_path)
  current = state(1, size=1_000_000)
  saver.save(1, current, {})
  for _ in range(5):
    current = bump(current)
  saver.close()
  reader = checkpointer(tmp_path)
  restored, _ = reader.restore_latest(
    jax.eval_shape(lambda: state(0, size=1_000_000))
  )
  reader.close()
  assert (np.asarray(restored.params["layer"]["kernel"]) == 1).all()


def test_empty_workdir_restores_nothing(tmp_path):
  assert restore(tmp_path) is None


def test_half_written_checkpoint_is_ignored_and_reported(tmp_path, caplog):
  save(tmp_path, 1)
  directory = tmp_path / "checkpoints"
  half = directory / "2.orbax-checkpoint-tmp-0"
  shutil.copytree(directory / "1", half)
  restored, _ = restore(tmp_path)
  assert int(restored.step) == 1
  assert f"{half} is a half-written checkpoint" in caplog.text


def test_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
  tmp_path, caplog
):
  save(tmp_path, 1, 2)
  directory = tmp_path / "checkpoints"
  shutil.rmtree(directory / "2" / "state")
  restored, data = restore(tmp_path)
  assert int(restored.step) == 1 and data == {"position": 1}
  assert "is unreadable" in caplog.text
  assert (directory / "2.unreadable").is_dir()
  # The number is free again.
  save(tmp_path, 2)
  assert int(restore(tmp_path)[0].step) == 2


def test_the_best_stay_beside_the_newest(tmp_path):
  heldout = [None, 3.0, None, 2.0, 2.5, float("nan"), 2.75]
  kept = []
  for step, loss in enumerate(heldout, 1):
    # Opened anew each time: the figures come back from the checkpoints.
    saver = checkpointer(tmp_path, keep=1, keep_best=2)
    saver.save(step, state(step), {}, heldout=loss)
    saver.close()
    kept.append(sorted(int(p.name) for p in saver.directory.iterdir()))
  # 1 has no figure, 3 none either, 6 none that counts.
  assert kept == [[1], [2], [2, 3], [2, 4], [4, 5], [4, 5, 6], [4, 5, 7]]
  assert int(restore(tmp_path)[0].step) == 7


def test_damaged_figures_of_a_checkpoint_do_not_stop_a_run(tmp_path, caplog):
  save(tmp_path, 1, 2)
  directory = tmp_path / "checkpoints"
  (directory / "1" / "metrics" / "metrics").write_text("")
  assert int(restore(tmp_path)[0].step) == 2
  assert f"{directory / '1'} is unreadable" in caplog.text


def test_keeping_nothing_is_refused(tmp_path):
  for options in ({"keep": 0}, {"keep_best": -1}):
    with pytest.raises(ValueError, match="keep_checkpoints is at least 1"):
      checkpointer(tmp_path, **options)


def test_times_of_files_do_not_matter(tmp_path):
  """The newest is the one of the highest step, whatever a clock said."""
  save(tmp_path, 1, 2)
  directory = tmp_path / "checkpoints"
  for step, year in ((1, 2100), (2, 1990)):
    told = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp()
    facts = json.loads((directory / str(step) / FACTS).read_text())
    for name in ("init_timestamp_nsecs", "commit_timestamp_nsecs"):
      assert name in facts
      facts[name] = int(told * 1e9)
    (directory / str(step) / FACTS).write_text(json.dumps(facts))
    for path in [*(directory / str(step)).rglob("*"), directory / str(step)]:
      os.utime(path, (told, told))
  assert int(restore(tmp_path)[0].step) == 2
  save(tmp_path, 3)
  assert sorted(os.listdir(directory)) == ["2", "3"]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
  save(tmp_path, 1)
  other = {"stage": "fake", "model": {"schedule": (1, 3), "depth": 4}}
  with pytest.raises(
    ValueError,
    match=r"model.depth is 2 there and 4 here; model.schedule is \[1, 2\]",
  ):
    restore(tmp_path, other)


def test_load_params_prefers_the_average(tmp_path):
  save(tmp_path, 1, 2)
  abstract = jax.eval_shape(lambda: state(0)).params
  params = load_params(tmp_path, abstract, IDENTITY)
  np.testing.assert_array_equal(params["layer"]["kernel"], np.ones(3))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, asynchronous):
  """A limit on file size makes the writes fail, as a full disk does."""
  script = f"""
    import resource, signal, sys
    sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
    import numpy as np
    import checkpoint_test as t

    saver = t.checkpointer({str(tmp_path)!r}, asynchronous={asynchronous})
    saver.save(1, t.state(1), {{}})
    saver.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    noise = np.random.default_rng(0).standard_normal(1_000_000)
    full = t.state(2)
    full = full.replace(params={{"layer": {{"kernel": t.jnp.array(noise)}}}})
    try:
      saver.save(2, full, {{}})
      saver.wait()
    except OSError as error:
      print(error)
    else:
      print("no error")
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    capture_output=True,
    text=True,
  )
  (line,) = done.stdout.splitlines() or [done.stderr[-2000:]]
  assert line.startswith("Checkpoint 2 could not be written to"), line
  assert line.endswith("(File too large); checkpoint 1 there is intact."), line
  assert int(restore(tmp_path)[0].step) == 1
