"""One training step and one evaluation step: pure functions, no I/O."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from star_jax.sharding import (
  constrain_rows,
  constrain_tree,
  constrain_whole,
  use_mesh,
)
from star_jax.train.guard import ADVERSARY_NORM, SKIPPED, SKIPPED_IN_A_ROW
from star_jax.train.optimizer import Optimizer, update_ema
from star_jax.train.state import (
  Adversary,
  Players,
  Skipped,
  TrainState,
  of_players,
)

PyTree = Any
Metrics = dict[str, jax.Array]


@functools.partial(
  jax.jit,
  static_argnames=("loss_fn", "optimizer", "mesh", "accumulate"),
  donate_argnames="state",
)
def train_step(
  state: TrainState,
  frozen: PyTree,
  batch: PyTree,
  key: jax.Array,
  *,
  loss_fn,
  optimizer: Optimizer,
  mesh: Mesh | None = None,
  accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
  """One update, of the parameters and of their adversary if there is one; of
  nothing but the step and what is skipped where the loss or the norm of a
  gradient is not finite.

  Args:
    state: donated; of an average on the host see `split_average`.
    frozen: arrays that the loss reads and nobody trains.
    batch: one batch of arrays.
    key: the run's training key; the step draws from fold_in(key, state.step),
      so that a resumed run draws what an unbroken one would.
    loss_fn: (params, extra, frozen, batch, key, step) -> (loss, (metrics,
      extra)), see `task.Task.loss`; of a state with an adversary, whose
      parameters are one more argument, see `task.Task.init_adversary`.
    mesh: that the state lies on; None: one device.
    accumulate: parts of the batch that are looked at one after the other, each
      with draws of its own; gradient, metrics and `extra` are their means.

  Returns:
    The next state and the metrics of this step (before the update).
  """
  with use_mesh(mesh):
    step_key = jax.random.fold_in(key, state.step)
    found = _gradient(state, frozen, batch, step_key, loss_fn, accumulate)
    return _update(state, *found, optimizer)


def _gradient(
  state: TrainState,
  frozen: PyTree,
  batch: PyTree,
  key: jax.Array,
  loss_fn,
  accumulate: int,
) -> tuple[jax.Array, Players, Metrics, PyTree]:
  """Loss, its gradient, metrics and the next `extra` of a batch."""

  def one(batch, key):
    def objective(players):
      rest = (state.extra, frozen, batch, key, state.step)
      return of_players(loss_fn)(players, *rest)

    both = jax.value_and_grad(objective, has_aux=True)
    (loss, (metrics, extra)), grads = both(state.players)
    # Where the parameters lie: sums over devices then keep no more than a part.
    return loss, constrain_tree(grads), metrics, extra

  if accumulate == 1:
    return one(batch, key)
  parts = constrain_rows(
    jax.tree.map(lambda x: _dealt(x, accumulate), batch), axis=1
  )
  keys = jax.random.split(key, accumulate)
  first = jax.tree.map(lambda x: x[0], (parts, keys))
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.result_type(x.dtype, jnp.float32)),
    jax.eval_shape(one, *first),
  )

  def add(total, part):
    return jax.tree.map(jnp.add, total, one(*part)), None

  total, _ = jax.lax.scan(add, zeros, (parts, keys))
  loss, grads, metrics, extra = jax.tree.map(lambda x: x / accumulate, total)
  extra = jax.tree.map(lambda x, old: x.astype(old.dtype), extra, state.extra)
  return loss, grads, metrics, extra


def _dealt(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]; row i goes to part i mod parts.

  Rows then stay on their device, which has as many of each part.
  """
  return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def _update(
  state: TrainState,
  loss: jax.Array,
  grads: Players,
  metrics: Metrics,
  extra: PyTree,
  optimizer: Optimizer,
) -> tuple[TrainState, Metrics]:
  grad_norm = optax.global_norm(grads.params)
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  if state.adversary is not None:
    adversary_norm = optax.global_norm(grads.adversary)
    finite &= jnp.isfinite(adversary_norm)
    metrics = metrics | {
      ADVERSARY_NORM: adversary_norm,
      "adversary_learning_rate": optimizer.adversary.learning_rate(
        state.updates
      ),
    }
  params, opt_state = _moved(
    state.params, state.opt_state, grads.params, finite, optimizer
  )
  adversary = None
  if state.adversary is not None:
    adversary = Adversary(
      *_moved(
        state.adversary.params,
        state.adversary.opt_state,
        grads.adversary,
        finite,
        optimizer.adversary,
      )
    )
  skipped = Skipped(
    total=state.skipped.total + ~finite,
    in_a_row=jnp.where(finite, 0, state.skipped.in_a_row + 1),
  )
  metrics = metrics | {
    "grad_norm": grad_norm,
    "learning_rate": optimizer.learning_rate(state.updates),
    "weight_decay": optimizer.weight_decay(state.updates),
    SKIPPED: skipped.total,
    SKIPPED_IN_A_ROW: skipped.in_a_row,
  }
  next_state = constrain_tree(
    TrainState(
      step=state.step + 1,
      skipped=skipped,
      params=params,
      ema_params=None,
      opt_state=opt_state,
      extra=_if(finite, extra, state.extra),
      adversary=adversary,
    )
  )
  if state.ema_params is not None:
    ema_params = _average(
      state.ema_params, params, state.updates, finite, optimizer
    )
    next_state = next_state.replace(ema_params=ema_params)
  return next_state, constrain_whole(metrics)


