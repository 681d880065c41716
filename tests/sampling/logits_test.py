"""Filters against a sort-based reference, draws against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from star_jax.sampling import logits as L

# Jitted with traced knobs, as the sampler uses them: one compilation each.
filter_top_k = jax.jit(L.filter_top_k)
filter_top_p = jax.jit(L.filter_top_p)


def reference_top_k(row, k):
  """By sorting: the k-th largest is the threshold, ties stay."""
  if k == 0:
    return row
  return np.where(row < np.sort(row)[-k], -np.inf, row)


def reference_top_p(row, p):
  """By sorting and summing: remove while the cumulative sum is <= 1 - p."""
  if p == 0:
    return row
  order = np.argsort(row, kind="stable")
  shifted = np.exp(row[order].astype(np.float64) - row.max())
  cumulative = np.cumsum(shifted / shifted.sum())
  out = row.copy()
  for place in order[:-1][cumulative[:-1] <= 1 - p]:
    out[place] = -np.inf
  return out


@pytest.fixture(scope="module")
def logits_BlV():
  rng = np.random.default_rng(0)
  logits = 3 * rng.standard_normal((2, 5, 37)).astype(np.float32)
  logits[0, 0] -= 40.0  # all negative
  logits[1, 1, 3:30] = -np.inf  # filtered before
  return logits


@pytest.mark.parametrize("k", [0, 1, 2, 10, 36, 37])
def test_top_k_equals_sorting(logits_BlV, k):
  found = filter_top_k(logits_BlV, k)
  expected = np.apply_along_axis(reference_top_k, -1, logits_BlV, k)
  np.testing.assert_array_equal(found, expected)


def test_top_k_keeps_ties_at_the_threshold_and_both_zeros():
  row = np.asarray([[[1.0, 2.0, 2.0, -0.0, 0.0, -1.0]]], np.float32)

  def kept(k):
    return np.isfinite(filter_top_k(row, k))[0, 0]

  np.testing.assert_array_equal(kept(1), [0, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(kept(3), [1, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(kept(4), [1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_equals_sorting(logits_BlV, p):
  found = filter_top_p(logits_BlV, p)
  expected = np.apply_along_axis(reference_top_p, -1, logits_BlV, p)
  np.testing.assert_array_equal(found, expected)
  assert np.isfinite(found).any(-1).all()


def test_top_p_treats_equal_probabilities_alike():
  row = jnp.log(jnp.asarray([[[0.4, 0.2, 0.2, 0.2]]]))
  kept = np.isfinite(filter_top_p(row, 0.7))[0, 0]
  np.testing.assert_array_equal(kept, [1, 1, 1, 1])
  kept = np.isfinite(filter_top_p(row, 0.3))[0, 0]
  np.testing.assert_array_equal(kept, [1, 0, 0, 0])


def test_knobs_may_be_traced(logits_BlV):
  both = jax.jit(lambda x, k, p: L.filter_top_p(L.filter_top_k(x, k), p))
  for k, p in [(5, 0.9), (0, 0.5), (37, 1.0)]:
    expected = np.apply_along_axis(reference_top_k, -1, logits_BlV, k)
    expected = np.apply_along_axis(reference_top_p, -1, expected, p)
    np.testing.assert_array_equal(both(logits_BlV, k, p), expected)
  assert both._cache_size() == 1


def test_guide_is_linear_and_off_at_zero():
  cond, null = jnp.asarray([[[1.0, 2.0]]]), jnp.asarray([[[3.0, -1.0]]])
  np.testing.assert_array_equal(L.guide(cond, null, 0.0), cond)
  np.testing.assert_allclose(L.guide(cond, null, 2.0), [[[-3.0, 8.0]]])


def test_noise_of_a_sample_does_not_depend_on_its_neighbours():
  key = jax.random.key(3)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(8))
  noise = L.gumbel_noise(keys, (6, 50))
  for size in (1, 3):
    np.testing.assert_array_equal(
      L.gumbel_noise(keys[:size], (6, 50)), noise[:size]
    )
  assert not np.array_equal(noise[0], noise[1])


def test_draws_follow_the_softmax_and_never_take_a_removed_token():
  row = np.asarray([[[0.3, -np.inf, 1.2, -0.7]]])
  keys = jax.random.split(jax.random.key(1), 4)
  noise = L.gumbel_noise(keys, (5000, 4))
  counts = np.bincount(L.draw(row, noise).reshape(-1), minlength=4)
  assert counts[1] == 0
  expected = np.exp(row[0, 0]) / np.exp(row).sum() * counts.sum()
  live = [0, 2, 3]
  assert stats.chisquare(counts[live], expected[live]).pvalue > 1e-3


def filtered_softmax(row, k, p):
  """float64 [V]: what is drawn from, by sorting."""
  kept = reference_top_p(reference_top_k(row, k), p).astype(np.float64)
  probs = np.exp(kept - kept.max())
  return probs / probs.sum()


@pytest.mark.parametrize(("k", "p"), [(0, 1.0), (12, 1.0), (0, 0.8), (12, 0.8)])
def test_draws_have_the_exact_filtered_distribution(k, p):
  rng = np.random.default_rng(5)
  row = (1.5 * rng.standard_normal(40)).astype(np.float32)
  keys = jax.random.split(jax.random.key(2), 4)

  @jax.jit
  def draw(k, p):
    logits = L.filter_top_p(L.filter_top_k(jnp.asarray(row), k), p)
    return L.draw(logits, L.gumbel_noise(keys, (5000, 40)))

  counts = np.bincount(np.ravel(draw(k, p)), minlength=40)
  probs = filtered_softmax(row, k, p)
  live = probs > 0
  assert counts.sum() == 20_000 and counts[~live].sum() == 0
  assert stats.chisquare(counts[live], 20_000 * probs[live]).pvalue > 1e-3
  # One more token kept would be noticed.
  if not live.all():
    wider = filtered_softmax(row, live.sum() + 1, 1.0)
    live = wider > 0
    assert stats.chisquare(counts[live], 20_000 * wider[live]).pvalue < 1e-6


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_smooth_weights_are_the_formula_of_the_injected_noise(ratio):
  rng = np.random.default_rng(6)
  logits = rng.standard_normal((2, 3, 9))
  logits[0, 1, 4:] = -np.inf
  noise = rng.gumbel(size=logits.shape)
  found = jax.jit(L.smooth_weights, static_argnums=2)(
    jnp.asarray(logits, jnp.float32), jnp.asarray(noise, jnp.float32), ratio
  )
  tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
  exponent = ((1 + ratio) * logits + noise) / tau
  weights = np.exp(exponent - exponent.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(found, weights, atol=2e-5)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_the_largest_smooth_weight_is_a_draw_from_sharper_logits(ratio):
  row = np.asarray([0.3, -np.inf, 1.2, -0.7, 0.9])
  keys = jax.random.split(jax.random.key(4), 4)
  weights = L.smooth_weights(row, L.gumbel_noise(keys, (5000, 5)), ratio)
  counts = np.bincount(np.ravel(weights.argmax(-1)), minlength=5)
  probs = np.exp((1 + ratio) * row)
  probs /= probs.sum()
  live = probs > 0
  assert counts.sum() == 20_000 and counts[~live].sum() == 0
  assert stats.chisquare(counts[live], 20_000 * probs[live]).pvalue > 1e-3
  other = np.exp((2 - ratio) * row[live])
  other *= 20_000 / other.sum()
  assert stats.chisquare(counts[live], other).pvalue < 1e-6


def test_smooth_weights_sum_to_one_and_sharpen_with_the_scale():
  keys = jax.random.split(jax.random.key(0), 4)
  noise = L.gumbel_noise(keys, (30, 8))
  logits = jnp.zeros((4, 30, 8)).at[..., 0].set(-jnp.inf)
  largest = []
  for ratio in (0.0, 0.5, 1.0):
    weights = L.smooth_weights(logits, noise, ratio)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert float(weights[..., 0].max()) == 0.0
    largest.append(float(weights.max(-1).mean()))
  assert largest[0] < largest[1] < largest[2]
