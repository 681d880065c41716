"""One training step: parts of a batch, skipped steps, the average, meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import star_scenes64
from star_jax import sharding
from star_jax.train import step as step_lib
from star_jax.train.flops import count_flops
from star_jax.train.global_arrays import (
  fetch,
  on_devices,
  place,
  place_batch,
  place_by_rules,
  state_shardings,
)
from star_jax.train.optimizer import build_optimizer
from star_jax.train.transformer_task import TransformerTask
from tests.train import fake, quick

BATCH = 16
MESH = {"data": 2, "fsdp": 2}


def quiet_loss(params, extra, frozen, batch, key, step):
  """The fake task's without noise; its draw is only logged."""
  del frozen, step
  error = (batch["x"] @ params["head"]["kernel"])[:, 0] - batch["y"]
  loss = jnp.mean(jnp.square(error))
  draw = jax.random.normal(key)
  metrics = {"loss": loss, "draw": draw, "square": draw**2}
  return loss, (metrics, {"seen": extra["seen"] + jnp.mean(batch["y"])})


class Steps:
  """Steps of the fake task from its first state."""

  def __init__(self, mesh=None, loss=quiet_loss, **optimizer):
    config = fake.config()
    config.optimizer.update(optimizer)
    task = fake.FakeTask(config)
    self.mesh = sharding.make_mesh({"data": 1, **mesh}) if mesh else None
    self.loss = loss
    self.optimizer = build_optimizer(config.optimizer, config.num_steps)
    self.state = quick.init_state(task, self.optimizer)
    if self.mesh is not None:
      on_host = config.optimizer.ema_on_host
      shardings = state_shardings(self.state, self.mesh, on_host)
      self.state = place(self.state, shardings)

  def step(self, batch, accumulate=1):
    if self.mesh is not None:
      batch = place_batch(batch, self.mesh, BATCH)
    state, averaged = step_lib.split_average(self.state, self.optimizer)
    state, metrics = quick.train_step(
      state,
      {},
      batch,
      jax.random.key(0),
      loss_fn=self.loss,
      optimizer=self.optimizer,
      mesh=self.mesh,
      accumulate=accumulate,
    )
    self.state = step_lib.join_average(
      state, averaged, self.optimizer, self.mesh
    )
    return metrics

  def values(self):
    """Copies: the next step donates the state."""
    return jax.tree.map(np.array, fetch(self.state))


def batch_of(seed=0):
  return next(fake.Batches(BATCH, seed))


# --- parts of a batch


@pytest.mark.parametrize("mesh", [None, MESH], ids=["one device", "mesh"])
def test_parts_of_a_batch_are_the_batch(mesh):
  found = {}
  for accumulate in (1, 4):
    steps = Steps(mesh)
    metrics = steps.step(batch_of(), accumulate)
    metrics = {k: metrics[k] for k in ("loss", "grad_norm")}
    # First moments are gradients times 1 - beta1.
    found[accumulate] = steps.values(), fetch(metrics)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    found[4],
    found[1],
  )
  assert found[4][0].extra["seen"] != 0


def test_every_part_has_draws_of_its_own():
  one, four = (Steps().step(batch_of(), n) for n in (1, 4))
  assert one["square"] == pytest.approx(float(one["draw"]) ** 2)
  # A mean of different draws.
  assert four["square"] > four["draw"] ** 2 + 1e-3


def test_rows_of_a_part_stay_on_their_devices():
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})

  def dealt(x):
    with sharding.use_mesh(mesh):
      return sharding.constrain_rows(step_lib._dealt(x, 4), axis=1)

  rows = jax.device_put(jnp.arange(64.0), sharding.batch_sharding(mesh))
  compiled = jax.jit(dealt).lower(rows).compile()
  text = compiled.as_text()
  assert not any(
    word in text for word in ("all-", "collective", "reduce-scatter")
  )
  out = compiled(rows)
  np.testing.assert_array_equal(out[1], np.arange(64).reshape(16, 4)[:, 1])
  assert out.addressable_shards[0].data.shape == (4, 2)


