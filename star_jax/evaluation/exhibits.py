"""launch/evaluate.py --report: the papers' tables and figures from results.

Result files are what --images, --what=distribution and --rate write. A column
is there if some row has it; a measure keeps the name of its feature network,
so that distances of other features never stand under FID.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.evaluation import published
from star_jax.evaluation.figures import radar, scatter
from star_jax.evaluation.ratings import FILE as RATINGS
from star_jax.metrics.report import read_json, table

TABLES = "tables.md"
_NOTE = (
  "Rows compare on the same pictures and protocol alone; published rows are of"
  " ImageNet at 256 px and of MJHQ-30K."
)
_NO_ROWS = "No result has what this exhibit needs."
# Columns that are no measures: key -> (header, format).
_COSTS = {
  "parameters": ("parameters", lambda x: f"{x / 1e6:.0f}M"),
  "steps": ("steps", str),
  "seconds": ("s/image", lambda x: f"{x:.3f}"),
  "relative_time": ("time / VAR-d30", lambda x: f"{x:g}"),
}


def read_results(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
  """Rows of result files, or of all files in folders of results; ratings are
  left to `read_ratings`.

  Raises:
    ValueError: a file that is absent or is no result of a comparison.
  """
  rows = []
  for path in map(Path, paths):
    files = [path]
    if path.is_dir():
      names = ("pictures.json", "distribution.json")
      files = [f for name in names for f in sorted(path.rglob(name))]
    ratings = _rating_files(path)
    if not files and not ratings:
      raise ValueError(
        f"{path} holds no pictures.json, distribution.json or {RATINGS}, which"
        " --images, --what=distribution and --rate write."
      )
    rows += [_row(file) for file in files if file not in ratings]
  return rows


def read_ratings(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
  """The contents of all ratings.json among files and folders.

  Raises:
    ValueError: a file of that name that --rate has not written.
  """
  files = [file for path in map(Path, paths) for file in _rating_files(path)]
  out = [read_json(file) for file in files]
  for file, result in zip(files, out):
    if not isinstance(result, dict) or result.get("kind") != "ratings":
      raise ValueError(f"{file} is not a result of --rate.")
  return out


def _rating_files(path: Path) -> list[Path]:
  return [path] if path.name == RATINGS else sorted(path.rglob(RATINGS))


def _row(file: Path) -> dict[str, Any]:
  result = read_json(file)
  if not isinstance(result, dict) or "frechet" not in result.get("values", {}):
    raise ValueError(
      f"{file} is not a result of --images or --what=distribution."
    )
  values, protocol = result["values"], result["protocol"]
  comparison = values.get("comparison", protocol)
  # The table of the result has the measures under their names.
  words = {row[0]: row[1] for row in result["table"]}
  best = protocol.get("best_of")
  name = result.get("name") or file.parent.name
  return {
    "name": name + (f"-re{best['n']}" if best else ""),
    "network": comparison["network"],
    "measures": {
      word: float(value)
      for word, value in words.items()
      if not word.startswith("  ") and word != "seconds an image"
    },
    "categories": {
      category: entry["frechet"]
      for category, entry in values.get("categories", {}).items()
    },
    "seconds": values.get("seconds_per_image"),
    "source": f"measured, {comparison['backend']}",
    **{
      key: values.get(key)
      for key in ("parameters", "steps", "depth", "pixels", "generated")
    },
  }


def write_report(
  paths: Sequence[str | Path], out: str | Path, print_line=print
) -> list[Path]:
  """Writes tables.md, radar.png and scatter.png.

  Args:
    paths: result files, or folders of them.
    out: folder.
    print_line: receives the tables.

  Returns:
    The files written; a figure without anything to draw is left out.
  """
  rows, out = read_results(paths), Path(out)
  out.mkdir(parents=True, exist_ok=True)
  parts = {
    "Class-conditional generation, steps and time": comparison_table(
      [row for row in rows if not row["categories"]],
      [row for row in published.CLASS_CONDITIONAL if row["pixels"] == 256],
    ),
    "MJHQ-30K": comparison_table(
      [row for row in rows if row["categories"]], published.MJHQ
    ),
    "Categories, Frechet distance": category_table(rows),
    "Depth and resolution": depth_table(rows, published.CLASS_CONDITIONAL),
    "Ratings": rating_table(read_ratings(paths)),
  }
  text = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())
  text = f"{_NOTE}\n\n{text}"
  files = [out / TABLES]
  files[0].write_text(text + "\n", "utf-8")
  print_line(text)
  figures = {
    "radar.png": radar({r["name"]: r["categories"] for r in rows}),
    "scatter.png": scatter(rows),
  }
  for name, figure in figures.items():
    if figure is not None:
      figure.savefig(out / name, dpi=110)
      files.append(out / name)
  return files


def comparison_table(rows: Sequence[Mapping], known: Sequence[Mapping]) -> str:
  """Measured rows over published ones, every row with its source."""
  ours = [{**row, **row["measures"]} for row in rows]
  # "FID" of a table is a column whether or not a result has it.
  words = dict.fromkeys(
    word
    for row in (*rows, *known)
    for word in row.get("measures", _measures_of(row))
  )
  columns = [
    (word, word, lambda x: f"{x:.4g}")
    for word in words
    if any(word in row for row in (*ours, *known))
  ]
  columns += [
    (key, header, show)
    for key, (header, show) in _COSTS.items()
    if any(row.get(key) is not None for row in (*ours, *known))
  ]
  lines = [
    (
      row["name"],
      *(_cell(row.get(key), show) for key, _, show in columns),
      row["source"],
    )
    for row in (*ours, *known)
  ]
  return table(lines, ["", *(header for _, header, _ in columns), "source"])


def _measures_of(row: Mapping) -> list[str]:
  facts = ("name", "source", "depth", "pixels", *_COSTS)
  return [key for key in row if key not in facts]


def _cell(value, show) -> str:
  return "-" if value is None else show(value)


def category_table(rows: Sequence[Mapping]) -> str:
  """Frechet distance of each category, one column a result."""
  rows = [row for row in rows if row["categories"]]
  if not rows:
    return _NO_ROWS
  names = sorted({c for row in rows for c in row["categories"]})
  lines = [
    (
      name,
      *(
        _cell(row["categories"].get(name), lambda x: f"{x:.4g}") for row in rows
      ),
    )
    for name in names
  ]
  header = [f"{row['name']} ({row['network']})" for row in rows]
  return table(lines, ["category", *header])


def rating_table(results: Sequence[Mapping]) -> str:
  """Mean scores with their 95% intervals over prompts, one column a score
  (of one file of weights each), one row a folder of pictures."""
  if not results:
    return _NO_ROWS
  cells = [
    {
      result["protocol"][score]: f"{v['mean']:.4g} +- {v['half']:.2g}"
      for score, v in result["values"].items()
    }
    for result in results
  ]
  columns = list(dict.fromkeys(word for row in cells for word in row))
  lines = [
    (
      result["name"],
      *(row.get(word, "-") for word in columns),
      f"measured, {result['protocol']['backend']}",
    )
    for result, row in zip(results, cells)
  ]
  return table(lines, ["", *columns, "source"])


def depth_table(rows: Sequence[Mapping], known: Sequence[Mapping]) -> str:
  """Frechet distance against depth (rows) and resolution (columns)."""
  cells: dict[tuple[int, int], list[str]] = {}
  for row in (*rows, *known):
    if row.get("depth") is None or row.get("pixels") is None:
      continue
    if "measures" in row:
      word, value = next(iter(row["measures"].items()))
      text = f"{value:.4g} ({row['name']}, {word})"
    else:
      text = f"{row['FID']:.4g} ({row['name']}, FID, {row['source']})"
    cells.setdefault((row["depth"], row["pixels"]), []).append(text)
  if not cells:
    return _NO_ROWS
  depths, pixels = (sorted({key[i] for key in cells}) for i in (0, 1))
  lines = [
    (str(d), *("; ".join(cells.get((d, p), ["-"])) for p in pixels))
    for d in depths
  ]
  return table(lines, ["depth", *(f"{p} px" for p in pixels)])
