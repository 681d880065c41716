"""Power laws: known exponents come back, intervals cover, refusals."""

import numpy as np
import pytest

from star_jax.scaling import laws

SIZES = np.array([1e5, 2.5e5, 5e5, 1e6, 2.2e6])


def noisy(law, x, seeds, noise, rng):
  """(x, y) of `seeds` runs at each x."""
  x = np.repeat(x, seeds, axis=0)
  return x, law(x) * np.exp(noise * rng.standard_normal(len(x)))


def made(alpha, beta, floor):
  return laws.Law((1 / beta,), (1.0,), (alpha,), floor)


def test_a_law_is_what_it_says():
  law = made(-0.3, 1e-4, 0.8)
  np.testing.assert_allclose(law(SIZES), 0.8 + (1e-4 * SIZES) ** -0.3)
  assert law.beta[0] == pytest.approx(1e-4)


@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_known_exponents_come_back(floor):
  law = made(-0.31, 2e-4, floor)
  fitted = laws.fit_law(SIZES, law(SIZES), floor=floor > 0)
  assert fitted.alpha[0] == pytest.approx(-0.31, abs=1e-4)
  assert fitted.beta[0] == pytest.approx(2e-4, rel=1e-2)
  assert fitted.floor == pytest.approx(floor, abs=1e-3)


def test_noise_moves_the_exponent_little_and_outliers_less_than_squares():
  rng = np.random.default_rng(0)
  x, y = noisy(made(-0.2, 1e-3, 0.0), SIZES, 3, 0.004, rng)
  assert laws.fit_law(x, y, floor=False).alpha[0] == pytest.approx(
    -0.2, abs=0.01
  )
  y[0] *= 1.3
  robust = laws.fit_law(x, y, floor=False).alpha[0]
  squares = np.polyfit(np.log(x), np.log(y), 1)[0]
  assert abs(robust + 0.2) < abs(squares + 0.2) / 3


def test_two_variables_come_back():
  law = laws.Law((1e6, 1e7), (0.5, 0.3), (-0.4, -0.25), 1.1)
  n, d = np.meshgrid(SIZES, [1e6, 2e6, 4e6, 8e6, 16e6])
  x = np.stack([n.ravel(), d.ravel()], 1)
  fitted = laws.fit_law(x, law(x), floor=True)
  np.testing.assert_allclose(fitted.alpha, law.alpha, atol=5e-3)
  assert fitted.floor == pytest.approx(1.1, abs=0.02)
  np.testing.assert_allclose(fitted(x), law(x), rtol=1e-4)


def test_intervals_cover_exponent_and_new_runs():
  """Of 30 sweeps, about 90% of the intervals hold what they are of."""
  law, rng = made(-0.25, 1e-3, 0.0), np.random.default_rng(1)
  new, exponent, predicted = 5e6, 0, 0
  for trial in range(30):
    x, y = noisy(law, SIZES, 2, 0.005, rng)
    found = laws.bootstrap(x, y, floor=False, resamples=60, seed=trial)
    low, high = found.interval(lambda one: one.alpha[0])
    exponent += low <= -0.25 <= high
    _, fresh = noisy(law, np.array([new]), 2, 0.005, rng)
    draws = found.predictions(new, 2, np.random.default_rng(trial))
    low, high = laws.quantiles(draws, 0.9)
    predicted += low <= fresh.mean() <= high
  assert exponent >= 22 and predicted >= 22
  # Not by being as wide as can be.
  assert exponent + predicted < 60


def test_pearson_is_of_logarithms():
  assert laws.pearson(SIZES, made(-0.2, 1e-3, 0)(SIZES)) == pytest.approx(-1)


def test_the_frontier_is_what_nothing_cheaper_reaches():
  cost = np.array([4.0, 1.0, 2.0, 3.0, 2.0])
  loss = np.array([1.0, 3.0, 2.5, 2.7, 2.0])
  assert laws.frontier(cost, loss).tolist() == [1, 4, 0]


@pytest.mark.parametrize(
  "x, y, match",
  [
    ([1.0], [1.0], "at least 3 different values .* got 1"),
    ([1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 2.0, 2.0], "got 2"),
    ([1.0, 2.0, 3.0], [1.0, np.nan, 1.0], "positive finite"),
    ([0.0, 2.0, 3.0], [1.0, 1.0, 1.0], "positive finite"),
  ],
)
def test_what_no_law_can_be_fitted_to_is_refused(x, y, match):
  with pytest.raises(ValueError, match=match):
    laws.fit_law(np.array(x), np.array(y), floor=False)
