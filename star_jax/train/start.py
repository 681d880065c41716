"""Where a run starts: its own checkpoint, another run, or drawn parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from star_jax.train import report
from star_jax.train.checkpoint import Checkpointer, load_params
from star_jax.train.global_arrays import fetch, place, state_shardings
from star_jax.train.grow import load_grown
from star_jax.train.optimizer import Optimizer
from star_jax.train.state import TrainState, create_state, init_state
from star_jax.train.task import BatchIterator, Task
from star_jax.train.tokenizer_start import inherit_tokenizer

# In a checkpoint beside the state: of the data, and of steps not yet logged.
POSITION = "position"
COLLECTED = "collected"


class Start(NamedTuple):
  """state: of the run. shardings: where it lies. collected: figures of steps
  that were in no row yet when its checkpoint was written."""

  state: TrainState
  shardings: TrainState
  collected: list[dict[str, Any]]


def start_run(
  config,
  task: Task,
  optimizer: Optimizer,
  checkpointer: Checkpointer,
  batches: BatchIterator,
  mesh: Mesh,
) -> Start:
  """The first that exists wins.

  1. The newest complete checkpoint in workdir: state and data position.
  2. The parameters of the run in config.init_from; step 0, fresh optimizer.
     With config.grow that run may have fewer scales. A tokenizer's may be a
     bundle.
  3. Parameters drawn from config.seed.

  Args:
    config: of the run.
    task, optimizer, checkpointer: of the run.
    batches: are put where the run is in its data.
    mesh: the devices.

  Raises:
    ValueError: see `state_shardings`; a checkpoint or a run that this one
      cannot go on from.
  """
  abstract = jax.eval_shape(
    lambda key: create_state(task, optimizer, key), jax.random.key(0)
  )
  shardings = state_shardings(abstract, mesh, config.optimizer.ema_on_host)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    shardings,
  )
  print(report.parameter_table(abstract.params), flush=True)
  print(report.memory_table(abstract, mesh), flush=True)
  restored = checkpointer.restore_latest(abstract)
  if restored is not None:
    state, data = restored
    if not {POSITION, COLLECTED} <= data.keys():
      raise ValueError(
        f"The checkpoints in {checkpointer.directory} are of an earlier"
        " version and hold no position in the data that this one can go on"
        " from; config.init_from takes their parameters into a new run."
      )
    batches.set_state(data[POSITION])
    where = checkpointer.directory.parent
    print(f"Restored step {int(state.step)} from {where}", flush=True)
    return Start(state, shardings, data[COLLECTED])
  state = init_state(task, optimizer, config.seed, shardings)
  if config.init_from:
    params = place(_inherited(config, task, state, abstract), shardings.params)
    averaged = state.ema_params is not None
    state = state.replace(
      params=params,
      ema_params=jax.tree.map(jax.numpy.copy, params) if averaged else None,
    )
    print(f"Parameters from {config.init_from}", flush=True)
    return Start(place(state, shardings), shardings, [])
  position = batches.get_state()
  state = place(task.start(state, batches), shardings)
  batches.set_state(position)
  return Start(state, shardings, [])


def _inherited(config, task: Task, state: TrainState, abstract: TrainState):
  """Parameters of the run in config.init_from, with more scales if asked."""
  if config.stage == "tokenizer":
    return inherit_tokenizer(
      config.init_from, task.vqvae_config, fetch(state.params), config.grow
    )
  if not config.grow:
    return load_params(config.init_from, abstract.params, task.identity())
  if config.stage != "transformer":
    raise ValueError(
      "config.grow is for the tokenizer and the transformer, config.stage is"
      f" {config.stage!r}."
    )
  fresh = fetch(state.params)
  grown = load_grown(
    config.init_from, task.star_config, fresh, config.grow, task.tokenizer
  )
  print(grown.describe(), flush=True)
  return grown.params
