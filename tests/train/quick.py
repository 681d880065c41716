"""The step and the first state, compiled without optimisation.

Compiling takes longer than running here.
"""

import jax

from star_jax.train import state as state_lib
from star_jax.train import step as step_lib

OPTIONS = {"xla_backend_optimization_level": 0}

train_step = jax.jit(
  step_lib.train_step.__wrapped__,
  static_argnames=("loss_fn", "optimizer", "mesh", "accumulate"),
  compiler_options=OPTIONS,
)
eval_step = jax.jit(
  step_lib.eval_step.__wrapped__,
  static_argnames=("loss_fn", "mesh"),
  compiler_options=OPTIONS,
)


def init_state(task, optimizer):
  create = jax.jit(
    lambda key: state_lib.create_state(task, optimizer, key),
    compiler_options=OPTIONS,
  )
  return create(jax.random.key(0))