def test_what_is_static_in_a_batch_is_in_every_part():
  schedule = star_scenes64.get_config("runlocal").model.schedule
  seen = []

  def loss(params, extra, frozen, batch, key, step):
    seen.append(batch["schedule"])
    return quiet_loss(params, extra, frozen, batch, key, step)

  static = StaticName(tuple(schedule))
  Steps(loss=loss).step({**batch_of(), "schedule": static}, 2)
  assert set(seen) == {static}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StaticName:
  value: tuple


def test_parts_of_a_batch_are_counted_as_often_as_they_run():
  steps = Steps()

  def flops(accumulate):
    return count_flops(
      lambda *args: step_lib.train_step(
        *args,
        loss_fn=quiet_loss,
        optimizer=steps.optimizer,
        accumulate=accumulate,
      ),
      steps.state,
      {},
      batch_of(),
      jax.random.key(0),
    )

  assert flops(1) == flops(4) > 0


# --- steps without a finite loss


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("mesh", [None, MESH], ids=["one device", "mesh"])
def test_a_step_that_is_not_finite_changes_nothing_but_counters(
  mesh, accumulate
):
  steps = Steps(mesh)
  steps.step(batch_of(0), accumulate)
  before = steps.values()
  bad = batch_of(1)
  bad["x"][5] = np.nan  # a row of one of the parts
  metrics = steps.step(bad, accumulate)
  after = steps.values()
  assert not np.isfinite(metrics["loss"])
  jax.tree.map(
    np.testing.assert_array_equal,
    after.replace(step=before.step, skipped=before.skipped),
    before,
  )
  steps.step(bad, accumulate)
  counted = steps.values()
  assert (counted.step, counted.updates) == (3, 1)
  assert (counted.skipped.total, counted.skipped.in_a_row) == (2, 2)
  steps.step(batch_of(2), accumulate)
  again = steps.values()
  assert (again.skipped.total, again.skipped.in_a_row) == (2, 0)
  kernels = (s.params["head"]["kernel"] for s in (again, before))
  assert np.isfinite(again.ema_params["head"]["kernel"]).all()
  assert np.any(np.subtract(*kernels))


def test_a_finite_loss_with_an_infinite_gradient_is_skipped():
  def loss(params, extra, frozen, batch, key, step):
    out = jnp.sum(jnp.sqrt(params["head"]["kernel"] * 0))
    return out, ({"loss": out}, extra)

  steps = Steps(loss=loss)
  metrics = steps.step(batch_of())
  assert metrics["loss"] == 0 and not np.isfinite(metrics["grad_norm"])
  assert metrics["skipped"] == 1


def test_the_logged_learning_rate_is_that_of_the_update():
  steps = Steps()
  bad = {**batch_of(), "y": np.full(BATCH, np.inf, np.float32)}
  rates = [steps.step(b)["learning_rate"] for b in (bad, bad, batch_of())]
  # None of them was an update before the last.
  assert rates[0] == rates[1] == rates[2]
  assert rates[2] < steps.step(batch_of())["learning_rate"]


# --- the average on the host


