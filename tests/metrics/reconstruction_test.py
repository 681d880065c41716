"""Reconstruction measures against direct computation on a tiny tokenizer."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.metrics import reconstruction as rec
from star_jax.scales import ScaleSchedule


class PooledGray:
  """A tokenizer small enough to compile at once: gray levels of three grids.

  Scale k is the average gray of each cell in 32 levels; the picture is the
  finest grid (in the picture after scale k: grid k), repeated.
  """

  config = SimpleNamespace(
    schedule=ScaleSchedule.from_patch_nums((1, 2, 4)),
    vocab_size=32,
    counted_codes=32,
    image_size=(8, 8),
    quantizer="vq",
  )

  def apply(self, variables, x, method):
    return getattr(self, method)(x)

  def encode(self, x):
    tokens = []
    for n, _ in self.config.schedule.grids:
      cells = x.reshape(x.shape[0], n, 8 // n, n, 8 // n, 3)
      gray = cells.mean((2, 4, 5)).reshape(x.shape[0], -1)
      tokens.append(jnp.round((gray + 1) * 15.5).astype(jnp.int32))
    return jnp.concatenate(tokens, axis=1)

  def _picture(self, idx, k):
    begin, end = self.config.schedule.begin_ends[k]
    n = self.config.schedule.grids[k][0]
    gray = idx[:, begin:end].reshape(-1, n, n, 1) / 15.5 - 1
    gray = gray.repeat(8 // n, 1).repeat(8 // n, 2)
    return jnp.broadcast_to(gray, (*gray.shape[:3], 3))

  def tokens_to_image(self, idx):
    return self._picture(idx, 2)

  def reconstruct_scales(self, x):
    idx = self.encode(x)
    return jnp.stack([self._picture(idx, k) for k in range(3)])


@pytest.fixture(scope="module")
def tokenizer():
  return PooledGray(), {}


@pytest.fixture(scope="module")
def pictures():
  rng = np.random.default_rng(0)
  blank = np.broadcast_to(
    rng.integers(0, 255, (5, 1, 1, 3)), (5, 8, 8, 3)
  ).astype(np.uint8)
  alpha = np.zeros((5, 8, 8), np.float32)
  alpha[:, 2:6, 2:6] = 1
  alpha[:, 2] *= 0.5
  art = rng.integers(0, 255, (5, 8, 8, 3))
  image = alpha[..., None] * art + (1 - alpha[..., None]) * blank
  return rec.Pictures(np.round(image).astype(np.uint8), alpha, blank)


def _evaluate(tokenizer, pictures, **kwargs):
  settings = {"batch_size": 2, "num_scale_pictures": 3} | kwargs
  return rec.evaluate_reconstruction(*tokenizer, pictures, **settings)


def test_psnr():
  assert rec.psnr(0.01) == pytest.approx(20)
  assert rec.psnr(0) == pytest.approx(100)


def test_mask_selects_the_art():
  x = np.zeros((1, 4, 4, 3))
  y = x.copy()
  y[:, :2] = 0.1  # 20 dB where the mask is, twice that elsewhere
  y[:, 2:] = 0.2
  mask = np.zeros((1, 4, 4))
  mask[:, :2] = 1
  assert rec.psnr(rec.masked_mse(x, y, mask)) == pytest.approx(20)
  mask[:, 2:] = 1
  mse = (0.1**2 + 0.2**2) / 2
  np.testing.assert_allclose(rec.masked_mse(x, y, mask), mse)


def test_blank_baseline_is_the_background(tokenizer, pictures):
  report = _evaluate(tokenizer, pictures)
  error = (pictures.image / 255.0 - pictures.blank / 255.0) ** 2
  error = error.mean(-1)
  alpha = pictures.alpha
  art = (error * alpha).sum((1, 2)) / alpha.sum((1, 2))
  np.testing.assert_allclose(report.mse["blank_art"], art, rtol=1e-4)
  np.testing.assert_allclose(
    report.mse["blank_whole"], error.mean((1, 2)), rtol=1e-4
  )


def test_counts_and_last_scale(tokenizer, pictures):
  report = _evaluate(tokenizer, pictures)
  assert report.counts_KV.sum(1).tolist() == [5 * 1, 5 * 4, 5 * 16]
  assert report.scale_mse_KN.shape == (3, 3)
  # Rounding to 8 bits is all that differs.
  np.testing.assert_allclose(
    report.scale_mse_KN[-1], report.mse["art"][:3], rtol=0.05
  )
  out = report.to_dict()
  assert out["n"] == 5 and out["codebook"]["tokens"] == 105
  used = len(np.nonzero(report.counts_KV.sum(0))[0])
  assert out["codebook"]["used_share"] == used / 32
  assert 1 <= out["codebook"]["perplexity"] <= used
  share = report.counts_KV[2] / 80
  want = -sum(p * np.log(p) for p in share if p)
  np.testing.assert_allclose(out["codebook"]["entropy_per_scale"][2], want)
  assert out["psnr"]["art"] >= out["psnr_pooled"]["art"]


def test_batch_size_does_not_matter(tokenizer, pictures):
  a = _evaluate(tokenizer, pictures)
  b = _evaluate(tokenizer, pictures, batch_size=4)
  np.testing.assert_array_equal(a.counts_KV, b.counts_KV)
  np.testing.assert_allclose(a.mse["art"], b.mse["art"], rtol=1e-6)


def test_bad_pictures(tokenizer):
  empty = rec.Pictures(
    *(np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 8, 8))), np.zeros((0,))
  )
  with pytest.raises(ValueError, match="No pictures"):
    _evaluate(tokenizer, empty)
  big = rec.Pictures(
    np.zeros((1, 16, 8, 3), np.uint8), np.ones((1, 16, 8)), np.zeros((1,))
  )
  with pytest.raises(ValueError, match="8 x 8 pixels, got 16 x 8"):
    _evaluate(tokenizer, big)
