"""--what=icons: does a generated icon look like the picture it names.

The nearest real picture of the same style by EfficientNet-lite0 features has
to be the right concept. Ceiling: real pictures, freshly augmented, through the
tokenizer. Control: the same pictures judged by shuffled prompts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.efficientnet import default_network
from star_jax.metrics.icons import augmented, drawn_icons
from star_jax.metrics.progress import Progress
from star_jax.metrics.report import Result
from star_jax.metrics.retrieval import (
  Gallery,
  chance,
  gallery_picture,
  load_gallery,
  query_features,
  retrieve,
)
from star_jax.metrics.scene_score import derangement
from star_jax.metrics.wilson import Share

MEASURES = ("strict", "merged", "style")


def run(ctx: Context) -> Result:
  """Writes icons.png: generated pictures over what was found for them."""
  icons = drawn_icons(ctx)
  few = slice(0, ctx.config.icons.num_ceiling)
  real = augmented(ctx, icons.numbers[few])
  ceiling, _ = ctx.reconstruct(real)
  values = {}
  for softening in ctx.config.icons.softenings:
    gallery, out, found = _measure(ctx, icons, real, ceiling, softening)
    values[f"softening {softening:g}"] = out
    if len(values) == 1:
      _save_sheet(ctx, gallery, icons, found.nearest)
  return Result(values, _rows(values))


def _measure(ctx: Context, icons, real, ceiling, softening: float):
  """(gallery, JSON-able figures, `Retrieval` of the generated pictures)."""
  network = default_network()
  gallery = load_gallery(
    ctx.store,
    ctx.image_size,
    network,
    softening,
    Progress(f"features of all real icons, softening {softening:g}"),
  )
  records = icons.records
  features = query_features(
    network, icons.image, softening, Progress("features")
  )
  found = retrieve(gallery, features, records)
  other = derangement(len(records), ctx.config.seed)
  shuffled = retrieve(gallery, features, [records[j] for j in other])
  out = {
    "model": _shares(found),
    "shuffled": _shares(shuffled),
    "chance": chance(gallery, records),
    "groups": _groups(records, found),
  }
  for name, image in (("tokenizer", ceiling), ("real", real)):
    features = query_features(network, image, softening)
    out[name] = _shares(retrieve(gallery, features, records[: len(image)]))
  return gallery, out, found


def _shares(found) -> dict:
  return {name: Share.of(getattr(found, name)).to_dict() for name in MEASURES}


def _groups(records, found) -> dict:
  """Shares by split, by reason of being held out and by style."""
  labels = {
    "split": [r.split for r in records],
    "reason": [r.holdout_reason or "trained" for r in records],
    "style": [r.style for r in records],
  }
  out = {}
  for kind, names in labels.items():
    names = np.array(names)
    for name in np.unique(names):
      rows = names == name
      part = dataclasses.replace(
        found, **{m: getattr(found, m)[rows] for m in MEASURES}
      )
      out[f"{kind}: {name}"] = _shares(part)
  return out


def _percent(share: dict) -> str:
  return "-" if share["value"] is None else f"{100 * share['value']:.1f}%"


def _rows(values: dict) -> list[tuple[str, str, str]]:
  words = {
    "strict": "right concept, strict",
    "merged": "right concept, tone and gender merged",
    "style": "right style",
  }
  rows = []
  for name, entry in values.items():
    for measure in MEASURES:
      share = entry["model"][measure]
      beside = ", ".join(
        f"{other} {_percent(entry[other][measure])}"
        for other in ("tokenizer", "real", "shuffled")
      )
      text = (
        f"{_percent(share)} [{100 * share['low']:.1f},"
        f" {100 * share['high']:.1f}]"
      )
      beside += f", chance {100 * entry['chance'][measure]:.2f}%"
      rows.append(
        (f"{words[measure]}, {name}", text, f"n = {share['n']}; {beside}")
      )
  name, entry = next(iter(values.items()))
  for group, shares in entry["groups"].items():
    rows.append(
      (
        f"  {group}",
        f"{_percent(shares['strict'])} / {_percent(shares['merged'])}",
        f"strict / merged, {name}, n = {shares['strict']['n']}",
      )
    )
  return rows


def _save_sheet(ctx: Context, gallery: Gallery, icons, nearest) -> None:
  columns, rows = 12, []
  for start in range(0, min(48, len(nearest)), columns):
    part = slice(start, min(start + columns, len(nearest)))
    blank = np.full((columns, *ctx.image_size, 3), 255, np.uint8)
    asked, found = blank.copy(), blank.copy()
    for i, number in enumerate(icons.numbers[part]):
      asked[i] = gallery_picture(ctx.store, int(number), ctx.image_size)
    for i, number in enumerate(nearest[part]):
      found[i] = gallery_picture(ctx.store, int(number), ctx.image_size)
    blank[: part.stop - start] = icons.image[part]
    rows += [blank, found, asked]
  picture_grid(np.concatenate(rows), columns).save(ctx.folder / "icons.png")
