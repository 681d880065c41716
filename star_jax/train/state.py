"""What a training run carries from step to step, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

PyTree = Any


@flax.struct.dataclass
class Skipped:
  """Steps that changed nothing, since their loss or gradient was not finite.

  total: int32 scalar, all of them.
  in_a_row: int32 scalar, the newest ones.
  """

  total: jax.Array
  in_a_row: jax.Array

  @classmethod
  def none(cls) -> Skipped:
    # Two arrays: donated buffers are distinct.
    return cls(*(jnp.zeros((), jnp.int32) for _ in range(2)))


@flax.struct.dataclass
class Adversary:
  """What is trained against the parameters, in the same step.

  params: its own, float32.
  opt_state: of its own optimizer.
  """

  params: PyTree
  opt_state: PyTree


@flax.struct.dataclass
class Players:
  """What a step differentiates; a gradient has the same form.

  params: of the model.
  adversary: parameters of what is trained against it, None without.
  """

  params: PyTree
  adversary: PyTree = None


@flax.struct.dataclass
class TrainState:
  """One pytree; everything that has to survive a restart is in it.

  step: int32 scalar, the number of finished steps.
  skipped: how many of them changed nothing.
  params: trained parameters, float32.
  ema_params: their moving average, float32, or None when it is off.
  opt_state: the optimizer's moments and counters.
  extra: what a task updates beside its parameters (the tokenizer's running
    codebook usage), arrays only.
  adversary: what is trained against the parameters, None without.
  """

  step: jax.Array
  skipped: Skipped
  params: PyTree
  ema_params: PyTree
  opt_state: PyTree
  extra: PyTree
  adversary: Adversary | None = None

  @property
  def players(self) -> Players:
    """All that is trained."""
    adversary = self.adversary
    return Players(self.params, adversary and adversary.params)

  @property
  def updates(self) -> jax.Array:
    """int32 scalar, steps that changed the parameters."""
    return self.step - self.skipped.total

  @property
  def eval_params(self) -> PyTree:
    """The averaged parameters where there are any."""
    return self.params if self.ema_params is None else self.ema_params


def of_players(loss_fn: Callable) -> Callable:
  """A task's loss as a function of `Players` in place of the parameters."""

  def loss(players: Players, *rest):
    if players.adversary is None:
      return loss_fn(players.params, *rest)
    return loss_fn(players.params, *rest, players.adversary)

  return loss


def create_state(task, optimizer, key: jax.Array) -> TrainState:
  """The state of step 0. Traceable: shapes come from `jax.eval_shape` of it."""
  params, extra = task.init(key)
  averaged = None
  if optimizer.ema_decay:
    # A copy: params and average are donated as two buffers.
    averaged = jax.tree.map(jnp.copy, params)
  adversary = None
  if optimizer.adversary is not None:
    drawn = task.init_adversary(jax.random.fold_in(key, ADVERSARY_STREAM))
    adversary = Adversary(drawn, optimizer.adversary.tx.init(drawn))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=Skipped.none(),
    params=params,
    ema_params=averaged,
    opt_state=optimizer.tx.init(params),
    extra=extra,
    adversary=adversary,
  )


def init_state(
  task, optimizer, seed: int, shardings: PyTree = None
) -> TrainState:
  """Draws the state of step 0 under one jit: every device draws its own part,
  and no process ever holds the whole.

  Args:
    shardings: of the state; None: one device.
  """
  key = stream_key(seed, INIT_STREAM)
  create = jax.jit(
    lambda k: create_state(task, optimizer, k), out_shardings=shardings
  )
  return create(key)


# Streams of the run's seed: parameters and training steps never share draws.
INIT_STREAM = 0
TRAIN_STREAM = 1
EVAL_STREAM = 2
# Of the key that the parameters are drawn from.
ADVERSARY_STREAM = 1


def stream_key(seed: int, stream: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), stream)
