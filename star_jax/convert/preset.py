"""Which model a checkpoint is: a known name, or a JSON file of settings.

Shapes tell the size of a model, not its rope_theta, rope_norm or schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Settings = Mapping[str, Any]
# What a file of settings must say, since nothing else does.
_NEEDED = {
  "var_": ("schedule",),
  "star_": ("schedule", "rope_norm", "rope_theta"),
}


class Preset(NamedTuple):
  """Settings of a transformer, of its tokenizer and of its refinement head, if
  one is known of."""

  model: dict[str, Any]
  tokenizer: dict[str, Any]
  refine: dict[str, Any] | None


def read_preset(
  preset: str | None,
  presets: Mapping[str, Settings],
  tokenizer: Settings,
  prefix: str,
  heads: Mapping[str, Settings],
) -> Preset:
  """What a checkpoint is.

  Args:
    preset: a name in `presets`, or a .json file {"model": ..., "tokenizer":
      ...} with the settings that presets have, and "refine" with those of a
      refinement head; None ends in an error.
    presets: known models.
    tokenizer: the one of known models; its schedule becomes the model's.
    heads: refinement heads of known models.
    prefix: of the names that are meant: "var_", "star_", or "" for both.

  Raises:
    ValueError: nothing given, an unknown name, or another kind of file.
    OSError: the file cannot be read.
  """
  prefixes = (prefix,) if prefix else tuple(_NEEDED)
  known = [name for name in presets if name.startswith(prefixes)]
  accepted = f"{', '.join(known)}, or a .json file of settings"
  if not preset:
    raise ValueError(
      "--preset must be given, since no shape tells rope_theta, rope_norm and"
      f" the schedule of grids: one of {accepted}."
    )
  if preset.endswith(".json"):
    model, tokenizer, refine = _read_json(Path(preset))
  elif preset in known:
    model, refine = presets[preset], heads.get(preset)
  else:
    raise ValueError(f"--preset is one of {accepted}, got {preset!r}.")
  needed = _NEEDED.get(prefix, ("schedule",))
  if missing := [name for name in needed if name not in model]:
    raise ValueError(
      f"{preset} lacks {' and '.join(missing)}, which no shape tells."
    )
  tokenizer = {**tokenizer, "schedule": model["schedule"]}
  return Preset(dict(model), tokenizer, dict(refine) if refine else None)


def _read_json(path: Path) -> tuple[Settings, Settings, Settings | None]:
  try:
    found = json.loads(path.read_text("utf-8"))
    model, tokenizer = found["model"], found["tokenizer"]
    refine = found.get("refine")
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  except (KeyError, TypeError) as error:
    raise ValueError(f'{path} has no "model" and "tokenizer".') from error
  if not isinstance(model, dict) or not isinstance(tokenizer, dict):
    raise ValueError(f'{path} has no settings under "model" and "tokenizer".')
  if refine is not None and set(refine) != {"first_scale", "depth"}:
    raise ValueError(
      f'"refine" in {path} says first_scale and depth, got {refine!r}.'
    )
  return model, tokenizer, refine
