"""Losses of both sides by hand; penalties against numeric gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.adversarial import losses

REAL = np.array([[2.0, 0.5], [-1.0, 0.0]], np.float32)
FAKE = np.array([[-3.0, -0.5], [0.25, 0.0]], np.float32)
# One program each, instead of one for every operation.
discriminator_loss = jax.jit(losses.discriminator_loss, static_argnums=2)
generator_loss = jax.jit(losses.generator_loss, static_argnums=1)
lecam = jax.jit(losses.lecam)
update_lecam = jax.jit(losses.update_lecam)
adaptive_weight = jax.jit(losses.adaptive_weight)


def test_hinge_loss_by_hand():
  real = np.mean([0, 0.5, 2, 1])
  fake = np.mean([0, 0.5, 1.25, 1])
  assert discriminator_loss(REAL, FAKE) == (real + fake) / 2
  assert generator_loss(FAKE) == 3.25 / 4
  # Told apart by the margin: nothing left to learn.
  assert discriminator_loss(np.ones(2), -np.ones(2)) == 0
  assert discriminator_loss(np.zeros(2), np.zeros(2)) == 1


def test_nonsaturating_loss_is_cross_entropy():
  def nll(logit, label):
    p = 1 / (1 + np.exp(-np.float64(logit)))
    return -np.mean(np.log(p if label else 1 - p))

  found = discriminator_loss(REAL, FAKE, "nonsaturating")
  np.testing.assert_allclose(found, (nll(REAL, 1) + nll(FAKE, 0)) / 2, 1e-6)
  found = generator_loss(FAKE, "nonsaturating")
  np.testing.assert_allclose(found, nll(FAKE, 1), 1e-6)


def test_unknown_loss():
  for loss in (
    lambda: discriminator_loss(REAL, FAKE, "wgan"),
    lambda: generator_loss(FAKE, "wgan"),
  ):
    with pytest.raises(ValueError, match="hinge, nonsaturating, got 'wgan'"):
      loss()


def test_lecam_averages_and_penalty_by_hand():
  averages = losses.init_lecam()
  assert lecam(averages, REAL, FAKE) == 0
  averages = update_lecam(averages, REAL, FAKE, 0.9)
  # One batch: its own means, whatever the decay.
  real, fake = 1.5 / 4, -3.25 / 4
  expected = np.mean(np.maximum(REAL - fake, 0) ** 2) + np.mean(
    np.maximum(real - FAKE, 0) ** 2
  )
  np.testing.assert_allclose(lecam(averages, REAL, FAKE), expected, rtol=1e-6)
  averages = update_lecam(averages, REAL + 1, FAKE, 0.9)
  weight = averages["weight"]
  np.testing.assert_allclose(
    averages["real"] / weight, (0.9 * real + (real + 1)) / 1.9, rtol=1e-6
  )


def test_gradient_of_lecam_is_through_the_logits_alone():
  """None before the first update, none through the averages."""
  gradient = jax.jit(jax.grad(lambda x, averages: lecam(averages, x, x)))
  first = losses.init_lecam()
  assert not np.any(gradient(REAL, first))
  averages = update_lecam(first, REAL, FAKE, 0.5)
  real, fake = 1.5 / 4, -3.25 / 4
  expected = 2 * (np.maximum(REAL - fake, 0) - np.maximum(real - REAL, 0)) / 4
  np.testing.assert_allclose(gradient(REAL, averages), expected, atol=1e-6)

  def through(x):
    averages = update_lecam(first, x, x, 0.5)
    return averages["real"] + averages["fake"]

  assert not np.any(jax.jit(jax.grad(through))(REAL))


def test_r1_is_the_numeric_gradient():
  rng = np.random.default_rng(0)
  weights = rng.standard_normal((12, 2))
  image = rng.standard_normal((3, 2, 2, 3))

  def logits(x, tanh=np.tanh):
    return tanh(x.reshape(len(x), -1) @ weights)

  gradient = np.zeros_like(image)
  for place in np.ndindex(image.shape):
    step = np.zeros_like(image)
    step[place] = 1e-5
    change = logits(image + step) - logits(image - step)
    gradient[place] = change[place[0]].mean() / 2e-5
  expected = 0.5 * (gradient**2).sum((1, 2, 3)).mean()
  found = jax.jit(
    lambda x: losses.r1_penalty(lambda x: logits(x, jnp.tanh), x)
  )(image.astype(np.float32))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_adaptive_weight_is_a_ratio_by_hand():
  """Of a last layer y = h K: gradients are h' times those of the picture."""
  rng = np.random.default_rng(1)
  hidden, kernel, target = (rng.standard_normal(s).astype(np.float32)
                            for s in ((5, 4), (4, 3), (5, 3)))  # fmt: skip
  push = rng.standard_normal(3).astype(np.float32)

  @jax.jit
  def weight(kernel, most):
    def of(loss):
      return jax.grad(lambda last: loss(hidden @ last["kernel"]))(
        {"kernel": kernel}
      )

    return losses.adaptive_weight(
      of(lambda y: jnp.mean((y - target) ** 2)),
      of(lambda y: -jnp.mean(y @ push)),
      most=most,
      eps=1e-4,
    )

  rec = hidden.T @ (2 * (hidden @ kernel - target) / 15)
  gan = hidden.T @ np.broadcast_to(-push / 5, (5, 3))
  expected = np.linalg.norm(rec) / (np.linalg.norm(gan) + 1e-4)
  np.testing.assert_allclose(weight(kernel, 1e4), expected, rtol=1e-5)
  assert weight(kernel, expected / 2) == np.float32(expected / 2)
  gradient = jax.grad(lambda kernel: weight(kernel, 1e4))(kernel)
  assert not np.any(gradient)


def test_adaptive_weight_survives_gradients_of_zero():
  zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
  found = adaptive_weight(one, zero, most=1e4, eps=1e-4)
  assert found == 1e4
  assert adaptive_weight(zero, zero, most=1e4, eps=1e-4) == 0


def test_ramp_starts_at_its_step():
  assert [float(losses.ramp(step, 3)) for step in (0, 2, 3, 4)] == [0, 0, 1, 1]
  found = [float(losses.ramp(step, 3, 4)) for step in range(2, 9)]
  np.testing.assert_allclose(found, [0, 0.2, 0.4, 0.6, 0.8, 1, 1])