def _moved(
  params: PyTree,
  opt_state: PyTree,
  grads: PyTree,
  finite: jax.Array,
  optimizer: Optimizer,
) -> tuple[PyTree, PyTree]:
  """Parameters and moments after the step, or as they were."""
  updates, new = optimizer.tx.update(grads, opt_state, params)
  moved = optax.apply_updates(params, updates)
  return _if(finite, moved, params), _if(finite, new, opt_state)


def _if(finite: jax.Array, new: PyTree, old: PyTree) -> PyTree:
  return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def _average(
  ema_params: PyTree,
  params: PyTree,
  updates: jax.Array,
  finite: jax.Array,
  optimizer: Optimizer,
) -> PyTree:
  """The moving average after a step; `updates` are those before it."""
  new = update_ema(ema_params, params, updates, optimizer.ema_decay)
  return constrain_tree(_if(finite, new, ema_params))


def split_average(
  state: TrainState, optimizer: Optimizer
) -> tuple[TrainState, PyTree]:
  """What `train_step` takes, and an average that it does not: on the host.

  Within the step, the compiler would fetch it while the activations are still
  there, and no memory would be saved.
  """
  if not optimizer.ema_on_host:
    return state, None
  return state.replace(ema_params=None), state.ema_params


def join_average(
  state: TrainState,
  ema_params: PyTree,
  optimizer: Optimizer,
  mesh: Mesh | None = None,
) -> TrainState:
  """After the step: the state with the next average.

  Args:
    state: that `train_step` returned.
    ema_params: what `split_average` took from the state before, donated.
    optimizer, mesh: as of `train_step`.
  """
  if ema_params is None:
    return state
  ema_params = _average_on_host(
    ema_params,
    state.params,
    state.step,
    state.skipped,
    optimizer=optimizer,
    mesh=mesh,
  )
  return state.replace(ema_params=ema_params)


@functools.partial(
  jax.jit,
  static_argnames=("optimizer", "mesh"),
  donate_argnames="ema_params",
)
def _average_on_host(
  ema_params: PyTree,
  params: PyTree,
  step: jax.Array,
  skipped: Skipped,
  *,
  optimizer: Optimizer,
  mesh: Mesh | None,
) -> PyTree:
  updates, finite = step - 1 - skipped.total, skipped.in_a_row == 0
  with use_mesh(mesh):
    here = jax.device_put(ema_params, jax.memory.Space.Device)
    new = _average(here, params, updates, finite, optimizer)
    return jax.device_put(new, jax.memory.Space.Host)


@functools.partial(jax.jit, static_argnames=("loss_fn", "mesh"))
def eval_step(
  params: PyTree,
  extra: PyTree,
  frozen: PyTree,
  batch: PyTree,
  key: jax.Array,
  *,
  loss_fn,
  mesh: Mesh | None = None,
) -> Metrics:
  """Metrics of one batch, nothing dropped, nothing donated."""
  with use_mesh(mesh):
    _, (metrics, _) = loss_fn(params, extra, frozen, batch, key, None)
    return constrain_whole(metrics)


def mean_metrics(collected: list[Metrics]) -> Metrics:
  """Mean over batches of equal size, on the host."""
  assert collected
  fetched = jax.device_get(collected)
  return jax.tree.map(
    lambda *leaves: (
      sum(jnp.asarray(x, jnp.float32) for x in leaves) / len(leaves)
    ),
    *fetched,
  )
