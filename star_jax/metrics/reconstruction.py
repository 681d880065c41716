"""How well the image tokenizer keeps pictures, and how much of its codebook
it uses.

47-84% of an emoji picture is plain background, which any tokenizer keeps: the
figure that counts is the PSNR over the art itself (alpha mask). The PSNR of
the whole picture and that of a blank picture (the background alone) stand
beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.tokenizer.vqvae import VQVAE


def psnr(mse) -> np.ndarray:
  """dB of a mean squared error of values in [0, 1], at most 100 dB."""
  return -10 * np.log10(np.maximum(np.asarray(mse, np.float64), 1e-10))


def masked_mse(x_BHW3, y_BHW3, mask_BHW):
  """Mean squared error per picture, weighted by the mask; float32 [B].

  Args:
    x_BHW3: pictures in [0, 1].
    y_BHW3: pictures in [0, 1].
    mask_BHW: weights >= 0; a picture without any weight gives nan.
  """
  error_BHW = ((x_BHW3 - y_BHW3) ** 2).mean(-1)
  return (error_BHW * mask_BHW).sum((1, 2)) / mask_BHW.sum((1, 2))


@dataclasses.dataclass
class Pictures:
  """Pictures to reconstruct.

  image: uint8 [N, H, W, 3].
  alpha: float32 [N, H, W] in [0, 1], the weight of the art in each pixel.
  blank: uint8 [N, H, W, 3], the same pictures without the art.
  """

  image: np.ndarray
  alpha: np.ndarray
  blank: np.ndarray

  def __len__(self) -> int:
    return len(self.image)


@dataclasses.dataclass
class ReconstructionReport:
  """What `evaluate_reconstruction` found; PSNR in dB.

  mse: name -> float64 [N] mean squared error per picture of values in
    [0, 1]: "art", "whole", "blank_art", "blank_whole".
  counts_KV: how often scale k used code v, of the codes that are counted
    (`VQVAEConfig.counted_codes`); None of a continuous autoencoder.
  scale_mse_KN: art mse of the picture after every scale, first N' pictures;
    of a continuous autoencoder of the one that there is.
  """

  mse: dict[str, np.ndarray]
  counts_KV: np.ndarray | None
  scale_mse_KN: np.ndarray

  def to_dict(self) -> dict:
    """JSON form. `psnr` is the mean over pictures of the PSNR of each,
    `psnr_pooled` the PSNR of the mean error (never larger). "codebook" is there
    if there is one."""
    out = {
      "n": len(self.mse["art"]),
      "psnr": {k: float(psnr(v).mean()) for k, v in self.mse.items()},
      "psnr_pooled": {k: float(psnr(v.mean())) for k, v in self.mse.items()},
      "psnr_art_percentiles": {
        str(q): float(np.percentile(psnr(self.mse["art"]), q))
        for q in (5, 25, 50, 75, 95)
      },
      "psnr_art_after_scale": [
        float(x) for x in psnr(self.scale_mse_KN).mean(1)
      ],
    }
    if self.counts_KV is not None:
      out["codebook"] = _usage(self.counts_KV)
    return out


def _usage(counts_KV: np.ndarray) -> dict:
  counts_V = counts_KV.sum(0)
  return {
    "size": int(counts_KV.shape[1]),
    "used_share": float((counts_V > 0).mean()),
    "used_share_per_scale": [float(x) for x in (counts_KV > 0).mean(1)],
    "perplexity": float(np.exp(_entropy(counts_V))),
    "entropy_per_scale": [float(_entropy(c)) for c in counts_KV],
    "tokens": int(counts_V.sum()),
  }


def _entropy(counts_V: np.ndarray) -> float:
  """Nats of a code drawn as these were."""
  share_V = counts_V / max(counts_V.sum(), 1)
  return -np.sum(share_V * np.log(np.maximum(share_V, 1e-30)))


def padded_batches(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Index arrays of one fixed length (the last repeats 0) and their count."""
  for start in range(0, n, size):
    index = np.zeros(size, np.int64)
    valid = min(size, n - start)
    index[:valid] = np.arange(start, start + valid)
    yield index, valid


