"""launch/evaluate.py --images: a set of pictures against a reference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from star_jax.evaluation.collect import Extractor, collect
from star_jax.evaluation.compare import compare
from star_jax.evaluation.networks import load_network
from star_jax.evaluation.pictures import (
  PictureFolder,
  Pictures,
  open_pictures,
)
from star_jax.evaluation.reference import load_reference
from star_jax.evaluation.statistics import Statistics
from star_jax.metrics import report
from star_jax.metrics.progress import Progress

# Raised when a measure changes, so that older results are told apart.
VERSION = 1
FILE = "pictures.json"
HEADER = ("measure", "value", "remark")


class Comparison:
  """A feature network and how sets of pictures are compared with it.

  Args:
    config: `pictures` of configs/evaluate.py.
    folder: statistics are kept there.
  """

  def __init__(self, config: ConfigDict, folder: Path):
    self.config, self.folder = config, folder
    self.network = load_network(config.network, config.weights)
    self.extractor = Extractor(self.network, config.batch_size)
    self._sums = {
      key: config[key] for key in ("reservoir", "seed", "class_splits")
    }
    pairs = ("neighbours", "kernel_subsets", "kernel_subset_size", "seed")
    self._pairs = {key: config[key] for key in pairs}

  @property
  def protocol(self) -> dict[str, Any]:
    """All that decides the figures, but for the two sets of pictures."""
    return {
      "version": VERSION,
      **self.network.identity,
      "precision": "float32 products at highest precision, float64 sums",
      **self._sums,
      **self._pairs,
      "jax": jax.__version__,
      "backend": jax.default_backend(),
    }

  def collect(self, pictures: Pictures, name: str) -> Statistics:
    """Statistics of pictures, kept as NAME.npz."""
    return collect(
      pictures,
      self.extractor,
      self._sums,
      self.folder / f"{name}.npz",
      save_seconds=self.config.save_seconds,
      progress=Progress(f"features, {name}"),
    )

  def reference(self, path: str | Path) -> Statistics:
    """Of real pictures or statistics; see `load_reference`."""
    return load_reference(
      path,
      self.extractor,
      self._sums,
      self.folder,
      save_seconds=self.config.save_seconds,
      progress=Progress("features, reference"),
    )

  def compare(self, generated: Statistics, real: Statistics):
    """(values, table rows); see `compare`."""
    return compare(generated, real, self.network, self._pairs)


def evaluate_pictures(
  images: str | Path,
  reference: str | Path,
  config: ConfigDict,
  out: str | Path,
  *,
  name: str = "",
  per_category: bool = False,
  print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Compares pictures with a reference, prints a table, writes pictures.json.

  Args:
    images: folder or .npz of generated pictures.
    reference: folder or .npz of real ones, or statistics.
    config: `pictures` of configs/evaluate.py.
    out: gets the result and the statistics; a run that was stopped goes on.
    name: of the row in a report.
    per_category: both are folders with a subfolder for each category.
    print_line: receives the lines meant for the user.

  Raises:
    ValueError: one sentence about what is wrong with the input.
  """
  start = time.monotonic()
  out = Path(out)
  comparison = Comparison(config, out)
  protocol = {
    **comparison.protocol,
    "images": str(images),
    "reference": str(reference),
  }
  print_line(report.protocol_lines(protocol))
  if per_category:
    values, rows = _categories(comparison, images, reference)
  else:
    generated = comparison.collect(open_pictures(images), "images")
    values, rows = comparison.compare(
      generated, comparison.reference(reference)
    )
  result = {
    "name": name or Path(images).name,
    "kind": "pictures",
    "protocol": json.loads(json.dumps(protocol)),
    "seconds": round(time.monotonic() - start, 1),
    "values": values,
    "table": [list(row) for row in rows],
  }
  report.write_json(out / FILE, result)
  print_line(report.table(rows, HEADER))
  print_line(f"written to {out / FILE}")
  return result


def _categories(comparison: Comparison, images, reference):
  """The measures of every category and of all together."""
  generated = PictureFolder.of(images).categories()
  real = PictureFolder.of(reference).categories()
  if missing := sorted(set(generated) - set(real)):
    raise ValueError(
      f"The reference {reference} lacks the categories {', '.join(missing)};"
      f" it has {', '.join(real)}."
    )
  values: dict[str, Any] = {"categories": {}}
  rows, whole = [], None
  for category, pictures in generated.items():
    pair = (
      comparison.collect(pictures, f"images_{category}"),
      comparison.collect(real[category], f"reference_{category}"),
    )
    found, lines = comparison.compare(*pair)
    values["categories"][category] = found
    rows += [(f"  {category}, {word}", *rest) for word, *rest in lines]
    whole = pair if whole is None else _both(whole, pair)
  overall, lines = comparison.compare(*whole)
  return {**overall, **values}, [*lines, *rows]


def _both(a, b):
  return a[0].merged(b[0]), a[1].merged(b[1])
