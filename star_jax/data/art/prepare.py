"""Renders the art sets once into an art store (see store.py).

A shard is the unit of work: it is written under another name and renamed, and
its side file says from which drawings it was made. A run that was killed goes
on with the shards that are not there, and ends with the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import tqdm

from star_jax.data.art import render, store
from star_jax.data.art.index import THUMB_SIDE, Summary, write_index
from star_jax.data.art.names import load_names
from star_jax.data.art.sources import (
  STYLES,
  SourceMissing,
  SvgItem,
  load_set,
)
from star_jax.data.shard_files import open_writer

PER_SHARD = 256
MAX_CORRUPT_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file to write and the drawings that go into it."""

  name: str
  size: int
  items: tuple[SvgItem, ...]

  @property
  def fingerprint(self) -> str:
    """Changes with any drawing, the size and the renderer."""
    version = importlib.metadata.version("resvg_py")
    digest = hashlib.sha256(f"{store.FORMAT} {self.size} {version}".encode())
    for item in self.items:
      for part in (item.style, item.key, item.svg):
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def prepare_art(
  out_dir: str | Path,
  sets: Sequence[str] = STYLES,
  size: int = 128,
  *,
  npm_dir: str | Path | None = None,
  workers: int = 2,
  max_corrupt_share: float = MAX_CORRUPT_SHARE,
  say: Callable[[str], None] = print,
) -> Summary:
  """Writes (or completes, or repairs) an art store.

  Args:
    out_dir: folder of the store.
    sets: styles to include, of sources.STYLES.
    size: pixels a side, a multiple of 16.
    npm_dir: where the npm .tgz files are or are fetched to.
    workers: processes that render.
    max_corrupt_share: of a set's drawings, the share that may fail.
    say: called with one line a set.

  Raises:
    ValueError: bad arguments, no set at hand, or too many corrupt drawings.
  """
  if size < THUMB_SIDE or size % THUMB_SIDE:
    raise ValueError(
      f"size is a positive multiple of {THUMB_SIDE}, got {size}."
    )
  folder = Path(out_dir)
  folder.mkdir(parents=True, exist_ok=True)
  names = load_names()
  items, missing = [], {}
  for style in sets:
    try:
      found = load_set(
        style,
        {key: entry.name for key, entry in names.items()},
        npm_dir or folder.parent / "npm",
      )
    except SourceMissing as reason:
      missing[style] = str(reason)
      say(f"{style}: left out, {reason}")
      continue
    say(f"{style}: {len(found)} drawings")
    items.append(found)
  if not items:
    raise ValueError(
      "None of the art sets is at hand: "
      + "; ".join(f"{style}: {why}" for style, why in missing.items())
      + "."
    )
  shards = [shard for found in items for shard in plan_shards(found, size)]
  sides = render_shards(shards, folder, workers)
  skipped = check_skipped(sides, shards, max_corrupt_share)
  say("comparing pictures, deciding the splits")
  return write_index(
    folder, size, [shard.name for shard in shards], names, skipped, missing
  )


def plan_shards(items: Sequence[SvgItem], size: int) -> list[Shard]:
  """The shards of one style, in order."""
  total = -(-len(items) // PER_SHARD)
  return [
    Shard(
      f"{items[0].style.replace(' ', '_')}-{i:05d}-of-{total:05d}.arrayrecord",
      size,
      tuple(items[i * PER_SHARD : (i + 1) * PER_SHARD]),
    )
    for i in range(total)
  ]


def _side_path(path: Path) -> Path:
  return path.with_suffix(".json")


def finished(shard: Shard, folder: Path) -> dict | None:
  """The side file of a shard that is already there and whole, else None."""
  path = folder / shard.name
  try:
    side = json.loads(_side_path(path).read_text("utf-8"))
    if side["fingerprint"] != shard.fingerprint:
      return None
    return side if store.file_sha256(path) == side["sha256"] else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def write_shard(shard: Shard, folder: Path) -> dict:
  """Renders one shard; returns its side file's content."""
  path = folder / shard.name
  partial = path.with_name(path.name + ".tmp")
  writer = open_writer(partial)
  skipped, digests = [], []
  for item in shard.items:
    try:
      png = render.render_svg(item.svg, shard.size)
    except render.RenderError as error:
      skipped.append(f"{item.style} {item.key}: {error}")
      continue
    header = {"style": item.style, "key": item.key}
    writer.write(store.pack_record(header, png))
    digests.append(render.pixel_digest(render.decode_png(png)))
  writer.close()
  os.replace(partial, path)
  side = {
    "fingerprint": shard.fingerprint,
    "sha256": store.file_sha256(path),
    "pixels": digests,
    "skipped": skipped,
  }
  store.write_atomically(_side_path(path), json.dumps(side))
  return side


def _start_worker() -> None:
  """Low priority; ends with its parent, even if that was killed."""
  os.nice(10)

  def follow():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def render_shards(
  shards: Sequence[Shard], folder: Path, workers: int
) -> list[dict]:
  """Side files of all shards, rendering those that are not finished."""
  sides = {shard.name: finished(shard, folder) for shard in shards}
  todo = [shard for shard in shards if sides[shard.name] is None]
  done = sum(len(s.items) for s in shards) - sum(len(s.items) for s in todo)
  bar = tqdm.tqdm(
    total=done + sum(len(s.items) for s in todo),
    initial=done,
    unit="picture",
    desc="rendering",
    disable=not todo,
  )
  with bar:
    if workers <= 1:
      for shard in todo:
        sides[shard.name] = write_shard(shard, folder)
        bar.update(len(shard.items))
    elif todo:
      # Spawned, not forked: the caller may have threads (JAX has).
      with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker
      ) as pool:
        jobs = {pool.submit(write_shard, s, folder): s for s in todo}
        for job in concurrent.futures.as_completed(jobs):
          sides[jobs[job].name] = job.result()
          bar.update(len(jobs[job].items))
  return [sides[shard.name] for shard in shards]


def check_skipped(
  sides: Sequence[dict], shards: Sequence[Shard], max_share: float
) -> list[str]:
  """What was skipped; ValueError when it is more than a share of the whole."""
  skipped = [line for side in sides for line in side["skipped"]]
  total = sum(len(shard.items) for shard in shards)
  if len(skipped) > max_share * total:
    raise ValueError(
      f"{len(skipped)} of {total} drawings cannot be rendered, more than the"
      f" accepted share of {max_share:.1%}; the first is {skipped[0]}."
    )
  return skipped