def reconstruct(vqvae: VQVAE, params, batch_size: int) -> Callable:
  """A function uint8 [N, H, W, 3] -> (uint8 [N, H, W, 3], int32 [N, L]).

  It compiles once, whatever N is. Of a continuous autoencoder L is 0.
  """

  @jax.jit
  def step(params, image_BHW3):
    x_BHW3 = image_BHW3.astype(jnp.float32) / 127.5 - 1
    if _continuous(vqvae):
      idx_BL = jnp.zeros((len(x_BHW3), 0), jnp.int32)
      y_BHW3 = vqvae.apply(
        {"params": params}, x_BHW3, method="reconstruct_scales"
      )[-1]
    else:
      idx_BL = vqvae.apply({"params": params}, x_BHW3, method="encode")
      y_BHW3 = vqvae.apply({"params": params}, idx_BL, method="tokens_to_image")
    return jnp.round((y_BHW3 + 1) * 127.5).astype(jnp.uint8), idx_BL

  def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, tokens = [], []
    for index, valid in padded_batches(len(image), batch_size):
      y, idx = step(params, image[index])
      images.append(np.asarray(y)[:valid])
      tokens.append(np.asarray(idx)[:valid])
    return np.concatenate(images), np.concatenate(tokens)

  return run


def _continuous(vqvae: VQVAE) -> bool:
  return vqvae.config.quantizer == "none"


def evaluate_reconstruction(
  vqvae: VQVAE,
  params,
  pictures: Pictures,
  *,
  batch_size: int,
  num_scale_pictures: int,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReconstructionReport:
  """Reconstruction error and codebook use over `pictures`.

  Args:
    vqvae: the tokenizer module.
    params: its parameters.
    pictures: what to reconstruct; their size is the tokenizer's image size.
    batch_size: pictures per step.
    num_scale_pictures: how many pictures are also decoded after every scale
      (K decodings each).
    progress: called with (pictures done, pictures in all).

  Raises:
    ValueError: no pictures, or pictures of another size.
  """
  _check_size(vqvae, pictures)
  # A latent without tokens uses no codes.
  spans = () if _continuous(vqvae) else vqvae.config.schedule.begin_ends
  run = reconstruct(vqvae, params, batch_size)
  mse = {k: [] for k in ("art", "whole", "blank_art", "blank_whole")}
  codes = vqvae.config.counted_codes
  counts_KV = np.zeros((len(spans), codes), np.int64)
  for start in range(0, len(pictures), batch_size):
    part = slice(start, start + batch_size)
    recon, idx_BL = run(pictures.image[part])
    for name, error in picture_errors(pictures, part, recon).items():
      mse[name].append(error)
    for k, (begin, end) in enumerate(spans):
      counts_KV[k] += np.bincount(
        idx_BL[:, begin:end].reshape(-1) % codes, minlength=codes
      )
    progress(min(start + batch_size, len(pictures)), len(pictures))
  scale_mse_KN = _per_scale_mse(
    vqvae, params, pictures, min(num_scale_pictures, len(pictures)), batch_size
  )
  return ReconstructionReport(
    {k: np.concatenate(v).astype(np.float64) for k, v in mse.items()},
    counts_KV if spans else None,
    scale_mse_KN,
  )


def _check_size(vqvae: VQVAE, pictures: Pictures) -> None:
  if not len(pictures):
    raise ValueError("No pictures were given to measure the tokenizer on.")
  size = tuple(vqvae.config.image_size)
  if pictures.image.shape[1:3] != size:
    raise ValueError(
      f"The tokenizer takes pictures of {size[0]} x {size[1]} pixels, got"
      f" {pictures.image.shape[1]} x {pictures.image.shape[2]}."
    )


def _unit(image: np.ndarray) -> np.ndarray:
  return image.astype(np.float32) / 255


def picture_errors(
  pictures: Pictures, part: slice, recon: np.ndarray
) -> dict[str, np.ndarray]:
  """The four errors of a batch, each float32 [B]."""
  image, blank = _unit(pictures.image[part]), _unit(pictures.blank[part])
  alpha = pictures.alpha[part]
  whole = np.ones_like(alpha)
  return {
    "art": masked_mse(image, _unit(recon), alpha),
    "whole": masked_mse(image, _unit(recon), whole),
    "blank_art": masked_mse(image, blank, alpha),
    "blank_whole": masked_mse(image, blank, whole),
  }


def _per_scale_mse(vqvae, params, pictures, n, batch_size) -> np.ndarray:
  """Art mse [K, n] of the pictures after every scale."""

  @jax.jit
  def step(params, image_BHW3, alpha_BHW):
    x_BHW3 = image_BHW3.astype(jnp.float32) / 127.5 - 1
    y_KBHW3 = vqvae.apply(
      {"params": params}, x_BHW3, method="reconstruct_scales"
    )
    return jnp.stack(
      [masked_mse((x_BHW3 + 1) / 2, (y + 1) / 2, alpha_BHW) for y in y_KBHW3]
    )

  out = []
  for index, valid in padded_batches(n, min(batch_size, max(n, 1))):
    mse_KB = step(params, pictures.image[index], pictures.alpha[index])
    out.append(np.asarray(mse_KB)[:, :valid])
  if not out:
    return np.zeros((vqvae.config.schedule.num_scales, 0))
  return np.concatenate(out, axis=1)
