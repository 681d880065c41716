"""What a tokenizer's pictures are trained for: fidelity, and fooling a
discriminator.

VAR (arXiv 2404.02905, equation 5) after VQGAN (arXiv 2012.09841): L1 and L2
errors, a perceptual distance, and an adversarial loss whose weight follows from
the gradients of the last layer of the decoder. Each part has a weight in
config.loss; one of weight 0 is not computed and its network is not read.

B: batch, H W: pixels, N: patches of a discriminator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from star_jax import adversarial, perceptual
from star_jax.adversarial import losses
from star_jax.train.losses import reconstruction_loss

PyTree = Any
Metrics = dict[str, jax.Array]
# Among the arrays that nobody trains, and in `extra` of the state.
NETWORKS, LECAM = "networks", "lecam"


class Objective:
  """See above.

  Attributes:
    frozen: parameters of the networks that the losses ask, {"networks": ...}.
    discriminator: None without an adversarial part.
    judges: names of these networks, in words; none of them may measure what
      this run trains.
  """

  def __init__(self, config):
    self.weights, self.options = config.loss, config.adversary
    self.image_size = tuple(config.data_options.size)
    self.judges: list[str] = []
    networks = {}
    self.distance = self.discriminator = None
    if self.weights.perceptual:
      self.distance, networks["perceptual"] = perceptual.load(
        config.perceptual.to_dict()
      )
      self.judges.append(config.perceptual.distance)
    if self.weights.adversarial:
      losses.check_kind(self.options.loss)
      self.discriminator, networks["discriminator"] = adversarial.load(
        self.options.discriminator.to_dict()
      )
      self.augmentation = adversarial.AugmentConfig(**self.options.augment)
      if self.discriminator.config.kind != "patch":
        self.judges.append(self.discriminator.config.kind)
    self.frozen = {NETWORKS: networks} if networks else {}

  def init_adversary(self, key: jax.Array) -> PyTree:
    """Parameters of the discriminator."""
    frozen = self.frozen[NETWORKS]["discriminator"]
    return self.discriminator.init(key, frozen, self.image_size)

  def init_extra(self) -> PyTree:
    """What it carries from step to step."""
    return {LECAM: losses.init_lecam()} if self.weights.adversarial else {}

  def plays(self, step: int) -> bool:
    """Whether there is a discriminator in the training step of that number."""
    return bool(self.weights.adversarial) and step >= self.options.start

  def fidelity(
    self, frozen: PyTree, recon_BHW3: jax.Array, image_BHW3: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """How far reconstructions are from their pictures, both in [-1, 1].

    Returns:
      The weighted sum of the errors, and each of them by name.
    """
    loss, metrics = reconstruction_loss(
      recon_BHW3, image_BHW3, l1=self.weights.l1, l2=self.weights.l2
    )
    if self.distance is not None:
      network = frozen[NETWORKS]["perceptual"]
      apart = jnp.mean(self.distance(network, recon_BHW3, image_BHW3))
      loss += self.weights.perceptual * apart
      metrics["perceptual"] = apart
    return loss, metrics

  def generator(
    self,
    frozen: PyTree,
    adversary: PyTree,
    recon_BHW3: jax.Array,
    image_BHW3: jax.Array,
    to_last: Callable[[jax.Array], PyTree],
    key: jax.Array,
    step: jax.Array,
  ) -> tuple[jax.Array, Metrics]:
    """Fidelity, and what the discriminator makes of the reconstructions.

    Each loss is differentiated here, with respect to the picture: the weight
    between them and the step itself then share one backward pass through each
    network.

    Args:
      adversary: parameters of the discriminator; they get no gradient.
      to_last: gradient of the picture -> gradient of the last layer.
      key: of the augmentation.
      step: 0-based.
    """
    options = self.options
    still = jax.lax.stop_gradient(recon_BHW3)
    near = jax.value_and_grad(
      lambda x: self.fidelity(frozen, x, image_BHW3), has_aux=True
    )
    (far_off, metrics), pull = near(still)
    fooled, push = jax.value_and_grad(
      lambda x: losses.generator_loss(
        self._logits(frozen, jax.lax.stop_gradient(adversary), x, key),
        options.loss,
      )
    )(still)
    weight = self.weights.adversarial * losses.ramp(
      step, options.start, options.ramp
    )
    if options.adaptive:
      weight *= losses.adaptive_weight(
        to_last(pull),
        to_last(push),
        most=options.most_adaptive,
        eps=options.adaptive_eps,
      )
    metrics |= {"generator_loss": fooled, "adversarial_weight": weight}
    loss = with_gradient(
      far_off + weight * fooled, recon_BHW3, pull + weight * push
    )
    return loss, metrics

  def adversary(
    self,
    frozen: PyTree,
    adversary: PyTree,
    averages: PyTree,
    recon_BHW3: jax.Array,
    image_BHW3: jax.Array,
    key: jax.Array,
  ) -> tuple[jax.Array, Metrics, PyTree]:
    """The discriminator's own loss; reconstructions get no gradient.

    Args:
      averages: LECAM of `extra`.
      key: that of `generator`.

    Returns:
      The loss with its regularisation, figures, and the next averages.
    """
    options = self.options
    real_BN, fake_BN = (
      self._logits(frozen, adversary, jax.lax.stop_gradient(x), key)
      for x in (image_BHW3, recon_BHW3)
    )
    loss = losses.discriminator_loss(real_BN, fake_BN, options.loss)
    metrics = {
      "discriminator_loss": loss,
      "logits_real": jnp.mean(real_BN),
      "logits_fake": jnp.mean(fake_BN),
    }
    if options.lecam:
      penalty = losses.lecam(averages, real_BN, fake_BN)
      loss += options.lecam * penalty
      metrics["lecam"] = penalty
    if options.r1:
      network = frozen[NETWORKS]["discriminator"]
      penalty = losses.r1_penalty(
        lambda x: self.discriminator.logits(adversary, network, x), image_BHW3
      )
      loss += options.r1 * penalty
      metrics["r1"] = penalty
    averages = losses.update_lecam(
      averages, real_BN, fake_BN, options.lecam_decay
    )
    return loss, metrics, averages

  def _logits(self, frozen, adversary, image_BHW3, key) -> jax.Array:
    """Of augmented pictures, [B, N]; one key changes two batches alike."""
    seen = adversarial.augment(self.augmentation, key, image_BHW3)
    network = frozen[NETWORKS]["discriminator"]
    return self.discriminator.logits(adversary, network, seen)


def with_gradient(
  value: jax.Array, x: jax.Array, gradient: jax.Array
) -> jax.Array:
  """The scalar `value`, whose gradient with respect to `x` is `gradient`."""
  value, gradient = jax.lax.stop_gradient((value, gradient))
  return value + jnp.vdot(gradient, x - jax.lax.stop_gradient(x))
