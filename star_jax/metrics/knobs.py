"""Quality of a checkpoint against guidance, filters and temperature.

  python -m star_jax.metrics.knobs --config=configs/knobs.py --out=results/knobs

Every point draws the same held-out captions with the same random numbers and is
measured as the parts of launch/evaluate.py are: KID on EfficientNet-lite0
features, what the captions state and the matcher finds, and for icons whether
the nearest real picture is the one asked for. Writes knobs.json, tables.md and
knobs.png; points that are there are kept.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from star_jax.api import StarPipeline
from star_jax.bundle import Bundle, load_bundle
from star_jax.cli import run_main
from star_jax.compilation import use_compilation_cache
from star_jax.data.art.captions import canonical_caption
from star_jax.data.art.store import load_art
from star_jax.data.cache_layout import json_hash
from star_jax.metrics.efficientnet import default_network
from star_jax.metrics.heldout import pick
from star_jax.metrics.progress import Progress
from star_jax.metrics.report import read_json, table, write_json
from star_jax.metrics.retrieval import load_gallery, query_features, retrieve
from star_jax.sampling.settings import SAMPLING_KEYS
from star_jax.sweep.measure import Yardstick

VERSION = 1
# What is measured: key of a point, title, factor.
MEASURES = (
  ("kid", "KID, less is better", 1),
  ("objects", "objects found, %", 100),
  ("everything", "whole scenes right, %", 100),
  ("icon", "icons retrieved, %", 100),
)
# Settings that every point names.
KNOBS = ("cfg_scale", "top_k", "top_p", "temperature")


def plan_lines(
  config: ConfigDict, defaults: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
  """The settings of every point, by the knob that changes.

  Args:
    config: see configs/knobs.py.
    defaults: of the bundle.

  Raises:
    ValueError: no line, an empty one or an unknown knob.
  """
  base = {**defaults, **config.base.to_dict()}
  lines = config.lines.to_dict()
  unknown = sorted((set(lines) | set(config.base)) - set(SAMPLING_KEYS))
  if unknown:
    raise ValueError(
      f"Unknown knobs {', '.join(unknown)}; those of sampling are"
      f" {', '.join(SAMPLING_KEYS)}."
    )
  empty = [knob for knob, values in lines.items() if len(values) < 2]
  if empty or not lines:
    raise ValueError(
      "config.lines gives at least two values to at least one knob; too few for"
      f" {', '.join(empty) or 'any'}."
    )
  return {
    knob: [{**base, knob: value} for value in values]
    for knob, values in lines.items()
  }


class Meter:
  """Draws and measures with given settings.

  Args:
    bundle: the model.
    config: see configs/knobs.py.
  """

  def __init__(self, bundle: Bundle, config: ConfigDict):
    self.config, self._bundle = config, bundle
    options = config.data_options.copy_and_resolve_references()
    options.size = bundle.tokenizer_config.image_size
    self.yardstick = Yardstick(config, options)

  @functools.cached_property
  def pipeline(self) -> StarPipeline:
    return StarPipeline(self._bundle)

  @functools.cached_property
  def _icons(self):
    """(gallery, the pictures asked for): half of them held out."""
    store, config = load_art(self.config.art_dir or None), self.config
    half = config.icons // 2
    numbers = [
      *pick(store, "train", config.icons - half, config.seed),
      *pick(store, "heldout", half, config.seed),
    ]
    gallery = load_gallery(
      store,
      self._bundle.tokenizer_config.image_size,
      default_network(),
      config.softening,
      Progress("features of all real icons"),
    )
    return gallery, [store.records[int(i)] for i in numbers]

  def _draw(self, prompts: Sequence[str], settings) -> np.ndarray:
    drawn = self.pipeline.sample_all(
      prompts, self.config.seed, batch=self.config.batch_size, **settings
    )
    return np.stack([np.asarray(picture) for picture in drawn.images])

  def __call__(self, settings: Mapping[str, Any], label: str) -> dict:
    """The figures of one point."""
    image = self._draw(self.yardstick.captions, settings)
    found = self.yardstick.score(image, label)
    if self.config.icons:
      gallery, records = self._icons
      prompts = [canonical_caption(record) for record in records]
      features = query_features(
        default_network(),
        self._draw(prompts, settings),
        self.config.softening,
      )
      found["icon"] = float(retrieve(gallery, features, records).merged.mean())
    return found


def protocol_of(bundle: Bundle, config: ConfigDict) -> dict[str, Any]:
  """All that decides a point beside its settings."""
  fixed = {
    key: value
    for key, value in config.to_dict().items()
    if key not in ("lines", "base", "art_dir", "batch_size")
  }
  return {"version": VERSION, "bundle": bundle.hash, **fixed}


def run(
  bundle: Bundle, config: ConfigDict, out: Path, meter=None
) -> dict[str, Any]:
  """Measures all points that are not there yet; writes the result after each.

  Args:
    bundle: the model.
    config: see configs/knobs.py.
    out: folder.
    meter: (settings, label) -> figures, instead of `Meter` (tests).

  Returns:
    What OUT/knobs.json holds.
  """
  lines = plan_lines(config, bundle.sampling)
  meter = meter or Meter(bundle, config)
  protocol, results = protocol_of(bundle, config), {}
  total, done = sum(map(len, lines.values())), 0
  for knob, settings in lines.items():
    results[knob] = []
    for one in settings:
      done += 1
      path = out / "points" / f"{json_hash([protocol, one])}.json"
      found = read_json(path)
      if found is None:
        found = meter(one, f"{knob} {one[knob]:g} ({done}/{total})")
        write_json(path, found)
      results[knob].append({"value": one[knob], "settings": one, **found})
  whole = {"protocol": protocol, "lines": results}
  write_json(out / "knobs.json", whole)
  (out / "tables.md").write_text(write_tables(results), encoding="utf-8")
  draw(results).savefig(out / "knobs.png", dpi=110)
  return whole


def _shown(results: Mapping[str, Sequence[Mapping]]):
  """The measures that the points have."""
  first = next(iter(results.values()))[0]
  return [m for m in MEASURES if m[0] in first]


def write_tables(results: Mapping[str, Sequence[Mapping]]) -> str:
  """One table a knob."""
  shown, parts = _shown(results), []
  for knob, points in results.items():
    others = ", ".join(
      f"{name} {points[0]['settings'][name]:g}"
      for name in KNOBS
      if name != knob and name in points[0]["settings"]
    )
    rows = [
      (f"{p['value']:g}", *(_text(p[key], key, by) for key, _, by in shown))
      for p in points
    ]
    header = (knob, *(title for _, title, _ in shown))
    parts.append(f"### {knob}\n\nwith {others}\n\n{table(rows, header)}")
  return "\n\n".join(parts) + "\n"


def _text(value: float | None, key: str, factor: float) -> str:
  if value is None:
    return "-"
  return f"{factor * value:.3f}" if key == "kid" else f"{factor * value:.1f}"


def draw(results: Mapping[str, Sequence[Mapping]]):
  """One column a knob, one row a measure; even steps between its values."""
  from matplotlib.figure import Figure

  shown = _shown(results)
  figure = Figure(
    figsize=(3.4 * len(results), 2.3 * len(shown)), layout="constrained"
  )
  grid = figure.subplots(
    len(shown), len(results), squeeze=False, sharex="col", sharey="row"
  )
  for column, (knob, points) in enumerate(results.items()):
    places = range(len(points))
    names = [
      "all" if knob == "top_k" and not p["value"] else f"{p['value']:g}"
      for p in points
    ]
    for row, (key, title, factor) in enumerate(shown):
      axis = grid[row][column]
      values = [np.nan if p[key] is None else factor * p[key] for p in points]
      axis.plot(places, values, "o-", color="C0")
      axis.set_xticks(places, names)
      axis.grid(alpha=0.3)
      if not column:
        axis.set_ylabel(title)
    grid[-1][column].set_xlabel(knob)
  return figure


def _flags():
  flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
  flags.DEFINE_string("out", None, "Folder of the results.")
  return config_flags.DEFINE_config_file("config", None, "configs/knobs.py.")


def main(argv: Sequence[str]) -> None:
  args = flags.FLAGS
  if len(argv) > 1:
    raise ValueError(f"Unexpected argument {argv[1]!r}; see --help.")
  if args.config is None or args.out is None:
    raise ValueError("--config and --out are needed.")
  logging.set_verbosity(logging.WARNING)
  use_compilation_cache()
  run(load_bundle(args.ckpt), args.config.lock(), Path(args.out))
  print((Path(args.out) / "tables.md").read_text())


if __name__ == "__main__":
  _flags()
  run_main(main)
