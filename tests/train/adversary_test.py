"""What is trained against the parameters: one step, two optimizers."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax import sharding
from star_jax.train.checkpoint import Checkpointer
from star_jax.train.global_arrays import fetch, place, state_shardings
from star_jax.train.logging import read_metrics
from star_jax.train.loop import train_and_evaluate
from star_jax.train.optimizer import build_optimizer
from tests.train import fake, quick


class Game(fake.FakeTask):
  """The adversary guesses the sign of the error, the model avoids it."""

  def init_adversary(self, key):
    return {"guess": {"kernel": jax.random.normal(key, (fake.WIDTH, 1))}}

  def loss(self, params, extra, frozen, batch, key, step, adversary=None):
    if adversary is None:
      return super().loss(params, extra, frozen, batch, key, step)
    own, against, error = both_losses(params, adversary, batch)
    metrics = {"loss": own, "error": jnp.mean(jnp.square(error))}
    return own + against, (metrics, {"seen": extra["seen"] + 1})


def both_losses(params, adversary, batch):
  still = jax.lax.stop_gradient
  error = (batch["x"] @ params["head"]["kernel"])[:, 0] - batch["y"]

  def guessed(adversary, error):
    guess = jnp.tanh(batch["x"] @ adversary["guess"]["kernel"])[:, 0]
    return jnp.mean(guess * error)

  own = jnp.mean(jnp.square(error)) + guessed(still(adversary), error)
  return own, -guessed(adversary, still(error)), error


def game(accumulate=1, **changes):
  """Task, its two optimizers and the first state."""
  config = fake.config(accumulate=accumulate, **changes)
  options = config.optimizer.copy_and_resolve_references()
  options.update(learning_rate=0.3, beta1=0.5, warmup_steps=0)
  optimizer = dataclasses.replace(
    build_optimizer(config.optimizer, config.num_steps),
    adversary=build_optimizer(options, config.num_steps),
  )
  task = Game(config)
  return task, optimizer, quick.init_state(task, optimizer)


def stepped(task, optimizer, state, batch, **kwargs):
  return quick.train_step(
    state, {}, batch, jax.random.key(0),
    loss_fn=task.loss, optimizer=optimizer, **kwargs,
  )  # fmt: skip


def test_both_sides_move_by_their_own_loss_and_optimizer():
  task, optimizer, state = game()
  before = fetch(state)
  batch = next(task.train_batches())

  @jax.jit
  def by_hand(state):
    out = []
    for i, (params, opt, opt_state) in enumerate(
      (
        (state.params, optimizer, state.opt_state),
        (
          state.adversary.params,
          optimizer.adversary,
          state.adversary.opt_state,
        ),
      )
    ):
      sides = [state.params, state.adversary.params]
      grads = jax.grad(
        lambda x: both_losses(*[*sides[:i], x, *sides[i + 1 :]], batch)[i]  # noqa: B023
      )(params)
      updates, _ = opt.tx.update(grads, opt_state, params)
      out.append(
        (optax.apply_updates(params, updates), optax.global_norm(grads))
      )
    return out

  (params, norm), (adversary, adversary_norm) = by_hand(before)
  after, metrics = stepped(task, optimizer, state, batch)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)  # noqa: E731
  jax.tree.map(close, after.params, params)
  jax.tree.map(close, after.adversary.params, adversary)
  close(metrics["grad_norm"], norm)
  close(metrics["adversary_grad_norm"], adversary_norm)
  assert metrics["adversary_learning_rate"] == pytest.approx(0.3)
  # The average is of the model alone.
  assert jax.tree.structure(after.ema_params) == jax.tree.structure(params)


def test_parts_of_a_batch_and_meshes_play_the_same_game():
  found = []
  for accumulate, axes in ((1, None), (2, None), (2, dict(data=1, fsdp=2))):
    task, optimizer, state = game(accumulate)
    mesh = axes and sharding.make_mesh(axes)
    batch = next(task.train_batches())
    if mesh:
      state = place(state, state_shardings(state, mesh))
      batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    after, _ = stepped(
      task, optimizer, state, batch, accumulate=accumulate, mesh=mesh
    )
    found.append(fetch(after).replace(extra=None))
  for other in found[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      other,
      found[0],
    )


def test_a_gradient_of_the_adversary_that_is_not_finite_skips_the_step():
  task, optimizer, state = game()

  class Broken(Game):
    def loss(self, *args):
      adversary = args[-1]
      # Finite, with an infinite slope.
      steep = jnp.sum(jnp.sqrt(adversary["guess"]["kernel"] * 0))
      total, aux = super().loss(*args)
      return total + steep, aux

  before = fetch(state)
  batch = next(task.train_batches())
  after, metrics = stepped(Broken(task.config), optimizer, state, batch)
  assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
  assert metrics["skipped"] == 1
  jax.tree.map(
    np.testing.assert_array_equal,
    fetch(after).replace(step=before.step, skipped=before.skipped),
    before,
  )


def run(workdir, monkeypatch, stop_at=None):
  config = fake.config()
  optimizer = game()[1]
  monkeypatch.setattr("star_jax.train.loop.run_optimizer", lambda *_: optimizer)

  def stop(step):
    if step == stop_at:
      os.kill(os.getpid(), signal.SIGTERM)

  return train_and_evaluate(config, workdir, task=Game(config, on_step=stop))


@pytest.mark.long
def test_a_restart_repeats_both_sides_bitwise(tmp_path, monkeypatch):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  run(whole, monkeypatch)
  assert run(broken, monkeypatch, stop_at=4)["step"] == 4
  assert run(broken, monkeypatch)["step"] == 8
  names = ("split", "step", "loss", "adversary_grad_norm")
  rows = [
    [[row.get(n) for n in names] for row in read_metrics(w)]
    for w in (whole, broken)
  ]
  assert rows[0] == rows[1] and rows[0][1][3] > 0


def test_a_discriminator_without_its_optimizer_is_refused(tmp_path):
  state = game()[2]
  saver = Checkpointer(tmp_path, {}, keep=1, asynchronous=False)
  saver.save(
    3, state.replace(adversary=state.adversary.replace(opt_state=())), {}
  )
  abstract = jax.eval_shape(lambda: state)
  with pytest.raises(ValueError, match="discriminator without its optimizer"):
    saver.restore_latest(abstract)
  # It was not taken for a damaged one.
  assert saver.steps() == [3]
  saver.save(4, state, {})
  restored, _ = saver.restore_latest(abstract)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  saver.close()
