"""What `launch/benchmark.py --config` runs, by the kind of the config."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from star_jax.convert.side_by_side import missing
from star_jax.metrics import (
  complexity,
  parts_time,
  throughput,
  tokenizer_step,
)
from star_jax.metrics.benchmark import machine
from star_jax.metrics.complexity import WAYS
from star_jax.metrics.report import write_json
from star_jax.metrics.versus.case import Case
from star_jax.metrics.versus.run import compare
from star_jax.metrics.versus.run import to_markdown as authors_table


def run_config(config: ConfigDict, folder: Path, code: Path | None) -> str:
  """Writes JSON, table and figure into a folder.

  Args:
    config: of configs/benchmark.
    folder: made if needed; after every case it holds what is known so far.
    code: the authors' VAR, for the kind "authors".

  Returns:
    The table.

  Raises:
    ValueError: an unknown kind, or nothing to compare with.
  """
  kinds = {
    "authors": _authors,
    "parts": _parts,
    "complexity": _complexity,
    "throughput": _throughput,
    "tokenizer_step": _tokenizer_step,
  }
  if config.kind not in kinds:
    raise ValueError(
      f"kind of a benchmark config is one of {tuple(kinds)}, got"
      f" {config.kind!r}."
    )
  return kinds[config.kind](config, folder, code)


def _authors(config: ConfigDict, folder: Path, code: Path | None) -> str:
  if reason := missing(code):
    raise ValueError(f"Nothing to compare with: {reason}.")
  results = []
  for case in _cases(config):
    results.append(compare(case, code, config.sides, config.pairs))
    text = _write(folder, "authors", results, authors_table(results))
  return text


def _parts(config: ConfigDict, folder: Path, code: Path | None) -> str:
  del code
  results = []
  for case in _cases(config):
    results.append(parts_time.time_parts(case, config.repeats))
    parts = [
      f"{r['case']['name']}:\n\n{parts_time.to_markdown(r)}" for r in results
    ]
    text = _write(folder, "parts", results, "\n\n".join(parts))
    parts_time.draw_figure(results, folder / "parts.png")
  return text


def _throughput(config: ConfigDict, folder: Path, code: Path | None) -> str:
  del code
  results = []
  for case in _cases(config):
    results.append(throughput.measure(case, config.repeats))
    text = _write(
      folder, "throughput", results, throughput.to_markdown(results)
    )
  throughput.draw_figure(results, folder / "throughput.png")
  return text


def _complexity(config: ConfigDict, folder: Path, code: Path | None) -> str:
  del code
  results = []
  sizes = config.depth, config.width, config.heads
  for grid in config.grids:
    for way in WAYS:
      results.append(complexity.measure(way, grid, *sizes, config.repeats))
      text = _write(
        folder, "complexity", results, complexity.to_markdown(results)
      )
  complexity.draw_figure(results, folder / "complexity.png")
  return text


def _tokenizer_step(config: ConfigDict, folder: Path, code: Path | None) -> str:
  del code
  found = tokenizer_step.measure(config)
  text = tokenizer_step.to_markdown(found)
  return _write(folder, "tokenizer_step", [found], text)


def _cases(config: ConfigDict) -> list[Case]:
  return [Case(**case.to_dict()) for case in config.cases]


def _write(folder: Path, name: str, results, text: str) -> str:
  write_json(
    folder / f"{name}.json", {"machine": machine(), "results": results}
  )
  (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
  return text
