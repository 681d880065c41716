"""What reconstructions look like after every scale, to several judges.

B: batch, K: scales, N: pictures, H W: pixels, D: features.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from star_jax import perceptual
from star_jax.evaluation.collect import Extractor
from star_jax.evaluation.distances import frechet_distance
from star_jax.evaluation.moments import Moments
from star_jax.metrics import efficientnet
from star_jax.metrics.kid import kernel_distance
from star_jax.metrics.reconstruction import padded_batches
from star_jax.metrics.ssim import ssim
from star_jax.tokenizer.vqvae import VQVAE

# Reconstructions uint8 [N, H, W, 3], one for each original -> figures by name.
Judge = Callable[[np.ndarray], dict[str, float]]
PERCEPTUAL, SSIM, KID, FRECHET = "perceptual", "ssim", "kid", "frechet"
# The Frechet distance of InceptionV3 features alone has that name.
RFID = "rfid"


def scale_pictures(
  vqvae: VQVAE, params, image: np.ndarray, batch_size: int
) -> np.ndarray:
  """The pictures after every scale: uint8 [N, H, W, 3] -> [K, N, H, W, 3]."""

  @jax.jit
  def step(params, image_BHW3):
    x_BHW3 = image_BHW3.astype(jnp.float32) / 127.5 - 1
    y_KBHW3 = vqvae.apply(
      {"params": params}, x_BHW3, method="reconstruct_scales"
    )
    return jnp.round((y_KBHW3 + 1) * 127.5).astype(jnp.uint8)

  parts = [
    np.asarray(step(params, image[index]))[:, :valid]
    for index, valid in padded_batches(len(image), batch_size)
  ]
  return np.concatenate(parts, axis=1)


def similarity_judge(real: np.ndarray, batch_size: int) -> Judge:
  """SSIM, mean over the pairs."""

  def judge(made):
    found = [
      np.asarray(ssim(_share(real[index]), _share(made[index])))[:valid]
      for index, valid in padded_batches(len(real), batch_size)
    ]
    return {SSIM: float(np.concatenate(found).mean())}

  return judge


def perceptual_judge(real: np.ndarray, batch_size: int) -> Judge:
  """The VGG16-HED perceptual distance, mean over the pairs.

  Raises:
    FileNotFoundError: its weights are not installed.
  """
  distance, frozen = perceptual.load({"distance": "vgg16-hed"})
  frozen = jax.device_put(frozen)
  step = jax.jit(
    lambda frozen, x, y: distance(frozen, 2 * _share(x) - 1, 2 * _share(y) - 1)
  )

  def judge(made):
    found = [
      np.asarray(step(frozen, real[index], made[index]))[:valid]
      for index, valid in padded_batches(len(real), batch_size)
    ]
    return {PERCEPTUAL: float(np.concatenate(found).mean())}

  return judge


def feature_judge(real: np.ndarray, batch_size: int) -> Judge:
  """Kernel and Frechet distance of EfficientNet-lite0 features.

  Raises:
    FileNotFoundError: its weights are not installed.
  """
  del batch_size
  network = efficientnet.default_network()
  real_ND = network(real)
  moments = Moments.of(real_ND)

  def judge(made):
    made_ND = network(made)
    return {
      KID: kernel_distance(made_ND, real_ND),
      FRECHET: frechet_distance(Moments.of(made_ND), moments),
    }

  return judge


def inception_judge(extractor: Extractor) -> Callable[[np.ndarray, int], Judge]:
  """Makes judges, from the originals, that find the rFID.

  Args:
    extractor: of InceptionV3; every judge runs its one program, in its batches.
  """

  def make(real, batch_size):
    del batch_size
    moments = _pool_moments(extractor, real)
    return lambda made: {
      RFID: frechet_distance(_pool_moments(extractor, made), moments)
    }

  return make


def _pool_moments(extractor: Extractor, image: np.ndarray) -> Moments:
  out, size = (
    Moments.empty(extractor.network.widths["pool"]),
    extractor.batch_size,
  )
  source = ((i, image[i : i + size]) for i in range(0, len(image), size))
  for features in extractor.stream(source):
    out.add(features["pool"])
  return out


# What a judge of `judges.JUDGES` is made by, from the originals.
MAKERS: dict[str, Callable[[np.ndarray, int], Judge]] = {
  "vgg16-hed": perceptual_judge,
  "efficientnet": feature_judge,
}


def bits(
  lengths, entropy_per_scale, vocab_size: int, pixels: int
) -> dict[str, float]:
  """Bits a pixel of the tokens: as plain numbers, and as far as an ideal code
  for the frequencies at each scale would go.

  Args:
    lengths: tokens of each scale.
    entropy_per_scale: nats of a token.
    vocab_size: V.
    pixels: of a picture.
  """
  coded = np.dot(lengths, entropy_per_scale) / np.log(2)
  return {
    "plain": float(sum(lengths) * np.log2(vocab_size) / pixels),
    "coded": float(coded / pixels),
  }


def _share(image):
  return jnp.asarray(image, jnp.float32) / 255
