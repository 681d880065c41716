"""The knobs of sampling as users give them: names, ranges, messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from star_jax.sampling.rounds import REFINEMENTS
from star_jax.scales import OWN_ASPECT, check_aspect

SAMPLING_KEYS = (
  "cfg_scale", "top_k", "top_p", "temperature", "gumbel_smooth",
  "smooth_filtered", "refine", "aspect",
)  # fmt: skip
_SWITCHES = ("gumbel_smooth", "smooth_filtered")
# Knobs that came later, as programs behaved before they were there.
_BEFORE = {"smooth_filtered": True, "refine": "off", "aspect": OWN_ASPECT}


def with_later_knobs(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of an older bundle or picture, with the knobs added since."""
  return {**_BEFORE, **settings}


def check_settings(
  settings: Mapping[str, Any], vocab_size: int
) -> dict[str, Any]:
  """The knobs as plain numbers.

  Raises:
    ValueError: a value outside its range, naming the range.
  """
  out = {
    key: _check_number(key, settings[key])
    for key in ("cfg_scale", "top_p", "temperature")
  }
  if out["cfg_scale"] < 0:
    raise ValueError(
      "cfg_scale is the strength of guidance, 0 (off) or more, got"
      f" {settings['cfg_scale']}."
    )
  if not 0 < out["top_p"] <= 1:
    raise ValueError(
      f"top_p is in (0, 1], where 1 keeps all, got {settings['top_p']}."
    )
  if not out["temperature"] > 0:
    raise ValueError(
      f"temperature is above 0, got {settings['temperature']}; top_k=1 always"
      " takes the likeliest token."
    )
  top_k = settings["top_k"]
  check_integer("top_k", top_k, 0, vocab_size, " (the codebook, 0 keeps all)")
  for key in _SWITCHES:
    if not isinstance(settings[key], (bool, np.bool_)):
      raise ValueError(f"{key} is True or False, got {settings[key]!r}.")
    out[key] = bool(settings[key])
  if settings["refine"] not in REFINEMENTS:
    raise ValueError(
      f"refine is one of {', '.join(REFINEMENTS)}, got {settings['refine']!r}."
    )
  check_aspect(settings["aspect"])
  return out | {
    "top_k": int(top_k),
    "refine": settings["refine"],
    "aspect": settings["aspect"],
  }


def _check_number(name: str, value) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError):
    raise ValueError(f"{name} is a number, got {value!r}.") from None
  if not np.isfinite(number):
    raise ValueError(f"{name} is a finite number, got {value!r}.")
  return number


def check_seed(seed) -> None:
  """ValueError unless it is an integer in [0, 2**32)."""
  check_integer("seed", seed, 0, 2**32 - 1)


def check_integer(
  name: str, value, low: int, high: int | None, remark: str = ""
) -> None:
  """ValueError unless value is an integer in [low, high]."""
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  limit = f"{low} or more" if high is None else f"from {low} to {high}"
  if not whole or value < low or (high is not None and value > high):
    raise ValueError(f"{name} is an integer {limit}{remark}, got {value!r}.")
