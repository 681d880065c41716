"""Runs parts of the evaluation of a bundle, keeps their results on disk."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from star_jax.bundle import Bundle
from star_jax.metrics import judges, report
from star_jax.metrics.context import Context

# In the order in which "all" runs them: quick ones first.
PARTS = ("tokenizer", "precision", "scenes", "icons", "copy", "ranking")
# Those that are for some models only, or run when they are asked for.
MORE_PARTS = ("shapes", "refinement", "likelihood", "alignment", "distribution")
# Raised when a measure changes, so that older results are not kept.
VERSION = 1
# Parts that also read the settings of another one.
SETTINGS = {
  "copy": ("copy", "icons"),
  "distribution": ("distribution", "pictures"),
}
HEADER = ("measure", "value", "remark")


def evaluate(
  what: str,
  bundle: Bundle,
  config: ConfigDict,
  out_dir: str | Path,
  *,
  redo: bool = False,
  print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures a bundle and prints a table for each part.

  A part whose result file fits the bundle and the settings is not run again.

  Args:
    what: one of PARTS or MORE_PARTS, "all" of PARTS, or several joined by
      commas.
    bundle: from `load_bundle`.
    config: configs/evaluate.py.
    out_dir: gets <part>.json, pictures and the generated samples.
    redo: run even what is there.
    print_line: receives the lines meant for the user.

  Returns:
    Part -> the content of its result file.

  Raises:
    ValueError: unknown part, or one that this bundle cannot be measured by.
  """
  parts = _parse_parts(what)
  if config.n < 1:
    raise ValueError(f"--n is at least 1, got {config.n}.")
  if config.best_of.n < 1:
    raise ValueError(f"--best_of is at least 1, got {config.best_of.n}.")
  ctx = Context(bundle, config, Path(out_dir))
  ctx.folder.mkdir(parents=True, exist_ok=True)
  if any(part != "tokenizer" for part in parts):
    ctx.need_star()
  results = {}
  for part in parts:
    if why := judges.refusal(part, bundle.notes):
      if what != "all":
        raise ValueError(why)
      print_line(f"\n{part}: left out. {why}")
      continue
    protocol = protocol_of(part, ctx)
    path = ctx.folder / f"{part}.json"
    old = report.read_json(path)
    if old is not None and old.get("protocol") == protocol and not redo:
      print_line(f"\n{part}: kept from {path} (--redo measures again)")
      results[part] = old
    else:
      results[part] = _run_part(part, ctx, protocol)
      report.write_json(path, results[part])
    print_line(f"\n{part} ({results[part]['seconds']:.0f} s, {path})")
    rows = [tuple(row) for row in results[part]["table"]]
    print_line(report.table(rows, HEADER))
  return results


def _parse_parts(what: str) -> list[str]:
  if what == "all":
    return list(PARTS)
  parts = [p.strip() for p in what.split(",")]
  for part in parts:
    if part not in (*PARTS, *MORE_PARTS):
      raise ValueError(
        f"--what is one of {', '.join((*PARTS, *MORE_PARTS))} or all, got"
        f" {part!r}."
      )
  return parts


def protocol_of(part: str, ctx: Context) -> dict[str, Any]:
  """All that decides the figures of a part, as it reads back from JSON."""
  config = ctx.config
  out = {
    "part": part,
    "version": VERSION,
    "bundle": ctx.bundle.hash,
    "n": config.n,
    "seed": config.seed,
    "batch_size": config.batch_size,
    "settings": {p: config[p].to_dict() for p in SETTINGS.get(part, (part,))},
    "art": ctx.art_hash,
    "jax": jax.__version__,
    "backend": jax.default_backend(),
  }
  if part == "tokenizer":
    if ctx.ceiling is not None:
      out["ceiling"] = ctx.ceiling.hash
    if ctx.inception is not None:
      out["rfid"] = ctx.inception.identity
  else:
    out["sampling"] = {**ctx.bundle.sampling, **config.sampling.to_dict()}
    if config.best_of.n != 1:
      out["best_of"] = config.best_of.to_dict()
  # Tuples would come back as lists, and no saved result would ever match.
  return json.loads(json.dumps(out))


def _run_part(part: str, ctx: Context, protocol: dict) -> dict[str, Any]:
  module = importlib.import_module(f"star_jax.metrics.parts.{part}")
  start = time.monotonic()
  result = module.run(ctx)
  return {
    "protocol": protocol,
    "seconds": round(time.monotonic() - start, 1),
    "values": result.values,
    "table": [list(row) for row in result.rows],
  }
