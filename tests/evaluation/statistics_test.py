"""Streamed sums against numpy on all features at once."""

import numpy as np
import pytest
from scipy import linalg

from star_jax.evaluation import reservoir
from star_jax.evaluation.class_score import ClassSums, draw_splits
from star_jax.evaluation.distances import (
  frechet_distance,
  kernel_subsets,
  precision_recall,
)
from star_jax.evaluation.moments import Moments
from star_jax.evaluation.reservoir import Reservoir
from star_jax.metrics.kid import kernel_distance


def features(n, width=6, shift=0.0, seed=0):
  rng = np.random.default_rng(seed)
  mix = rng.standard_normal((width, width))
  out = rng.standard_normal((n, width)) @ mix + shift
  return out.astype(np.float32)


def test_moments_of_batches_are_those_of_all():
  x = features(101, shift=30.0)
  parts = Moments.empty(6)
  for start in range(0, 50, 7):
    parts.add(x[start : min(start + 7, 50)])
  both = parts.merged(Moments.of(x[50:]))
  wide = x.astype(np.float64)
  np.testing.assert_allclose(both.mean, wide.mean(0), rtol=1e-12)
  np.testing.assert_allclose(
    both.covariance, np.cov(wide, rowvar=False), rtol=1e-9, atol=1e-9
  )
  back = Moments.from_arrays(both.arrays("pool"), "pool")
  assert back.count == 101
  np.testing.assert_array_equal(back.outer_DD, both.outer_DD)
  given = Moments.from_statistics(both.mean, both.covariance)
  np.testing.assert_allclose(given.covariance, both.covariance, atol=1e-9)


def test_features_that_are_not_finite_are_refused():
  x = features(5)
  x[2, 1] = np.nan
  moments = Moments.empty(6)
  with pytest.raises(ValueError, match="features of 1 of 5 pictures are not"):
    moments.add(x)
  assert moments.count == 0


def test_frechet_distance_is_that_of_the_matrix_square_root():
  a, b = features(400), features(300, shift=0.5, seed=1)
  cov = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = linalg.sqrtm(cov[0] @ cov[1]).real
  shift = a.mean(0) - b.mean(0)
  expected = shift @ shift + np.trace(cov[0] + cov[1] - 2 * root)
  found = frechet_distance(Moments.of(a), Moments.of(b))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert abs(frechet_distance(Moments.of(a), Moments.of(a))) < 1e-6


def test_frechet_distance_of_fewer_pictures_than_features():
  few = Moments.of(features(4, width=40))
  many = Moments.of(features(200, width=40, seed=3))
  assert np.isfinite(frechet_distance(few, many))
  with pytest.raises(ValueError, match="at least 2 pictures"):
    frechet_distance(Moments.of(features(1)), Moments.of(features(9)))
  with pytest.raises(ValueError, match="widths are 40 and 6"):
    frechet_distance(many, Moments.of(features(9)))


def test_reservoir_does_not_depend_on_batches_and_is_bounded(monkeypatch):
  x, index = features(500), np.arange(500)
  whole = Reservoir.empty(64, 3, 6)
  whole.add(index, x)
  parts = Reservoir.empty(64, 3, 6)
  for start in (250, 0, 125, 375):
    monkeypatch.setattr(reservoir, "_ROWS", 100 + start)
    parts.add(index[start : start + 125], x[start : start + 125])
  np.testing.assert_array_equal(whole.index_R, parts.index_R)
  np.testing.assert_array_equal(whole.rows_RD, x[whole.index_R])
  assert len(parts.rows_RD) == 64
  # A fair sample: its numbers are spread over the stream.
  assert 150 < whole.index_R.mean() < 350
  all_kept = Reservoir.empty(500, 3, 6)
  all_kept.add(index, x)
  np.testing.assert_array_equal(all_kept.rows_RD, x)


def test_class_score_of_batches_is_that_of_all():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((53, 7)) * 3
  splits = draw_splits(53, 5, seed=2020)
  sums = ClassSums.empty(5, 7)
  for start in range(0, 53, 10):
    part = slice(start, start + 10)
    sums.add(splits[part], logits[part])
  # By its definition, on shuffled pictures.
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  p = p[np.random.RandomState(2020).permutation(53)]
  scores = []
  for s in range(5):
    chunk = p[s * 53 // 5 : (s + 1) * 53 // 5]
    kl = chunk * (np.log(chunk) - np.log(chunk.mean(0)))
    scores.append(np.exp(kl.sum(1).mean()))
  found = sums.score()
  np.testing.assert_allclose(found, (np.mean(scores), np.std(scores)))
  with pytest.raises(ValueError, match="at least 10 pictures, got 3"):
    draw_splits(3, 10, 0)


def test_kernel_subsets_of_everything_are_the_distance_itself():
  x, y = features(30), features(30, shift=1, seed=2)
  mean, std = kernel_subsets(x, y, 3, 30, seed=0)
  np.testing.assert_allclose(mean, kernel_distance(x, y))
  assert std < 1e-9
  with pytest.raises(ValueError, match="subsets of 31 pictures, got 30 and 30"):
    kernel_subsets(x, y, 3, 31, seed=0)


def test_precision_and_recall_by_brute_force():
  real, fake = features(60), features(50, shift=1.5, seed=4)

  def within(x, manifold):
    d = np.linalg.norm(manifold[:, None] - manifold[None], axis=-1)
    radius = np.sort(d, axis=1)[:, 3]
    far = np.linalg.norm(x[:, None] - manifold[None], axis=-1)
    return (far <= radius).any(1).mean()

  found = precision_recall(real, fake, 3)
  assert found == (within(fake, real), within(real, fake))
  # One picture again and again: precise, and nothing is recalled.
  same = np.repeat(real[:1], 20, 0)
  precision, recall = precision_recall(real, same, 3)
  assert precision == 1 and recall < 0.1
  with pytest.raises(ValueError, match="at least 4 pictures"):
    precision_recall(real, fake[:3], 3)
