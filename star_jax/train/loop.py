"""The training loop of both stages: builds the pieces, runs, saves."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from star_jax import sharding
from star_jax.train import report
from star_jax.train.checkpoint import Checkpointer
from star_jax.train.curves import (
  FIGURE_FILE,
  draw_curves,
  read_curves,
  run_curves,
  write_curves,
)
from star_jax.train.global_arrays import (
  PlacedBatches,
  fetch,
  first_says,
  local_rows,
  on_devices,
  place,
  place_by_rules,
  place_key,
  place_whole_batch,
)
from star_jax.train.logging import RunLog, SilentLog, format_seconds
from star_jax.train.optimizer import run_optimizer
from star_jax.train.profile import Profiler
from star_jax.train.start import COLLECTED, POSITION, start_run
from star_jax.train.state import EVAL_STREAM, TRAIN_STREAM, TrainState
from star_jax.train.step import (
  eval_step,
  join_average,
  mean_metrics,
  split_average,
  train_step,
)
from star_jax.train.step_log import StepLog
from star_jax.train.task import Batch, BatchIterator, LossFn, Task
from star_jax.train.workdir import StopSignals, Workdir

STAGES = ("tokenizer", "transformer", "refine")
# Split of the figures of an evaluation.
HELDOUT = "heldout"


def build_task(config) -> Task:
  """The task that `config.stage` names."""
  # Imported here: a tokenizer run needs neither text encoder nor sampler.
  if config.stage == "tokenizer":
    from star_jax.train.tokenizer_task import TokenizerTask

    return TokenizerTask(config)
  if config.stage == "transformer":
    from star_jax.train.transformer_task import TransformerTask

    return TransformerTask(config)
  if config.stage == "refine":
    from star_jax.train.refine_task import RefineTask

    return RefineTask(config)
  raise ValueError(
    f"config.stage is one of {', '.join(STAGES)}, got {config.stage!r}."
  )


def train_and_evaluate(
  config,
  workdir: str | Path,
  *,
  task: Task | None = None,
  compare_to: Sequence[str] = (),
  profile_steps: str = "",
) -> dict[str, Any]:
  """Trains until `config.num_steps` or until a signal asks to stop.

  Args:
    config: see configs/common.py.
    workdir: receives checkpoints/, metrics.jsonl, tensorboard/, samples/ and,
      at the end, the exported model. A run that finds its own checkpoints
      there goes on from the newest.
    task: instead of the one that config.stage names (tests).
    compare_to: curves.json files of other runs, drawn together with this
      run's into curves.png.
    profile_steps: "10:15" traces these steps, see `profile.Profiler`.

  Of several processes (star_jax/distributed.py) all call this with the same
  arguments; the first alone prints, logs and exports.

  Returns:
    Summary: "step" reached, "stopped" (the signal's name or None), "exported"
    (path or None).
  """
  others = [read_curves(path) for path in compare_to]
  profiler = Profiler(profile_steps, config.num_steps, Path(workdir))
  with Workdir(workdir) as path, StopSignals() as signals, _one_voice():
    task = task or build_task(config)
    summary = _Run(config, path, task, signals, profiler).run()
    if jax.process_index():
      return summary
    write_curves(path, path.name)
    if others:
      runs = [run_curves(path, path.name), *others]
      print(f"Curves: {draw_curves(runs, path / FIGURE_FILE)}", flush=True)
    return summary


def _one_voice():
  """Context in which the first of several processes alone prints."""
  if not jax.process_index():
    return contextlib.nullcontext()
  return contextlib.redirect_stdout(io.StringIO())


class _Run:
  """One call of `train_and_evaluate`."""

  def __init__(
    self,
    config,
    workdir: Path,
    task: Task,
    signals: StopSignals,
    profiler: Profiler,
  ):
    self.config = config
    self.signals = signals
    self.workdir = workdir
    self.task = task
    self.profiler = profiler
    self.mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(self.mesh, config.batch_size, config.accumulate)
    if how := task.check_mesh(self.mesh):
      print(how, flush=True)
    self.optimizer = run_optimizer(config, task.width_ratio)
    self.key = place_key(config.seed, TRAIN_STREAM, self.mesh)
    self.checkpointer = Checkpointer(
      workdir,
      task.identity(),
      keep=config.keep_checkpoints,
      keep_best=config.keep_best,
      asynchronous=config.async_checkpoints,
    )
    self.heldout: tuple[int, float] | None = None
    # Whether a signal kept the last step from being measured or drawn.
    self.owing = False
    self.loss_fn: LossFn | None = None
    self.programs: dict[Any, report.CompiledStep] = {}

  def run(self) -> dict[str, Any]:
    config, signals = self.config, self.signals
    rows = local_rows(self.mesh, config.batch_size)
    batches = PlacedBatches(
      self.task.train_batches(rows), self.mesh, config.batch_size
    )
    self.frozen = place_by_rules(self.task.frozen, self.mesh)
    self.state, self.shardings, self.collected = start_run(
      config,
      self.task,
      self.optimizer,
      self.checkpointer,
      batches,
      self.mesh,
    )
    self.step = int(self.state.step)
    if self.step:
      self.loss_fn = self.task.loss_at(self.step - 1)
    self.profiler.check_start(self.step)
    self.log = (
      SilentLog() if jax.process_index() else RunLog(self.workdir, self.step)
    )
    first_step = self.step
    try:
      if self.step:
        self._catch_up()
      if self.step < config.num_steps:
        self._train(batches)
      # A run that was stopped before its first step has nothing to save.
      if self.step > first_step:
        self._save(batches)
      self.checkpointer.wait()
    finally:
      self.profiler.close()
      self.log.close()
      self.checkpointer.close()
    exported = None
    if self.step >= config.num_steps and not self.owing:
      # Moments are not exported, and take most of the room.
      state = fetch(self._readable_state().replace(opt_state=()))
      if not jax.process_index():
        exported = self.task.export(state, self.workdir)
      multihost_utils.sync_global_devices("exported")
      print(f"Finished {self.step} steps; the model is in {exported}.")
    elif self.step > 0:
      print(
        f"Stopped by {signals.requested} at step {self.step}; the state is"
        f" saved in {self.checkpointer.directory}, the same command goes on"
        " from there.",
        flush=True,
      )
    else:
      print(f"Stopped by {signals.requested} before the first step.")
    return {
      "step": self.step,
      "stopped": signals.requested,
      "exported": exported,
    }

  def _catch_up(self) -> None:
    """What a stop kept from being measured or drawn at the restored step."""
    evaluate, sample, _ = self._due_now()
    if evaluate and not first_says(self.log.has_scalars(self.step, HELDOUT)):
      self._evaluate()
    if sample and not first_says(self.log.has_pictures(self.step)):
      self._draw()

  def _readable_state(self) -> TrainState:
    """As tasks read it."""
    on_host = self.optimizer.ema_on_host
    return on_devices(self.state) if on_host else self.state

  def _train(self, batches: BatchIterator) -> None:
    config, signals = self.config, self.signals
    if self.step == 0 and config.eval_every:
      # What a run starts from: of one that inherits, what it was given.
      self._evaluate()
    batch = next(batches)
    self.steps = StepLog(
      config,
      self.step,
      self.log,
      self.mesh,
      self.checkpointer.steps,
      self.collected,
    )
    while self.step < config.num_steps and not signals.stop_before(self.step):
      batch = next(batches) if batch is None else batch
      self._compile(self.task.loss_at(self.step), batch)
      with self.profiler.before(self.step + 1, self.state):
        state, averaged = split_average(self.state, self.optimizer)
        state, metrics = self.compiled.call(state, self.frozen, batch, self.key)
        self.state = join_average(state, averaged, self.optimizer, self.mesh)
      self.step += 1
      self.steps.pause(self.profiler.after(self.step, self.state))
      self.steps.read()
      self.steps.add(self.step, metrics, self.compiled)
      if self._due(self.task.maintain_every):
        state = self.task.maintain(self._readable_state(), batch, self.key)
        self.state = place(state, self.shardings)
      batch = None
      self._between_steps(batches)
    self.steps.read()

  def _compile(self, loss_fn: LossFn, batch: Batch) -> None:
    """The program of the next step; batches of each shape have their own."""
    if loss_fn != self.loss_fn:
      # Logged means never reach across: another loss has other figures.
      self.steps.read()
      self.steps.write(self.step)
      self.programs = {}
    self.loss_fn = loss_fn
    # What is static in a batch is part of its structure.
    shape = jax.tree.structure(batch)
    if shape in self.programs:
      self.compiled = self.programs[shape]
      return
    start = time.perf_counter()
    self.compiled = report.compile_step(
      train_step,
      split_average(self.state, self.optimizer)[0],
      self.frozen,
      batch,
      self.key,
      loss_fn=loss_fn,
      optimizer=self.optimizer,
      mesh=self.mesh,
      accumulate=self.config.accumulate,
    )
    self.programs[shape] = self.compiled
    print(self.compiled.describe(self.config.batch_size), flush=True)
    self.steps.pause(time.perf_counter() - start)

  def _due(self, every: int) -> bool:
    return bool(every) and self.step % every == 0

  def _due_now(self) -> tuple[bool, bool, bool]:
    """Whether evaluation, pictures and a checkpoint are due after a step."""
    config = self.config
    last = self.step == config.num_steps
    return (
      self._due(config.eval_every) or (last and config.eval_every > 0),
      self._due(config.sample_every) or (last and config.sample_every > 0),
      self._due(config.checkpoint_every) or last,
    )

  def _between_steps(self, batches: BatchIterator) -> None:
    """Evaluation, pictures and checkpoints, not counted as training time."""
    evaluate, sample, save = self._due_now()
    if not (evaluate or sample or save):
      return
    # A state whose loss has not been looked at is never saved.
    self.steps.read()
    jax.block_until_ready(self.state.step)
    start = time.perf_counter()
    # The checkpoint has the held-out loss; pictures can be drawn after a stop.
    if evaluate:
      self._evaluate()
    if save:
      self._save(batches)
    if sample:
      self._draw()
    self.steps.pause(time.perf_counter() - start)

  def _evaluate(self) -> None:
    """Measures the state; a signal leaves that to the restart."""
    start = time.perf_counter()
    key = place_key(self.config.seed, EVAL_STREAM, self.mesh)
    params = self._readable_state().eval_params
    collected = []
    for i, batch in enumerate(self.task.eval_batches()):
      if self.signals.requested:
        self.owing = True
        return
      collected.append(
        eval_step(
          params,
          self.state.extra,
          self.frozen,
          place_whole_batch(batch, self.mesh),
          jax.random.fold_in(key, i),
          loss_fn=self.task.loss,
          mesh=self.mesh,
        )
      )
    if not collected:
      return
    metrics = mean_metrics(collected)
    self.heldout = self.step, float(metrics["loss"])
    self.log.scalars(self.step, HELDOUT, metrics)
    shown = " ".join(
      f"{name} {float(value):.4g}"
      for name, value in metrics.items()
      if np.ndim(value) == 0
    )
    print(
      f"held out at step {self.step}: {shown}"
      f" ({format_seconds(time.perf_counter() - start)})",
      flush=True,
    )

  def _draw(self) -> None:
    """Sample sheets; a signal leaves them to the restart."""
    if self.signals.requested:
      self.owing = True
      return
    pictures = self.task.pictures(self._readable_state())
    for name, picture in pictures.items():
      self.log.picture(self.step, name, picture)

  def _save(self, batches: BatchIterator) -> None:
    if self.step in self.checkpointer.steps():
      return
    step, loss = self.heldout or (None, None)
    self.checkpointer.save(
      self.step,
      self.state,
      {POSITION: batches.get_state(), COLLECTED: self.steps.waiting()},
      heldout=loss if step == self.step else None,
    )
