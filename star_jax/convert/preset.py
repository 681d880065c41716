"""Which model a checkpoint is: a known name, or a JSON file of settings.

Shapes tell the size of a model, not its rope_theta, rope_norm or schedule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]
# What a file of settings must say, since nothing else does.
_NEEDED = {
  "var_": ("schedule",),
  "star_": ("schedule", "rope_norm", "rope_theta"),
}


def read_preset(
  preset: str | None,
  presets: Mapping[str, Settings],
  tokenizer: Settings,
  prefix: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The settings of a transformer and of its tokenizer.

  Args:
    preset: a name in `presets`, or a .json file {"model": ..., "tokenizer":
      ...} with the settings that presets have; None ends in an error.
    presets: known models.
    tokenizer: the one of known models; its schedule becomes the model's.
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
    model, tokenizer = _read_json(Path(preset))
  elif preset in known:
    model = presets[preset]
  else:
    raise ValueError(f"--preset is one of {accepted}, got {preset!r}.")
  needed = _NEEDED.get(prefix, ("schedule",))
  if missing := [name for name in needed if name not in model]:
    raise ValueError(
      f"{preset} lacks {' and '.join(missing)}, which no shape tells."
    )
  return dict(model), {**tokenizer, "schedule": model["schedule"]}


def _read_json(path: Path) -> tuple[Settings, Settings]:
  try:
    found = json.loads(path.read_text("utf-8"))
    model, tokenizer = found["model"], found["tokenizer"]
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  except (KeyError, TypeError) as error:
    raise ValueError(f'{path} has no "model" and "tokenizer".') from error
  if not isinstance(model, dict) or not isinstance(tokenizer, dict):
    raise ValueError(f'{path} has no settings under "model" and "tokenizer".')
  return model, tokenizer
