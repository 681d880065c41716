"""The figures of training steps, from the device to the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from star_jax.train import report
from star_jax.train.alarms import Alarms
from star_jax.train.guard import check_skipped, mean_of_steps
from star_jax.train.logging import Progress, RunLog


class StepLog:
  """Reads the metrics of each step once the next one runs, so that the device
  always has work queued, and writes their means.

  Args:
    config: of the run.
    first_step: that the run starts or goes on from.
    log: where rows go.
    mesh: the devices.
    checkpoints: gives the steps of the saved ones.
    waiting: what `waiting` said when the checkpoint was written.

  Raises:
    ValueError: config.alarms has something else than bands.
  """

  def __init__(
    self,
    config,
    first_step: int,
    log: RunLog,
    mesh: Mesh,
    checkpoints: Callable[[], Sequence[int]],
    waiting: Sequence[dict[str, Any]] = (),
  ):
    self._alarms = Alarms(config.alarms, config.alarm_patience)
    self._config, self._log, self._mesh = config, log, mesh
    self._checkpoints = checkpoints
    self._pending: tuple[int, Any, report.CompiledStep] | None = None
    self._collected: list[tuple[Any, report.Work]] = [
      (
        {name: np.asarray(value) for name, value in step["metrics"].items()},
        report.Work(**step["work"]),
      )
      for step in waiting
    ]
    self._progress = Progress(first_step, config.num_steps, config.batch_size)

  def pause(self, seconds: float) -> None:
    """These seconds were not training."""
    self._progress.pause(seconds)

  def add(self, step: int, metrics: Any, program: report.CompiledStep) -> None:
    """A step that was started; those before have been read."""
    assert self._pending is None
    self._pending = (step, metrics, program)

  def read(self) -> None:
    """Waits for the step that was added last; a row where one is due.

    Raises:
      NonFiniteError: too many steps without a finite loss.
    """
    if self._pending is None:
      return
    (step, metrics, program), self._pending = self._pending, None
    metrics = jax.device_get(metrics)
    check_skipped(step, metrics, self._config.max_skipped, self._checkpoints())
    work = report.Work(program.flops, program.model_flops)
    self._collected.append((metrics, work))
    if step % self._config.log_every == 0 or step == self._config.num_steps:
      self.write(step)

  def waiting(self) -> list[dict[str, Any]]:
    """The steps that were read and are in no row yet, as JSON has them: a run
    that goes on from here writes the rows of an unbroken one."""
    return [
      {
        "metrics": jax.tree.map(lambda x: np.asarray(x).tolist(), metrics),
        "work": work._asdict(),
      }
      for metrics, work in self._collected
    ]

  def write(self, step: int) -> None:
    """A row of the means over the steps since the last one, if any."""
    if not self._collected:
      return
    metrics, work = zip(*self._collected)
    self._collected = []
    rates = self._progress.rates(step)
    rates |= report.speeds(work, rates["steps_per_second"], self._mesh)
    rates["peak_memory_gib"] = report.peak_memory_bytes() / 2**30
    row = mean_of_steps(metrics) | rates
    self._log.scalars(step, "train", row)
    print(self._progress.line(step, row), flush=True)
    for line in self._alarms.lines(step, row):
      print(line, flush=True)
