"""Results as JSON files and as tables on the terminal."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass
class Result:
  """What one part of the evaluation found.

  values: JSON-able figures.
  rows: (measure, value, remark) lines of the printed table.
  """

  values: dict[str, Any]
  rows: list[tuple[str, str, str]]


def table(rows: Sequence[tuple[str, ...]], header: Sequence[str]) -> str:
  """A markdown table with aligned columns."""
  cells = [tuple(header), *[tuple(map(str, row)) for row in rows]]
  widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
  lines = [
    "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
    for row in cells
  ]
  rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
  return "\n".join([lines[0], rule, *lines[1:]])


def share_text(share: Mapping[str, Any]) -> str:
  """A `Share.to_dict` as "78.3% [76.7, 79.9]"; of nothing "-"."""
  if not share["n"]:
    return "-"
  value, low, high = (100 * share[k] for k in ("value", "low", "high"))
  return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def _plain(value: Any) -> Any:
  if isinstance(value, (np.integer, np.floating, np.bool_)):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(path: Path, value: Any) -> None:
  """Writes under another name first: a reader never sees half a file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  text = json.dumps(value, indent=1, default=_plain, allow_nan=True)
  temporary.write_text(text + "\n", encoding="utf-8")
  os.replace(temporary, path)


def read_json(path: Path) -> Any | None:
  """The content of a file, None when it is absent or not whole."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
    return None


def protocol_lines(protocol: Mapping[str, Any]) -> str:
  """The protocol as `key: value` lines, in its own order."""
  return "\n".join(f"{key}: {value}" for key, value in protocol.items())
