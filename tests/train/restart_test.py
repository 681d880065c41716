"""Both real tasks, stopped in the middle, repeat an unbroken run bitwise."""

import os
import signal

import pytest

from star_jax.train.logging import read_metrics
from star_jax.train.loop import build_task, train_and_evaluate
from tests.train import tokenizer_task_test, transformer_task_test

STOP_AFTER = 3


def configs():
  tokenizer = tokenizer_task_test.config()
  # Dead codes are replaced before, at and after the stop.
  tokenizer.codebook.update(revive_every=1, revive_below=0.5)
  transformer = transformer_task_test.config(cond_drop_rate=0.3)
  transformer.sampling.prompts = ()
  for config in (tokenizer, transformer):
    config.update(num_steps=6, log_every=1, eval_every=3, sample_every=0)
    config.checkpoint_every = 100
    yield config


class Stopping:
  """A task that asks the run to stop after its third step."""

  def __init__(self, task):
    self._task = task
    self.maintain_every = 1

  def __getattr__(self, name):
    return getattr(self._task, name)

  def maintain(self, state, batch, key):
    if int(state.step) == STOP_AFTER:
      os.kill(os.getpid(), signal.SIGTERM)
    return self._task.maintain(state, batch, key)


@pytest.mark.long
@pytest.mark.parametrize("config", configs(), ids=["tokenizer", "transformer"])
def test_restart_is_exact(config, tmp_path):
  rows = []
  for name, stops in (("unbroken", (False,)), ("broken", (True, False))):
    for stop in stops:
      task = build_task(config)
      task = Stopping(task) if stop else task
      summary = train_and_evaluate(config, tmp_path / name, task=task)
      assert summary["step"] == (STOP_AFTER if stop else 6)
    rows.append(
      [
        (row["split"], row["step"], row["loss"])
        for row in read_metrics(tmp_path / name)
      ]
    )
  assert rows[0] == rows[1]
  assert len(rows[0]) == 6 + 3
