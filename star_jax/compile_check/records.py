"""Figures of compiled programs in files, one a program, for `docs/targets.md`:
a compilation may take hours, and none is done twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_jax.compile_check.bounds import Bounds
from star_jax.compile_check.memory import Memory

if TYPE_CHECKING:
  from star_jax.compile_check.commands import Request


def write(
  request: Request,
  what: str,
  batch: int,
  memory: Memory,
  bounds: Bounds | None,
  remat: str = "",
) -> Path:
  """Keeps what one compiled program needs under the folder of the request.

  `remat`: of a training step; "" for others.
  """
  sizes = dataclasses.asdict(memory)
  del sizes["hlo"]
  mesh = {} if request.mesh is None else dict(request.mesh.shape)
  record = {
    "model": request.model,
    "what": what,
    "target": request.target.name,
    "mesh": {name: size for name, size in mesh.items() if size > 1},
    "remat": remat,
    "batch": batch,
    "parts": request.unit,
    "memory": {**sizes, "peak": memory.peak, "of": request.target.memory},
    "bounds": bounds and bounds.figures(),
  }
  cut = "-".join(f"{name}{size}" for name, size in record["mesh"].items())
  parts = (request.model, what, request.target.name, cut, remat, f"b{batch}")
  name = "_".join(part.replace(":", "-") for part in parts if part)
  request.out.mkdir(parents=True, exist_ok=True)
  path = request.out / f"{name}.json"
  part = path.with_suffix(".part")
  part.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
  part.replace(path)
  return path


def read(folder: Path) -> list[dict[str, Any]]:
  """All that was kept there."""
  return [
    json.loads(path.read_text("utf-8"))
    for path in sorted(folder.glob("*.json"))
  ]
