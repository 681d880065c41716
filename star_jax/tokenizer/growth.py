"""A trained tokenizer under another schedule: the same weights, other grids.

A convolutional tokenizer takes pictures of any size. Three things hang on the
schedule: which phi a scale uses, what a code costs at a scale (`rate_weight`,
`rate_KV`) or is multiplied by (`log_gain_KCv`), and of course what the grids
cover.

The phi of scale k is the one nearest to k / (K - 1), so that another K moves
scales to other phi: with four, scale 9 of 10 has the last one and scale 9 of 14
the third. The authors' code leaves it at that, or makes 14 phi of four by a
list of its own (STAR-T2I, utils/weights.py; golden README, rules 3 and 34).

K: scales, V: codebook size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from star_jax.scales import ScaleSchedule, rows_by_side
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import num_phi, phi_indices

# "position": the rule above; "side": that of the old scale whose map is nearest
# in size; "official": the authors' list.
PHI_WAYS = ("position", "side", "official")
OFFICIAL_PHI = (*[0] * 7, *[1] * 3, 2, *[3] * 3)
OFFICIAL_COUNT = 4


@dataclasses.dataclass(frozen=True)
class GrownTokenizer:
  """What `grow_tokenizer` returns.

  Attributes:
    config, params: of the grown tokenizer.
    phi_old, phi_new: which phi of the old tokenizer each scale uses, by scale;
      empty without phi.
    text: lines that say so.
  """

  config: VQVAEConfig
  params: dict[str, Any]
  phi_old: tuple[int, ...]
  phi_new: tuple[int, ...]
  text: str


def grow_tokenizer(
  config: VQVAEConfig,
  params: Mapping[str, Any],
  schedule: ScaleSchedule,
  phi: str = "position",
) -> GrownTokenizer:
  """The tokenizer for pictures whose size follows from the last new grid.

  All weights stay. Where the phi of the scales are not those of the rule, each
  scale gets its own copy. Rates and gains are mapped by the size of the maps
  (`rows_by_side`).

  Args:
    config, params: of the trained tokenizer.
    schedule: the new grids.
    phi: of PHI_WAYS.

  Raises:
    ValueError: an unknown way, the official list for other numbers than those
      it was written for, or a phi that the old schedule had no scale for.
  """
  if phi not in PHI_WAYS:
    raise ValueError(f"phi is one of {', '.join(PHI_WAYS)}, got {phi!r}.")
  old, count = config.schedule, num_phi(config)
  rows_KK = rows_by_side(old, schedule)
  changes: dict[str, Any] = {"schedule": schedule}
  quantizer = dict(params["quantizer"])
  if config.rate_weight:
    weights = rows_KK @ np.asarray(config.rate_weight)
    changes["rate_weight"] = tuple(weights.tolist())
    rates_KV = rows_KK @ np.asarray(quantizer["rate_KV"], np.float64)
    quantizer["rate_KV"] = rates_KV.astype(np.float32)
  phi_old = phi_new = ()
  if config.learned_gains:
    gains_KCv = rows_KK @ np.asarray(quantizer["log_gain_KCv"], np.float64)
    quantizer["log_gain_KCv"] = gains_KCv.astype(np.float32)
  if count:
    phi_old = phi_indices(old.num_scales, count)
    phi_new = _new_phi(old, schedule, count, phi)
    trained = {j: quantizer.pop(f"phi_{j}") for j in sorted(set(phi_old))}
    _check_trained(trained, phi_new)
    names = phi_new
    by_rule = phi_new == phi_indices(schedule.num_scales, count)
    if not (by_rule and config.share_quant_resi):
      names = range(schedule.num_scales)
      changes["share_quant_resi"] = (
        schedule.num_scales if config.share_quant_resi else 0
      )
    quantizer |= {f"phi_{i}": trained[j] for i, j in zip(names, phi_new)}
  return GrownTokenizer(
    config=dataclasses.replace(config, **changes),
    params={**params, "quantizer": quantizer},
    phi_old=phi_old,
    phi_new=phi_new,
    text=_describe(old, phi_old, schedule, phi_new),
  )


def describe_phi(
  config: VQVAEConfig, params: Mapping[str, Any], before: ScaleSchedule
) -> str:
  """Which phi the scales of a tokenizer use, and those of another schedule
  would by the rule.

  Args:
    config, params: of a tokenizer; of one phi a scale equal ones count as one.
    before: the other schedule.
  """
  count = num_phi(config)
  if not count:
    return _describe(before, (), config.schedule, ())
  new = phi_indices(config.schedule.num_scales, count)
  old = phi_indices(before.num_scales, count)
  parts = {j: params["quantizer"][f"phi_{j}"] for j in sorted(set(new))}
  first = {
    j: next(i for i, other in parts.items() if _equal(other, part))
    for j, part in parts.items()
  }
  distinct = sorted(set(first.values()))
  if count == len(new) and len(distinct) < count:
    # One a scale, some of them copies: what they were made of is counted anew.
    old = phi_indices(before.num_scales, len(distinct))
    new = tuple(distinct.index(first[j]) for j in new)
  return _describe(before, old, config.schedule, new)


def _new_phi(
  old: ScaleSchedule, new: ScaleSchedule, count: int, phi: str
) -> tuple[int, ...]:
  """Which of `count` phi each new scale uses."""
  if phi == "side":
    nearest = np.argmax(rows_by_side(old, new), axis=1)
    by_scale = phi_indices(old.num_scales, count)
    return tuple(by_scale[k] for k in nearest)
  if phi == "official":
    if (count, new.num_scales) != (OFFICIAL_COUNT, len(OFFICIAL_PHI)):
      raise ValueError(
        f"The official list makes {len(OFFICIAL_PHI)} phi of {OFFICIAL_COUNT},"
        f" one a scale; this tokenizer has {count} and the schedule"
        f" {new.num_scales} scales."
      )
    return OFFICIAL_PHI
  return phi_indices(new.num_scales, count)


def _check_trained(trained: Mapping[int, Any], wanted: Sequence[int]) -> None:
  """ValueError where a scale needs a phi that no old scale had."""
  absent = sorted(set(wanted) - set(trained))
  if absent:
    raise ValueError(
      f"The new schedule needs phi {', '.join(map(str, absent))}, the scales of"
      f" the old one only had {', '.join(map(str, trained))}; phi='side' takes"
      " that of the old scale whose map is nearest in size."
    )


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
  return all(np.array_equal(a[key], b[key]) for key in a)


def _describe(
  old: ScaleSchedule,
  phi_old: Sequence[int],
  new: ScaleSchedule,
  phi_new: Sequence[int],
) -> str:
  if not phi_old:
    return "Tokenizer: no phi, so that the number of scales changes nothing."
  lines = ["Tokenizer: the phi of each scale, which hangs on k / (K - 1)."]
  for when, schedule, phi in (("old", old, phi_old), ("new", new, phi_new)):
    lines.append(
      f"  {when}, K = {schedule.num_scales} ({schedule.describe()}):"
      f" {_runs(phi)}"
    )
  return "\n".join(lines)


def _runs(phi: Sequence[int]) -> str:
  """ "0 x7, 1 x3, 2, 3 x3"."""
  lengths = [(j, len(list(run))) for j, run in itertools.groupby(phi)]
  return ", ".join(f"{j} x{n}" if n > 1 else str(j) for j, n in lengths)
