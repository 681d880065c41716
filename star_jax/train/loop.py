"""The training loop of both stages: builds the pieces, runs, saves."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from star_jax import sharding
from star_jax.train import report
from star_jax.train.checkpoint import Checkpointer, load_params
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
  place,
  place_by_rules,
  place_key,
  place_whole_batch,
)
from star_jax.train.grow import load_grown
from star_jax.train.logging import (
  Progress,
  RunLog,
  SilentLog,
  format_seconds,
)
from star_jax.train.optimizer import build_optimizer
from star_jax.train.state import (
  EVAL_STREAM,
  TRAIN_STREAM,
  TrainState,
  create_state,
  init_state,
)
from star_jax.train.step import eval_step, mean_metrics, train_step
from star_jax.train.task import Batch, BatchIterator, LossFn, Task
from star_jax.train.workdir import StopSignals, Workdir

STAGES = ("tokenizer", "transformer", "refine")
# Among the collected metrics: of the step's program.
FLOPS = "flops"
# In a checkpoint beside the state: of the data, and of steps not yet logged.
POSITION = "position"
COLLECTED = "collected"
# Split of the figures of an evaluation.
HELDOUT = "heldout"


class NonFiniteError(ValueError):
  """The loss is nan or infinite."""


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

  Of several processes (star_jax/distributed.py) all call this with the same
  arguments; the first alone prints, logs and exports.

  Returns:
    Summary: "step" reached, "stopped" (the signal's name or None), "exported"
    (path or None).
  """
  others = [read_curves(path) for path in compare_to]
  with Workdir(workdir) as path, StopSignals() as signals, _one_voice():
    task = task or build_task(config)
    summary = _Run(config, path, task, signals).run()
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

  def __init__(self, config, workdir: Path, task: Task, signals: StopSignals):
    self.config = config
    self.signals = signals
    self.workdir = workdir
    self.task = task
    self.mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(self.mesh, config.batch_size)
    task.check_mesh(self.mesh)
    self.optimizer = build_optimizer(config.optimizer, config.num_steps)
    self.key = place_key(config.seed, TRAIN_STREAM, self.mesh)
    self.checkpointer = Checkpointer(
      workdir,
      task.identity(),
      keep=config.keep_checkpoints,
      keep_best=config.keep_best,
      asynchronous=config.async_checkpoints,
    )
    self.pending: tuple[int, Any, int] | None = None
    self.collected: list[Any] = []
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
    self.state = self._initial_state(batches)
    self.step = int(self.state.step)
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
      self.log.close()
      self.checkpointer.close()
    exported = None
    if self.step >= config.num_steps and not self.owing:
      # Moments are not exported, and take most of the room.
      state = fetch(self.state.replace(opt_state=()))
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

  def _initial_state(self, batches: BatchIterator) -> TrainState:
    """Where a run starts; the first that exists wins.

    1. The newest complete checkpoint in workdir: state and data position.
    2. The parameters of the run in config.init_from; step 0, fresh optimizer.
       With config.grow that run may have fewer scales.
    3. Parameters drawn from config.seed.
    """
    config, task = self.config, self.task
    abstract = jax.eval_shape(
      lambda key: create_state(task, self.optimizer, key), jax.random.key(0)
    )
    self.shardings = sharding.shardings_of(abstract, self.mesh)
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      self.shardings,
    )
    print(report.parameter_table(abstract.params), flush=True)
    print(report.memory_table(abstract, self.mesh), flush=True)
    restored = self.checkpointer.restore_latest(abstract)
    if restored is not None:
      state, data = restored
      if not {POSITION, COLLECTED} <= data.keys():
        raise ValueError(
          f"The checkpoints in {self.checkpointer.directory} are of an earlier"
          " version and hold no position in the data that this one can go on"
          " from; config.init_from takes their parameters into a new run."
        )
      batches.set_state(data[POSITION])
      self.collected = [
        {name: np.asarray(value) for name, value in metrics.items()}
        for metrics in data[COLLECTED]
      ]
      self.loss_fn = task.loss_at(int(state.step) - 1)
      print(f"Restored step {int(state.step)} from {self.workdir}", flush=True)
      return state
    state = init_state(task, self.optimizer, config.seed, self.shardings)
    if config.init_from:
      params = self._inherited(state, abstract)
      params = place(params, self.shardings.params)
      averaged = state.ema_params is not None
      state = state.replace(
        params=params,
        ema_params=jax.tree.map(jax.numpy.copy, params) if averaged else None,
      )
      print(f"Parameters from {config.init_from}", flush=True)
      return state
    position = batches.get_state()
    state = place(task.start(state, batches), self.shardings)
    batches.set_state(position)
    return state

  def _inherited(self, state: TrainState, abstract: TrainState):
    """Parameters of the run in config.init_from, with more scales if asked."""
    config, task = self.config, self.task
    if not config.grow:
      return load_params(config.init_from, abstract.params, task.identity())
    if config.stage != "transformer":
      raise ValueError(
        f"config.grow is for the transformer, config.stage is {config.stage!r}."
      )
    fresh = fetch(state.params)
    grown = load_grown(
      config.init_from, task.star_config, fresh, config.grow, task.tokenizer
    )
    print(grown.describe(), flush=True)
    return grown.params

  def _catch_up(self) -> None:
    """What a stop kept from being measured or drawn at the restored step."""
    evaluate, sample, _ = self._due_now()
    if evaluate and not first_says(self.log.has_scalars(self.step, HELDOUT)):
      self._evaluate()
    if sample and not first_says(self.log.has_pictures(self.step)):
      self._draw()

  def _train(self, batches: BatchIterator) -> None:
    config, signals = self.config, self.signals
    if self.step == 0 and config.eval_every:
      # What a run starts from: of one that inherits, what it was given.
      self._evaluate()
    batch = next(batches)
    self.progress = Progress(self.step, config.num_steps, config.batch_size)
    while self.step < config.num_steps and not signals.stop_before(self.step):
      batch = next(batches) if batch is None else batch
      self._compile(self.task.loss_at(self.step), batch)
      self.state, metrics = self.compiled.call(
        self.state, self.frozen, batch, self.key
      )
      self.step += 1
      self._read_pending()
      self.pending = (self.step, metrics, self.compiled.flops)
      if self._due(self.task.maintain_every):
        state = self.task.maintain(self.state, batch, self.key)
        self.state = place(state, self.shardings)
      batch = None
      self._between_steps(batches)
    self._read_pending()

  def _compile(self, loss_fn: LossFn, batch: Batch) -> None:
    """The program of the next step; batches of each shape have their own."""
    if loss_fn != self.loss_fn:
      # Logged means never reach across: another loss has other figures.
      self._read_pending()
      if self.collected:
        self._log_train(self.step)
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
      self.state,
      self.frozen,
      batch,
      self.key,
      loss_fn=loss_fn,
      optimizer=self.optimizer,
      mesh=self.mesh,
    )
    self.programs[shape] = self.compiled
    print(self.compiled.describe(self.config.batch_size), flush=True)
    self.progress.pause(time.perf_counter() - start)

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
    self._read_pending()
    jax.block_until_ready(self.state.step)
    start = time.perf_counter()
    # The checkpoint has the held-out loss; pictures can be drawn after a stop.
    if evaluate:
      self._evaluate()
    if save:
      self._save(batches)
    if sample:
      self._draw()
    self.progress.pause(time.perf_counter() - start)

  def _read_pending(self) -> None:
    """Fetches the metrics of the step before the one now running.

    One step late, so that the device always has work queued.
    """
    if self.pending is None:
      return
    (step, metrics, flops), self.pending = self.pending, None
    metrics = jax.device_get(metrics)
    if not math.isfinite(float(metrics["loss"])):
      steps = self.checkpointer.steps()
      kept = f"checkpoint {steps[-1]}" if steps else "no checkpoint"
      raise NonFiniteError(
        f"The loss became {float(metrics['loss'])} at step {step} (it was"
        f" finite up to step {step - 1}); {kept} is the last saved state. A"
        " lower optimizer.learning_rate or clip_norm may help."
      )
    self.collected.append(metrics | {FLOPS: flops})
    if step % self.config.log_every == 0 or step == self.config.num_steps:
      self._log_train(step)

  def _log_train(self, step: int) -> None:
    means = jax.tree.map(
      lambda *x: np.mean(np.asarray(x, np.float64), axis=0), *self.collected
    )
    self.collected = []
    rates = self.progress.rates(step)
    flops_per_second = means.pop(FLOPS) * rates["steps_per_second"]
    rates["gflops_per_second"] = flops_per_second / 1e9
    rates["peak_memory_gib"] = report.peak_memory_bytes() / 2**30
    metrics = means | rates
    self.log.scalars(step, "train", metrics)
    print(self.progress.line(step, metrics), flush=True)

  def _evaluate(self) -> None:
    """Measures the state; a signal leaves that to the restart."""
    start = time.perf_counter()
    key = place_key(self.config.seed, EVAL_STREAM, self.mesh)
    collected = []
    for i, batch in enumerate(self.task.eval_batches()):
      if self.signals.requested:
        self.owing = True
        return
      collected.append(
        eval_step(
          self.state.eval_params,
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
    for name, picture in self.task.pictures(self.state).items():
      self.log.picture(self.step, name, picture)

  def _save(self, batches: BatchIterator) -> None:
    if self.step in self.checkpointer.steps():
      return
    # With the figures that wait for their row of means, so that a resumed run
    # writes the rows of an unbroken one.
    collected = jax.tree.map(lambda x: np.asarray(x).tolist(), self.collected)
    step, loss = self.heldout or (None, None)
    self.checkpointer.save(
      self.step,
      self.state,
      {POSITION: batches.get_state(), COLLECTED: collected},
      heldout=loss if step == self.step else None,
    )
