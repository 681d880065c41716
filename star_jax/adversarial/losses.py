"""Losses of a generator and its discriminator.

Logits are higher for what looks more real. All results are float32 scalars in
nats or in the unit of the logits; means are over batch and patches.

B: batch, H W: pixels, N: patches of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
GAN_LOSSES = ("hinge", "nonsaturating")


def discriminator_loss(
  real_BN: jax.Array, fake_BN: jax.Array, kind: str = "hinge"
) -> jax.Array:
  """What the discriminator minimises.

  Args:
    real_BN, fake_BN: logits.
    kind: "hinge" (arXiv 1705.02894), halved as in VQGAN: 1 where it knows
      nothing, 0 where all are told apart by a margin of 1. "nonsaturating"
      (arXiv 1406.2661): cross-entropy, halved, log 2 where it knows nothing.

  Raises:
    ValueError: another kind.
  """
  check_kind(kind)
  real_BN, fake_BN = (x.astype(jnp.float32) for x in (real_BN, fake_BN))
  if kind == "hinge":
    real, fake = jax.nn.relu(1 - real_BN), jax.nn.relu(1 + fake_BN)
  else:
    real, fake = jax.nn.softplus(-real_BN), jax.nn.softplus(fake_BN)
  return 0.5 * (jnp.mean(real) + jnp.mean(fake))


def generator_loss(fake_BN: jax.Array, kind: str = "hinge") -> jax.Array:
  """What the generator minimises: the negative logit, or -log of its sigmoid.

  Raises:
    ValueError: another kind.
  """
  check_kind(kind)
  fake_BN = fake_BN.astype(jnp.float32)
  if kind == "hinge":
    return -jnp.mean(fake_BN)
  return jnp.mean(jax.nn.softplus(-fake_BN))


def check_kind(kind: str) -> None:
  """ValueError unless it is one of GAN_LOSSES."""
  if kind not in GAN_LOSSES:
    raise ValueError(
      f"An adversarial loss is one of {', '.join(GAN_LOSSES)}, got {kind!r}."
    )


def init_lecam() -> dict[str, jax.Array]:
  """The averages that `lecam` compares with, before the first step.

  "weight" is the sum of the weights of what went in so far: dividing by it
  takes the zero at the start out of the averages.
  """
  return {name: jnp.zeros(()) for name in ("real", "fake", "weight")}


def update_lecam(
  averages: dict[str, jax.Array],
  real_BN: jax.Array,
  fake_BN: jax.Array,
  decay: float,
) -> dict[str, jax.Array]:
  """Moving averages of the mean logits, after this step."""
  new = {"real": jnp.mean(real_BN), "fake": jnp.mean(fake_BN), "weight": 1.0}
  return {
    name: decay * averages[name]
    + (1 - decay) * jax.lax.stop_gradient(jnp.asarray(value, jnp.float32))
    for name, value in new.items()
  }


def lecam(
  averages: dict[str, jax.Array], real_BN: jax.Array, fake_BN: jax.Array
) -> jax.Array:
  """LeCam regularisation of the discriminator (arXiv 2104.03310, equation 5).

  Squared distance of the logits of real pictures above the average of the
  fakes, and of that of real pictures above the logits of the fakes: it keeps
  the two from drifting apart. One-sided, as in the authors' code: logits on
  the wrong side are left alone. 0 before the first update.
  """
  weight = averages["weight"]
  real, fake = (
    averages[name] / jnp.maximum(weight, 1e-8) for name in ("real", "fake")
  )
  squared = [
    jnp.mean(jnp.square(jax.nn.relu(x.astype(jnp.float32))))
    for x in (real_BN - fake, real - fake_BN)
  ]
  return jnp.where(weight > 0, sum(squared), 0.0)


def r1_penalty(
  logits_of: Callable[[jax.Array], jax.Array], image_BHW3: jax.Array
) -> jax.Array:
  """R1 (arXiv 1801.04406, equation 9): half the squared gradient of the
  verdict on a real picture with respect to its pixels, mean over the batch.

  Args:
    logits_of: pictures -> [B, N], each row from its own picture alone; the
      verdict on a picture is the mean of its row.
    image_BHW3: real ones.
  """

  def verdicts(image_BHW3):
    return jnp.sum(jnp.mean(logits_of(image_BHW3), axis=-1))

  gradient_BHW3 = jax.grad(verdicts)(image_BHW3).astype(jnp.float32)
  return 0.5 * jnp.mean(jnp.sum(jnp.square(gradient_BHW3), axis=(1, 2, 3)))


def adaptive_weight(
  rec_grad: PyTree, gan_grad: PyTree, *, most: float, eps: float
) -> jax.Array:
  """How much the adversarial loss counts (VQGAN, arXiv 2012.09841, equation
  7): the norm of the gradient of the reconstruction losses over that of the
  adversarial one, both with respect to the last layer of the decoder.

  Args:
    rec_grad, gan_grad: gradients of the same parameters.
    most: the largest weight.
    eps: added to the lower norm.

  Returns:
    float32, from 0 to `most`, without a gradient.
  """
  ratio = optax.global_norm(rec_grad) / (optax.global_norm(gan_grad) + eps)
  return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, most))


def ramp(step: jax.Array | int, start: int, length: int = 0) -> jax.Array:
  """0 before step `start`, 1 from `length` steps later on, linear between.

  The discriminator knows nothing at first; VQGAN (disc_start) lets the
  reconstruction settle before the adversarial loss counts.
  """
  passed = jnp.asarray(step, jnp.float32) - start + 1
  return jnp.clip(passed / (length + 1), 0.0, 1.0)
