"""A trained transformer as the start of one with another schedule.

STAR is trained at 256 px first and goes on at 512 and 1024 px (arXiv
2406.10797, section 3.5; golden README, rule 34). Only what has a row for each
scale or token changes: the level embedding and learned positions. Rotary
positions have no parameters, so that all other weights are kept.

K: scales, L: tokens of all scales, C: width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from star_jax.bundle import load_bundle
from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule, rows_by_side
from star_jax.tokenizer.growth import describe_phi
from star_jax.tokenizer.resize import bilinear_matrix
from star_jax.train.checkpoint import find_run, read_params
from star_jax.train.frozen import FrozenTokenizer

# "index": row i becomes row i, rows behind the old ones are fresh (the official
# code); "side": what the old model knows of maps of that size.
WAYS = ("index", "side")
LEVELS, POSITIONS = "lvl_embed", "pos_embed"


@dataclasses.dataclass(frozen=True)
class Grown:
  """A grown parameter tree and what was done.

  Attributes:
    params: of the new model, float32 numpy arrays.
    kept: parameters taken over as they are.
    grown: those with other rows -> a sentence.
    dropped: parameters of the old model without a place in the new one.
    tokenizer: a sentence on what the schedule changes there, if it differs.
  """

  params: dict[str, Any]
  kept: tuple[str, ...]
  grown: dict[str, str]
  dropped: tuple[str, ...]
  tokenizer: str = ""

  def describe(self) -> str:
    """A few lines for the log of a run."""
    lines = [f"Kept {len(self.kept)} parameters as they are."]
    lines += [f"Grown {name}: {what}" for name, what in self.grown.items()]
    if self.dropped:
      lines.append(f"Dropped {', '.join(self.dropped)}.")
    if self.tokenizer:
      lines.append(self.tokenizer)
    return "\n".join(lines)


def load_grown(
  run: str,
  new: StarConfig,
  fresh: Mapping[str, Any],
  how: str,
  tokenizer: FrozenTokenizer,
) -> Grown:
  """`grow_star` from the newest checkpoint of another run, or from a bundle.

  Args:
    run: workdir of the run, or folder of the bundle.
    new, fresh, how: see `grow_star`.
    tokenizer: of the new model; what its phi do under either schedule is said.

  Raises:
    ValueError: neither is there, or one that is no transformer's, or see
      `grow_star`.
  """
  old, params = _trained(run)
  grown = grow_star(params, old, new, fresh, how)
  if old.schedule == new.schedule:
    return grown
  phi = describe_phi(tokenizer.config, tokenizer.params, old.schedule)
  return dataclasses.replace(grown, tokenizer=phi)


def _trained(run: str) -> tuple[StarConfig, Mapping[str, Any]]:
  """Settings and parameters of what is grown."""
  if (Path(run) / "bundle.json").is_file():
    bundle = load_bundle(run)
    if bundle.star_config is None:
      raise ValueError(
        f"{run} holds a tokenizer alone; config.grow starts from a transformer."
      )
    return bundle.star_config, bundle.params["star"]
  path, saved = find_run(run)
  if saved.get("stage") != "transformer":
    raise ValueError(
      f"{path} holds a {saved.get('stage', 'run of another kind')}; config.grow"
      " starts from a transformer."
    )
  return StarConfig.from_dict(saved["model"]), read_params(path)


def grow_star(
  params: Mapping[str, Any],
  old: StarConfig,
  new: StarConfig,
  fresh: Mapping[str, Any],
  how: str,
) -> Grown:
  """Parameters of `new` made from those of `old`.

  Args:
    params: trained, of `old`.
    old, new: they may differ in their schedules.
    fresh: freshly drawn, of `new`: what has no counterpart stays so.
    how: of WAYS.

  Raises:
    ValueError: an unknown way, a parameter that is missing or of another shape,
      or positions that this way cannot map.
  """
  if how not in WAYS:
    raise ValueError(f"config.grow is one of {', '.join(WAYS)}, got {how!r}.")
  trained, drawn = (
    traverse_util.flatten_dict(tree, sep="/") for tree in (params, fresh)
  )
  rows = {
    LEVELS: lambda x, y: _grow_levels(x, y, old.schedule, new.schedule, how),
    POSITIONS: lambda x, y: _grow_positions(
      x, y, old.schedule, new.schedule, how
    ),
  }
  same_schedule = old.schedule == new.schedule
  out, kept, grown = {}, [], {}
  for name, like in drawn.items():
    if name not in trained:
      raise ValueError(
        f"The model to grow has no parameter {name}: its settings differ in"
        " more than the schedule."
      )
    value, like = np.asarray(trained[name]), np.asarray(like)
    if name in rows and not same_schedule:
      out[name], grown[name] = rows[name](value, like)
      continue
    if value.shape != like.shape:
      raise ValueError(
        f"The parameter {name} of the model to grow has the shape"
        f" {value.shape}, the new model's is {like.shape}."
      )
    out[name] = value
    kept.append(name)
  return Grown(
    params=traverse_util.unflatten_dict(out, sep="/"),
    kept=tuple(kept),
    grown=grown,
    dropped=tuple(sorted(set(trained) - set(drawn))),
  )


def _grow_levels(
  trained_KC, fresh_KC, old: ScaleSchedule, new: ScaleSchedule, how: str
) -> tuple[np.ndarray, str]:
  """Rows of the level embedding."""
  if how == "index":
    return _by_index(trained_KC, fresh_KC, "level")
  rows = rows_by_side(old, new) @ np.asarray(trained_KC, np.float64)
  return rows.astype(np.float32), (
    f"{len(rows)} levels by side from {len(trained_KC)}"
  )


def _by_index(trained, fresh, what: str) -> tuple[np.ndarray, str]:
  common = min(len(trained), len(fresh))
  rows = np.concatenate([trained[:common], fresh[common:]])
  text = f"{common} {what}s kept, {len(fresh) - common} fresh"
  if len(trained) > common:
    text += f", {len(trained) - common} dropped"
  return rows.astype(np.float32), text


def _grow_positions(
  trained_LC, fresh_LC, old: ScaleSchedule, new: ScaleSchedule, how: str
) -> tuple[np.ndarray, str]:
  """Rows of learned positions, one a token."""
  if how == "index":
    shared = min(old.num_scales, new.num_scales)
    if old.grids[:shared] != new.grids[:shared]:
      raise ValueError(
        "Learned positions are grown by index where one schedule begins with"
        f" the other, got {old.grids} and {new.grids}; config.grow='side' maps"
        " them by the size of the map."
      )
    return _by_index(trained_LC, fresh_LC, "position")
  rows = []
  nearest = np.argmax(rows_by_side(old, new), axis=1).tolist()
  for (h, w), k in zip(new.grids, nearest):
    begin, end = old.begin_ends[k]
    grid = old.grids[k]
    map_hwC = trained_LC[begin:end].reshape(*grid, -1)
    map_hwC = np.einsum(
      "yh,xw,hwc->yxc",
      bilinear_matrix(grid[0], h),
      bilinear_matrix(grid[1], w),
      map_hwC,
    )
    rows.append(map_hwC.reshape(h * w, -1))
  return np.concatenate(rows).astype(np.float32), (
    f"{len(fresh_LC)} positions, the maps resized from the old scales {nearest}"
  )
