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
) -> Law:
  """The law of least Huber loss.

  Args:
    x_nt: positive, [n] or [n, t].
    y_n: positive.
    floor: whether there is an irreducible part; else it is 0.
    huber: see HUBER.

  Raises:
    ValueError: too few different points, or values that are not positive.
  """
  x_nt, y_n = columns(x_nt), np.asarray(y_n, np.float64)
  _check(x_nt, y_n)
  centre = np.exp(np.log(x_nt).mean(0))
  search = _Search(np.log(x_nt / centre), y_n.min(), floor, huber)
  starts = np.stack(_starts(x_nt / centre, y_n, floor))
  log_y_n = np.log(y_n)
  near, cost = search.descend(starts, np.tile(log_y_n, (len(starts), 1)))
  best = optimize.least_squares(
    lambda theta: search.residuals(theta[None], log_y_n[None])[0][0],
    near[cost.argmin()],
    jac=lambda theta: search.residuals(theta[None], log_y_n[None])[1][0],
    loss="huber",
    f_scale=huber,
    x_scale="jac",
    max_nfev=100,
  )
  return search.law(best.x, centre)


@dataclasses.dataclass(frozen=True)
class _Search:
  """What is minimised, for many sets of numbers (r) at once.

  theta_rp: log levels, exponents and, with a floor, the logit of its share of
  `least`. log_x_nt: about its centre.
  """

  log_x_nt: np.ndarray
  least: float
  floor: bool
  huber: float

  def residuals(self, theta_rp: np.ndarray, log_y_rn: np.ndarray):
    """Residuals of log L [r, n] and their derivatives [r, n, p]."""
    terms = self.log_x_nt.shape[1]
    alpha_r1t = theta_rp[:, None, terms : 2 * terms]
    power_rnt = theta_rp[:, None, :terms] + alpha_r1t * self.log_x_nt
    parts_rnt = np.exp(np.clip(power_rnt, -300, 300))
    low_r1, slopes = 0.0, []
    if self.floor:
      share_r1 = 1 / (1 + np.exp(-np.clip(theta_rp[:, -1:], -30, 30)))
      low_r1 = self.least * share_r1
    found_rn = parts_rnt.sum(-1) + low_r1
    relative_rnt = parts_rnt / found_rn[..., None]
    slopes = [relative_rnt, relative_rnt * self.log_x_nt]
    if self.floor:
      slopes.append((low_r1 * (1 - share_r1) / found_rn)[..., None])
    return np.log(found_rn) - log_y_rn, np.concatenate(slopes, -1)

  def _cost(self, residual_rn: np.ndarray) -> np.ndarray:
    far_rn = np.abs(residual_rn)
    inside_rn = np.minimum(far_rn, self.huber)
    return (inside_rn * (far_rn - inside_rn / 2)).sum(-1)

  def descend(
    self, theta_rp: np.ndarray, log_y_rn: np.ndarray, steps: int = 60
  ) -> tuple[np.ndarray, np.ndarray]:
    """Damped Gauss-Newton steps from each set of numbers for its values.

    Returns:
      The numbers and their Huber losses [r].
    """
    damping_r = np.full(len(theta_rp), 1e-2)
    residual_rn, slope_rnp = self.residuals(theta_rp, log_y_rn)
    cost_r = self._cost(residual_rn)
    for _ in range(steps):
      weight_rn = self.huber / np.maximum(np.abs(residual_rn), self.huber)
      weighted_rnp = slope_rnp * weight_rn[..., None]
      square_rpp = np.einsum("rnp,rnq->rpq", weighted_rnp, slope_rnp)
      gradient_rp = np.einsum("rnp,rn->rp", weighted_rnp, residual_rn)
      diagonal_rp = np.einsum("rpp->rp", square_rpp)
      added_rp = damping_r[:, None] * (diagonal_rp + 1e-9)
      square_rpp = square_rpp + added_rp[..., None] * np.eye(theta_rp.shape[1])
      step_rp = np.linalg.solve(square_rpp, gradient_rp[..., None])[..., 0]
      tried_rp = theta_rp - np.clip(step_rp, -2, 2)
      residual, slope = self.residuals(tried_rp, log_y_rn)
      cost = self._cost(residual)
      better_r = cost < cost_r
      theta_rp = np.where(better_r[:, None], tried_rp, theta_rp)
      residual_rn = np.where(better_r[:, None], residual, residual_rn)
      slope_rnp = np.where(better_r[:, None, None], slope, slope_rnp)
      cost_r = np.where(better_r, cost, cost_r)
      damping_r = damping_r * np.where(better_r, 0.3, 5.0)
      damping_r = np.clip(damping_r, 1e-9, 1e6)
    return theta_rp, cost_r

  def law(self, theta_p: np.ndarray, centre: np.ndarray) -> Law:
    """As a law of X instead of log X about its centre."""
    terms, low = self.log_x_nt.shape[1], 0.0
    if self.floor:
      low = self.least / (1 + np.exp(-np.clip(theta_p[-1], -30, 30)))
    level, alpha = np.exp(theta_p[:terms]), theta_p[terms : 2 * terms]
    return Law(*(tuple(v.tolist()) for v in (centre, level, alpha)), float(low))


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
  rng = np.random.default_rng(seed)
  drawn_rn = rng.choice(residuals_n, (resamples, len(y_n))) + np.log(means_n)
  centre = np.asarray(law.centre)
  search = _Search(np.log(x_nt / centre), y_n.min(), floor, huber)
  start_rp = np.tile(_pack(law, y_n.min(), floor), (resamples, 1))
  theta_rp, _ = search.descend(start_rp, drawn_rn)
  laws = tuple(search.law(theta_p, centre) for theta_p in theta_rp)
  return Bootstrap(law, laws, residuals_n)


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
