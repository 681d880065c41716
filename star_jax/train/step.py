"""One training step and one evaluation step: pure functions, no I/O."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from star_jax.sharding import constrain_tree, constrain_whole, use_mesh
from star_jax.train.optimizer import Optimizer, update_ema
from star_jax.train.state import TrainState

PyTree = Any
Metrics = dict[str, jax.Array]


@functools.partial(
  jax.jit,
  static_argnames=("loss_fn", "optimizer", "mesh"),
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
) -> tuple[TrainState, Metrics]:
  """One update.

  Args:
    state: donated.
    frozen: arrays that the loss reads and nobody trains.
    batch: one batch of arrays.
    key: the run's training key; the step draws from fold_in(key, state.step),
      so that a resumed run draws what an unbroken one would.
    loss_fn: (params, extra, frozen, batch, key, step) -> (loss, (metrics,
      extra)), see `task.Task.loss`.
    mesh: that the state lies on; None: one device.

  Returns:
    The next state and the metrics of this step (before the update).
  """
  with use_mesh(mesh):
    return _update(state, frozen, batch, key, loss_fn, optimizer)


def _update(
  state: TrainState,
  frozen: PyTree,
  batch: PyTree,
  key: jax.Array,
  loss_fn,
  optimizer: Optimizer,
) -> tuple[TrainState, Metrics]:
  step_key = jax.random.fold_in(key, state.step)

  def objective(params):
    return loss_fn(params, state.extra, frozen, batch, step_key, state.step)

  grads, (metrics, extra) = jax.grad(objective, has_aux=True)(state.params)
  # Where the parameters lie: sums over devices then keep no more than a part.
  grads = constrain_tree(grads)
  updates, opt_state = optimizer.tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = state.ema_params
  if ema_params is not None:
    ema_params = update_ema(ema_params, params, state.step, optimizer.ema_decay)
  metrics = metrics | {
    "grad_norm": optax.global_norm(grads),
    "learning_rate": optimizer.learning_rate(state.step),
    "weight_decay": optimizer.weight_decay(state.step),
  }
  next_state = TrainState(
    step=state.step + 1,
    params=params,
    ema_params=ema_params,
    opt_state=opt_state,
    extra=extra,
  )
  return constrain_tree(next_state), constrain_whole(metrics)


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
