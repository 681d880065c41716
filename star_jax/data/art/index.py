"""From rendered shards to the index: duplicates, splits, manifest."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star_jax.data.art import render, splits, store
from star_jax.data.art.names import EmojiName
from star_jax.data.art.phrases import colourless

THUMB_SIDE = 16
# Squared distance of thumbnails (16 x 16 x 4 values of 0..255) under which
# two concepts count as near-twins: a mean difference of about 5 per value.
# Found by looking: clocks, similar flags and running persons to both sides
# join, different faces and animals do not.
TWIN_DISTANCE = THUMB_SIDE * THUMB_SIDE * 4 * 5**2


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a run did. `counts[style, split]` are pictures."""

  folder: Path
  counts: Counter
  reasons: Counter
  duplicates: Counter
  skipped: list[str]
  missing: dict[str, str]
  num_bytes: int

  @property
  def total(self) -> int:
    """Pictures in the store."""
    return self.counts.total()


@dataclasses.dataclass(frozen=True)
class _Picture:
  """One rendered picture that is kept; `thumb` int32 [THUMB_SIDE^2 * 4]."""

  style: str
  key: str
  shard: str
  position: int
  thumb: np.ndarray


def write_index(
  folder: Path,
  size: int,
  shards: Sequence[str],
  names: dict[str, EmojiName],
  skipped: list[str],
  missing: dict[str, str],
) -> Summary:
  """Drops duplicates, decides the splits, writes index and manifest."""
  pictures, duplicates = _read_pictures(folder, shards, names)
  assigned = splits.assign_splits(
    [splits.SplitItem(p.style, p.key, names[p.key].name) for p in pictures],
    _find_twins(pictures),
  )
  lines, counts, reasons = [], Counter(), Counter()
  for picture, (split, reason) in zip(pictures, assigned, strict=True):
    record = store.ArtRecord(
      key=picture.key,
      style=picture.style,
      **dataclasses.asdict(names[picture.key]),
      split=split,
      holdout_reason=reason,
      shard=picture.shard,
      position=picture.position,
    )
    lines.append(json.dumps(dataclasses.asdict(record)))
    counts[picture.style, split] += 1
    reasons[reason or "train"] += 1
  manifest = {
    "format": store.FORMAT,
    "size": size,
    "total": len(lines),
    "counts": {f"{s}/{split}": n for (s, split), n in sorted(counts.items())},
    "heldout": dict(sorted(reasons.items())),
    "duplicates": dict(sorted(duplicates.items())),
    "skipped": skipped,
    "missing": missing,
    "files": {name: store.file_facts(folder / name) for name in shards},
  }
  store.write_atomically(folder / store.INDEX, "\n".join(lines) + "\n")
  manifest["files"][store.INDEX] = store.file_facts(folder / store.INDEX)
  store.write_atomically(
    folder / store.MANIFEST, json.dumps(manifest, indent=1) + "\n"
  )
  num_bytes = sum(facts["bytes"] for facts in manifest["files"].values())
  return Summary(
    folder, counts, reasons, duplicates, skipped, missing, num_bytes
  )


def _read_pictures(
  folder: Path, shards: Sequence[str], names: dict[str, EmojiName]
) -> tuple[list[_Picture], Counter]:
  """All pictures without duplicates; how many duplicates each style had."""
  kept, duplicates, seen = [], Counter(), set()
  outlines = defaultdict(list)  # colourless name -> thumbnails
  for shard in shards:
    records = store.read_shard(folder / shard)
    for position, (header, png) in enumerate(records):
      style, key = header["style"], header["key"]
      rgba = render.decode_png(png)
      thumb = render.thumbnail(rgba, THUMB_SIDE)
      # Exact duplicates within a style; in line art also pictures that only
      # their colour would tell apart: same caption, same drawing.
      digest = style, render.pixel_digest(rgba)
      outline = outlines[
        colourless(names[key].name) if style == "line art" else (style, key)
      ]
      if digest in seen or any(_is_twin(thumb, old) for old in outline):
        duplicates[style] += 1
        continue
      seen.add(digest)
      outline.append(thumb)
      kept.append(_Picture(style, key, shard, position, thumb))
  return kept, duplicates


def _is_twin(thumb: np.ndarray, other: np.ndarray) -> bool:
  return int(((thumb - other) ** 2).sum()) < TWIN_DISTANCE


def _find_twins(pictures: Sequence[_Picture]) -> list[tuple[str, str]]:
  """Pairs of keys that look alike in some style."""
  styles = defaultdict(list)
  for picture in pictures:
    styles[picture.style].append(picture)
  twins = []
  for group in styles.values():
    keys = [picture.key for picture in group]
    thumbs_ND = np.stack([picture.thumb for picture in group])
    twins += splits.near_twins(keys, thumbs_ND, TWIN_DISTANCE)
  return twins
