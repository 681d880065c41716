"""Power laws of a loss or an error rate, fitted in log space.

  L = (beta X)^alpha                 VAR, arXiv 2404.02905, section 5.1
  L = L0 + (beta X)^alpha            with a part that no size takes away
  L = L0 + (beta N)^alpha + (gamma D)^delta     arXiv 2203.15556, approach 3

All three are one form: a floor and one term a variable. What is minimised is
the Huber loss of log L, as in approach 3.

n: points, t: variables.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import optimize

# From here on a residual of log L counts by its size and not by its square.
HUBER = 0.01
# Different values of a variable that a law is fitted to, at least.
FEWEST = 3
# Where fits start: floors as shares of the smallest loss, and exponents.
_FLOORS = (0.05, 0.4, 0.7, 0.85, 0.95)
_ALPHAS = (-0.1, -0.3, -0.7)


@dataclasses.dataclass(frozen=True)
class Law:
  """L = floor + sum over t of level_t (X_t / centre_t)^alpha_t.

  centre is the geometric mean of what was fitted; a term is (beta X)^alpha.
  """

  centre: tuple[float, ...]
  level: tuple[float, ...]
  alpha: tuple[float, ...]
  floor: float

  @property
  def beta(self) -> tuple[float, ...]:
    """Of each term; 0 or infinite where it is flat."""
    with np.errstate(divide="ignore", over="ignore"):
      log_beta = np.log(self.level) / self.alpha - np.log(self.centre)
      return tuple(np.exp(log_beta).tolist())

  def __call__(self, x_nt: np.ndarray) -> np.ndarray:
    """float64 [n] losses of points [n, t]; [n] where there is one variable."""
    ratio_nt = columns(x_nt) / self.centre
    with np.errstate(over="ignore"):
      terms_nt = np.asarray(self.level) * ratio_nt**self.alpha
    return self.floor + terms_nt.sum(1)

  def to_dict(self) -> dict:
    """JSON-able."""
    return {"alpha": self.alpha, "beta": self.beta, "floor": self.floor}


def columns(x_nt: np.ndarray) -> np.ndarray:
  """float64 [n, t]; a single variable may come as [n]."""
  x_nt = np.asarray(x_nt, np.float64)
  return x_nt[:, None] if x_nt.ndim == 1 else x_nt


def pearson(x_n: np.ndarray, y_n: np.ndarray) -> float:
  """Of log X and log L, as VAR reports it beside each of its fits."""
  return float(np.corrcoef(np.log(x_n), np.log(y_n))[0, 1])


def fit_law(
  x_nt: np.ndarray,
  y_n: np.ndarray,
  *,
  floor: bool,
  huber: float = HUBER,
  start: Law | None = None,
) -> Law:
  """The law of least Huber loss.

  Args:
    x_nt: positive, [n] or [n, t].
    y_n: positive.
    floor: whether there is an irreducible part; else it is 0.
    huber: see HUBER.
    start: of a similar fit, which saves the search; its centre is kept.

  Raises:
    ValueError: too few different points, or values that are not positive.
  """
  x_nt, y_n = columns(x_nt), np.asarray(y_n, np.float64)
  _check(x_nt, y_n)
  if start is None:
    centre = np.exp(np.log(x_nt).mean(0))
    starts = _starts(x_nt / centre, y_n, floor)
  else:
    centre = np.asarray(start.centre)
    starts = [_pack(start, y_n.min(), floor)]
  log_x_nt, log_y_n = np.log(x_nt / centre), np.log(y_n)
  least = y_n.min()

  def residuals(theta):
    level, alpha, low = _unpack(theta, x_nt.shape[1], least, floor)
    with np.errstate(over="ignore"):
      found = low + (level * np.exp(alpha * log_x_nt)).sum(1)
    return np.clip(np.log(np.maximum(found, 1e-300)) - log_y_n, -1e3, 1e3)

  found = [
    optimize.least_squares(
      residuals, theta, loss="huber", f_scale=huber, x_scale="jac", max_nfev=400
    )
    for theta in starts
  ]
  best = min(found, key=lambda result: result.cost)
  level, alpha, low = _unpack(best.x, x_nt.shape[1], least, floor)
  as_tuple = lambda x: tuple(np.asarray(x, float).tolist())  # noqa: E731
  return Law(as_tuple(centre), as_tuple(level), as_tuple(alpha), float(low))


def _check(x_nt: np.ndarray, y_n: np.ndarray) -> None:
  for values_n in (*x_nt.T, y_n):
    if not (np.isfinite(values_n).all() and (values_n > 0).all()):
      raise ValueError("A power law is fitted to positive finite figures only.")
  fewest = min(len(np.unique(values_n)) for values_n in x_nt.T)
  if fewest < FEWEST:
    raise ValueError(
      f"A power law needs at least {FEWEST} different values to be fitted to,"
      f" got {fewest}."
    )


def _unpack(theta, terms: int, least: float, floor: bool):
  """(level, alpha, floor) of the numbers that are searched: log levels,
  exponents, and the logit of the floor's share of the smallest loss."""
  level, alpha = np.exp(theta[:terms]), theta[terms : 2 * terms]
  low = least / (1 + np.exp(-theta[-1])) if floor else 0.0
  return level, alpha, low


