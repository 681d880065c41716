"""The tokenizer against a discriminator: gradients, start, restarts."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.bundle import load_bundle
from star_jax.train.logging import read_metrics
from star_jax.train.loop import train_and_evaluate
from star_jax.train.optimizer import run_optimizer
from star_jax.train.tokenizer_objective import with_gradient
from star_jax.train.tokenizer_task import TokenizerTask
from tests.train import quick, tokenizer_task_test


def config(**loss):
  c = tokenizer_task_test.config()
  c.loss.update(dict(adversarial=0.5) | loss)
  c.adversary.update(start=2, ramp=0, lecam=0.1)
  c.adversary.discriminator.update(channels=4, layers=1, groups=4)
  c.adversary.optimizer.warmup_steps = 0
  return c


@pytest.fixture(scope="module")
def pieces():
  c = config(entropy=0.1)
  task, optimizer = TokenizerTask(c), run_optimizer(c)
  return task, optimizer, quick.init_state(task, optimizer)


def args_of(task, state, step):
  batch = next(task.train_batches())
  rest = (state.extra, task.frozen, batch, jax.random.key(0), np.int32(step))
  return state.params, rest, state.adversary.params


@pytest.mark.long
def test_the_gradient_is_that_of_the_sum_of_the_losses(pieces):
  """Against the objective written down in one piece."""
  task, _, state = pieces
  params, rest, adversary = args_of(task, state, 5)
  # The conv path begins at 0, where adversarial gradients are small.
  noise = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32),
    params,
  )

  @functools.partial(jax.jit, compiler_options=quick.OPTIONS)
  def ours(params, adversary):
    (loss, (metrics, _)), grads = jax.value_and_grad(
      lambda p, a: task.loss(p, *rest, a), (0, 1), has_aux=True
    )(params, adversary)
    return loss, metrics, grads

  @functools.partial(jax.jit, compiler_options=quick.OPTIONS)
  def plain(params, adversary, weight):
    _, frozen, batch, key, _ = rest
    image = batch["image"].astype(jnp.float32) / 127.5 - 1

    def loss(params):
      out = task.vqvae.apply({"params": params}, image, train=True)
      near, _ = task.objective.fidelity(frozen, out.recon_BHW3, image)
      logits = task.objective._logits(
        frozen, adversary, out.recon_BHW3, jax.random.fold_in(key, 1)
      )
      entropy = task._entropy_loss(params, out.f_BhwCv)
      return near + out.vq_loss + 0.1 * entropy - weight * jnp.mean(logits)

    return jax.grad(loss)(params)

  loss, metrics, (grads, against) = ours(params, adversary)
  assert metrics["adversarial_weight"] > 0
  want = plain(params, adversary, metrics["adversarial_weight"])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
    grads,
    want,
  )
  assert any(np.any(x) for x in jax.tree.leaves(against))
  np.testing.assert_allclose(
    loss, metrics["loss"] + metrics["discriminator_loss"], rtol=1e-5
  )


@pytest.mark.long
def test_before_the_start_nothing_of_the_game_is_computed(pieces):
  task, optimizer, state = pieces
  assert task.loss_at(1) == task._loss_alone and task.loss_at(2) == task.loss
  before = jax.tree.map(np.array, state.adversary.params)
  after, metrics = quick.train_step(
    jax.tree.map(jnp.copy, state), task.frozen, next(task.train_batches()),
    jax.random.key(0), loss_fn=task.loss_at(0), optimizer=optimizer,
  )  # fmt: skip
  assert "discriminator_loss" not in metrics
  jax.tree.map(np.testing.assert_array_equal, after.adversary.params, before)


def test_an_attached_gradient_is_the_gradient():
  value, grad = jax.value_and_grad(
    lambda x: with_gradient(jnp.float32(3), 2 * x, jnp.array([1.0, 5.0]))
  )(jnp.ones(2))
  assert value == 3
  np.testing.assert_array_equal(grad, [2.0, 10.0])


@pytest.mark.long
def test_a_restart_repeats_the_game_bitwise(tmp_path):
  c = config()
  c.update(num_steps=6, log_every=1, eval_every=3, sample_every=0)
  c.checkpoint_every = 100

  class Stopping(TokenizerTask):
    def maintain(self, state, batch, key):
      if int(state.step) == 4:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().maintain(state, batch, key)

  stopping = Stopping(c)
  stopping.maintain_every = 1
  c.codebook.update(revive_every=1, revive_below=0.5)
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  train_and_evaluate(c, whole)
  assert train_and_evaluate(c, broken, task=stopping)["step"] == 4
  assert train_and_evaluate(c, broken)["step"] == 6
  rows = [
    [{k: r.get(k) for k in ("step", "split", "loss", "discriminator_loss",
      "logits_fake", "adversary_grad_norm", "psnr")} for r in read_metrics(w)]
    for w in (whole, broken)
  ]  # fmt: skip
  assert rows[0] == rows[1]
  assert rows[0][-2]["adversary_grad_norm"] > 0
  notes = load_bundle(whole / "bundle").notes
  assert notes["trained_against"] == []