@pytest.mark.parametrize("mesh", [{"fsdp": 1}, MESH], ids=str)
def test_an_average_on_the_host_is_the_same_average(mesh):
  here, there = Steps(mesh), Steps(mesh, ema_on_host=True)
  batches = [batch_of(seed) for seed in range(4)]
  batches[2]["x"][0] = np.nan
  for batch in batches:
    for steps in (here, there):
      steps.step(batch)
  # Two programs instead of one round the last bit as they like.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6),
    there.values(),
    here.values(),
  )
  kernel = there.state.ema_params["head"]["kernel"]
  assert kernel.sharding.memory_kind == "pinned_host"
  own = here.state.ema_params["head"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == own.sharding.shard_shape(
    own.shape
  )
  params = there.state.params["head"]["kernel"]
  assert params.sharding.memory_kind == "device"
  read = on_devices(there.state).eval_params["head"]["kernel"]
  assert read.sharding.memory_kind == "device"
  np.testing.assert_array_equal(read + 1, own + 1)


def test_devices_without_such_memory_are_refused():
  class Device:
    device_kind = "abacus"

    def addressable_memories(self):
      return [type("Memory", (), {"kind": "beads"})]

  mesh = sharding.make_mesh({"data": 1})
  state = Steps().state
  fake_mesh = type(
    "Mesh", (), {"shape": mesh.shape, "devices": np.array([Device()])}
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "shardings_of", lambda *_: state)
    with pytest.raises(ValueError, match=r"pinned_host; abacus has beads\."):
      state_shardings(state, fake_mesh, True)


# --- the transformer

FSDP, MIXED = (("fsdp", 8),), (("fsdp", 4), ("tensor", 2))
CLIP_NORM = 1e-3


@functools.cache
def transformer_step(axes=(), dtype="float32"):
  """State and metrics after one step on a mesh; none: one device."""
  c = star_scenes64.get_config("runlocal")
  c.model.update(schedule=(1, 2), depth=1, width=16, text_dim=8, num_heads=2)
  c.model.dtype = dtype
  c.update(batch_size=8, data="synthetic")
  c.optimizer.update(
    name="adamw", clip_norm=CLIP_NORM, ema_decay=0.9, warmup_steps=0
  )
  c.optimizer.learning_rate = 1e-5
  task = TransformerTask(c)
  optimizer = build_optimizer(c.optimizer, c.num_steps)
  state = quick.init_state(task, optimizer)
  batch, mesh, frozen = next(task.train_batches()), None, task.frozen
  if axes:
    mesh = sharding.make_mesh({"data": 1, **dict(axes)})
    state = place(state, state_shardings(state, mesh))
    batch = place_batch(batch, mesh, 8)
    frozen = place_by_rules(frozen, mesh)
  return quick.train_step(
    state,
    frozen,
    batch,
    jax.random.key(0),
    loss_fn=task.loss,
    optimizer=optimizer,
    mesh=mesh,
  )


def adam_of(state):
  parts = jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
  return next(s for s in parts if hasattr(s, "mu"))


@pytest.mark.long
@pytest.mark.parametrize("axes", [MIXED, FSDP], ids=["fsdp and tensor", "fsdp"])
def test_the_clipped_update_of_a_mesh_is_that_of_one_device(axes):
  state, metrics = transformer_step()
  assert metrics["grad_norm"] > 10 * CLIP_NORM
  expected = adam_of(state)
  # First moments are gradients times 1 - beta1, clipped ones.
  squares = sum(np.sum(np.square(m)) for m in jax.tree.leaves(expected.mu))
  np.testing.assert_allclose(np.sqrt(squares), 0.1 * CLIP_NORM, rtol=1e-4)
  found = adam_of(transformer_step(axes)[0])
  for name in ("mu", "nu"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()
      ),
      fetch(getattr(found, name)),
      fetch(getattr(expected, name)),
    )


def test_moments_and_average_lie_where_the_parameters_do():
  state, _ = transformer_step(MIXED)
  moments = adam_of(state)
  for tree in (state.ema_params, moments.mu, moments.nu):
    for x, p in zip(jax.tree.leaves(tree), jax.tree.leaves(state.params)):
      assert x.sharding.is_equivalent_to(p.sharding, p.ndim)
  kernel = state.ema_params["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.long
def test_bfloat16_layers_have_float32_parameters_moments_and_average():
  state, metrics = transformer_step(dtype="bfloat16")
  exact, exact_metrics = transformer_step()
  assert metrics["loss"] != exact_metrics["loss"]  # computed otherwise
  assert metrics["loss"] == pytest.approx(
    float(exact_metrics["loss"]), rel=0.01
  )
  kinds = {
    x.dtype
    for x in jax.tree.leaves(state)
    if jnp.issubdtype(x.dtype, jnp.floating)
  }
  assert kinds == {jnp.dtype("float32")}
  # One step moves them by less than bfloat16 could tell.
  for tree in (state.params, state.ema_params):
    kernel = np.asarray(tree["blocks"]["mlp"]["fc1"]["kernel"])
    rounded = kernel.astype(jnp.bfloat16).astype(np.float32)
    assert (rounded != kernel).mean() > 0.9
  same_start = (
    np.asarray(s.params["blocks"]["mlp"]["fc1"]["kernel"])
    for s in (state, exact)
  )
  assert np.abs(np.subtract(*same_start)).max() <= 3e-5
