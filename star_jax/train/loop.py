"""The training loop of both stages: builds the pieces, runs, saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

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
  on_devices,
  place,
  place_batch,
  place_by_rules,
  state_shardings,
)
from star_jax.train.grow import load_grown
from star_jax.train.logging import RunLog, format_seconds
from star_jax.train.optimizer import build_optimizer
from star_jax.train.profile import Profiler
from star_jax.train.state import (
  EVAL_STREAM,
  TRAIN_STREAM,
  TrainState,
  create_state,
  init_state,
  stream_key,
)
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

  Returns:
    Summary: "step" reached, "stopped" (the signal's name or None), "exported"
    (path or None).
  """
  others = [read_curves(path) for path in compare_to]
  profiler = Profiler(profile_steps, config.num_steps, Path(workdir))
  with Workdir(workdir) as path, StopSignals() as signals:
    task = task or build_task(config)
    summary = _Run(config, path, task, profiler).run(signals)
    write_curves(path, path.name)
    if others:
      runs = [run_curves(path, path.name), *others]
      print(f"Curves: {draw_curves(runs, path / FIGURE_FILE)}", flush=True)
    return summary


class _Run:
  """One call of `train_and_evaluate`."""

  def __init__(self, config, workdir: Path, task: Task, profiler: Profiler):
    self.config = config
    self.workdir = workdir
    self.task = task
    self.profiler = profiler
    self.mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(self.mesh, config.batch_size, config.accumulate)
    self.optimizer = build_optimizer(config.optimizer, config.num_steps)
    self.key = stream_key(config.seed, TRAIN_STREAM)
    self.checkpointer = Checkpointer(
      workdir,
      task.identity(),
      keep=config.keep_checkpoints,
      asynchronous=config.async_checkpoints,
    )
    self.loss_fn: LossFn | None = None
    self.programs: dict[Any, report.CompiledStep] = {}

  def run(self, signals: StopSignals) -> dict[str, Any]:
    config = self.config
    batches = PlacedBatches(
      self.task.train_batches(), self.mesh, config.batch_size
    )
    self.frozen = place_by_rules(self.task.frozen, self.mesh)
    self.state = self._initial_state(batches)
    self.step = int(self.state.step)
    self.profiler.check_start(self.step)
    self.log = RunLog(self.workdir, self.step)
    first_step = self.step
    try:
      if self.step < config.num_steps:
        self._train(batches, signals)
      # A run that was stopped before its first step has nothing to save.
      if self.step > first_step:
        self._save(batches)
      self.checkpointer.wait()
    finally:
      self.profiler.close()
      self.log.close()
      self.checkpointer.close()
    exported = None
    if self.step >= config.num_steps:
      # Moments are not exported, and take most of the room.
      state = fetch(self._readable_state().replace(opt_state=()))
      exported = self.task.export(state, self.workdir)
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
    self.shardings = state_shardings(
      abstract, self.mesh, config.optimizer.ema_on_host
    )
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      self.shardings,
    )
    print(report.parameter_table(abstract.params), flush=True)
    print(report.memory_table(abstract, self.mesh), flush=True)
    restored = self.checkpointer.restore_latest(abstract)
    if restored is not None:
      state, data_state = restored
      batches.set_state(data_state)
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
      return place(state, self.shardings)
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

  def _readable_state(self) -> TrainState:
    """As tasks read it."""
    on_host = self.optimizer.ema_on_host
    return on_devices(self.state) if on_host else self.state

  def _train(self, batches: BatchIterator, signals: StopSignals) -> None:
    config = self.config
    if self.step == 0 and config.eval_every:
      # What a run starts from: of one that inherits, what it was given.
      self._evaluate()
    batch = next(batches)
    self.steps = StepLog(
      config, self.step, self.log, self.mesh, self.checkpointer.steps
    )
    while self.step < config.num_steps and not signals.requested:
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

  def _between_steps(self, batches: BatchIterator) -> None:
    """Evaluation, pictures and checkpoints, not counted as training time."""
    config = self.config
    last = self.step == config.num_steps
    evaluate = self._due(config.eval_every) or (last and config.eval_every)
    sample = self._due(config.sample_every) or (last and config.sample_every)
    save = self._due(config.checkpoint_every)
    if not (evaluate or sample or save):
      return
    # A state whose loss has not been looked at is never saved.
    self.steps.read()
    jax.block_until_ready(self.state.step)
    start = time.perf_counter()
    if save:
      self._save(batches)
    if evaluate:
      self._evaluate()
    if sample:
      pictures = self.task.pictures(self._readable_state())
      for name, picture in pictures.items():
        self.log.picture(self.step, name, picture)
    self.steps.pause(time.perf_counter() - start)

  def _evaluate(self) -> None:
    start = time.perf_counter()
    key = stream_key(self.config.seed, EVAL_STREAM)
    params = self._readable_state().eval_params
    collected = [
      eval_step(
        params,
        self.state.extra,
        self.frozen,
        place_batch(batch, self.mesh, self.config.batch_size),
        jax.random.fold_in(key, i),
        loss_fn=self.task.loss,
        mesh=self.mesh,
      )
      for i, batch in enumerate(self.task.eval_batches())
    ]
    if not collected:
      return
    metrics = mean_metrics(collected)
    self.log.scalars(self.step, "heldout", metrics)
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

  def _save(self, batches: BatchIterator) -> None:
    if self.step not in self.checkpointer.steps():
      # Logged means never reach across a checkpoint, so that a resumed run
      # writes the rows of an unbroken one.
      self.steps.write(self.step)
      self.checkpointer.save(self.step, self.state, batches.get_state())