def _pack(law: Law, least: float, floor: bool) -> np.ndarray:
  theta = [*np.log(law.level), *law.alpha]
  if floor:
    share = np.clip(law.floor / least, 1e-6, 1 - 1e-6)
    theta.append(np.log(share / (1 - share)))
  return np.asarray(theta)


def _starts(x_nt: np.ndarray, y_n: np.ndarray, floor: bool) -> list:
  terms, least = x_nt.shape[1], y_n.min()
  out = []
  for share in _FLOORS if floor else (0.0,):
    level = np.exp(np.log(y_n - share * least * 0.999).mean()) / terms
    for alpha in itertools.product(_ALPHAS, repeat=terms):
      law = Law((1.0,) * terms, (level,) * terms, alpha, share * least)
      out.append(_pack(law, least, floor))
  return out


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """Refits of one law to resampled runs.

  laws: one a resample. residuals_n: of log L, centred and as wide as those of
    new runs would be.
  """

  law: Law
  laws: tuple[Law, ...]
  residuals_n: np.ndarray

  def interval(self, of, level: float = 0.9) -> tuple[float, float]:
    """The middle share `level` of what `of` makes of the refits."""
    return quantiles([of(law) for law in self.laws], level)

  def predictions(self, x_t, seeds: int, rng: np.random.Generator):
    """float64 [resamples]: losses that the mean of so many new runs might
    have, with the scatter of runs as well as that of the fit."""
    x_1t = np.reshape(np.asarray(x_t, np.float64), (1, -1))
    noise = rng.choice(self.residuals_n, (len(self.laws), seeds))
    means = np.array([law(x_1t)[0] for law in self.laws])
    return means * np.exp(noise).mean(1)


def quantiles(values: Sequence[float], level: float) -> tuple[float, float]:
  """The middle share `level` of some values."""
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def bootstrap(
  x_nt: np.ndarray,
  y_n: np.ndarray,
  *,
  floor: bool,
  resamples: int,
  seed: int,
  huber: float = HUBER,
) -> Bootstrap:
  """Fits a law, then again to its own values with the residuals of runs drawn
  anew. Runs of a size are too few to be drawn from alone.

  Residuals are widened by sqrt(n / (n - p)) for the p numbers of the law that
  were fitted to them.
  """
  x_nt, y_n = columns(x_nt), np.asarray(y_n, np.float64)
  law = fit_law(x_nt, y_n, floor=floor, huber=huber)
  means_n = law(x_nt)
  residuals_n = np.log(y_n) - np.log(means_n)
  free = max(len(y_n) - 2 * x_nt.shape[1] - floor, 1)
  residuals_n = residuals_n - residuals_n.mean()
  residuals_n *= np.sqrt(len(y_n) / free)
  rng, laws = np.random.default_rng(seed), []
  for _ in range(resamples):
    drawn_n = means_n * np.exp(rng.choice(residuals_n, len(y_n)))
    laws.append(fit_law(x_nt, drawn_n, floor=floor, huber=huber, start=law))
  return Bootstrap(law, tuple(laws), residuals_n)


def frontier(cost_n: np.ndarray, loss_n: np.ndarray) -> np.ndarray:
  """Numbers of the points that no cheaper or equally dear one is as good as,
  by rising cost: where C is C_min of its loss."""
  order = np.lexsort((loss_n, cost_n))
  best, kept = np.inf, []
  for i in order:
    if loss_n[i] < best:
      best = loss_n[i]
      kept.append(i)
  return np.asarray(kept, int)
