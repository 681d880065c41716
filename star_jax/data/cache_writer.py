"""Builds a token cache: pictures to tokens first, then captions to states.

Each step is a set of files, and process p of P writes every P-th of them. The
second step needs the captions of the whole first one, since a caption is stored
once, with the file in which it occurs first; a process that is ahead waits for
the others. See cache_layout.py for what is written.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.data import cache_layout as layout
from star_jax.data.art.store import file_facts, partial_path, write_atomically
from star_jax.data.flips import has_spatial_words, mirrored
from star_jax.data.shard_files import open_writer

EncodeImages = Callable[[np.ndarray], np.ndarray]
EncodeText = Callable[[Sequence[str]], Any]
# By place in the order of the data: the variants of each example, as dicts of
# image (uint8 [H, W, 3]), caption and id.
ReadExamples = Callable[[np.ndarray], Iterator[list[dict[str, Any]]]]

TEXT_BATCH = 256
# Seconds without a new file after which the other processes count as gone: a
# file of a large tokenizer takes its time.
PATIENCE = 7200


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is built.

  examples: originals. variants: how often each is encoded. flip: half of the
  variants are mirrored, where the caption allows it. vocab_size: of the
  tokens. batch_size: pictures encoded at once. shard_examples, shard_captions:
  in a file. seed: of the flips.
  """

  examples: int
  variants: int
  flip: bool
  vocab_size: int
  batch_size: int
  shard_examples: int
  shard_captions: int
  seed: int

  def __post_init__(self):
    for name in (
      "examples", "variants", "batch_size", "shard_examples", "shard_captions",
    ):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(
          f"config.cache.{name} is at least 1, got {getattr(self, name)!r}."
        )


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of records and what is to be in it.

  expected: facts that tell a finished file of this plan from another one.
  """

  directory: Path
  kind: str
  number: int
  first: int
  count: int
  expected: dict[str, Any]

  @property
  def path(self) -> Path:
    return layout.shard_path(self.directory, self.kind, self.number)

  def facts(self, verify: bool = False) -> dict | None:
    """Its side file if it is finished and whole, else None.

    Args:
      verify: compare the checksum, too, not the size alone.
    """
    try:
      side = json.loads(self.path.with_suffix(".json").read_text("utf-8"))
      whole = self.path.stat().st_size == side["facts"]["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
      return None
    found = {key: side["facts"].get(key) for key in self.expected}
    if not whole or found != self.expected:
      return None
    if verify and file_facts(self.path)["sha256"] != side["facts"]["sha256"]:
      return None
    return side

  def write(self, records, index: bytes, **side) -> None:
    """Writes all records and then the side file with their facts."""
    partial = partial_path(self.path)
    writer = open_writer(partial)
    for record in records:
      writer.write(record)
    writer.write(index)
    writer.close()
    partial.replace(self.path)
    side["facts"] = {
      "name": self.path.name,
      **self.expected,
      **side.get("facts", {}),
      **file_facts(self.path),
    }
    write_atomically(
      self.path.with_suffix(".json"), json.dumps(side, ensure_ascii=False)
    )


class TokenCacheWriter:
  """Builds a cache file by file; see `build`.

  Args:
    directory: created if needed; what is there is continued.
    identity: flat dict of everything the contents depend on. A directory with
      another identity is refused.
    encode_images: uint8 [B, H, W, 3] -> tokens [B, L].
    encode_text: captions -> an object with text_BTD, text_mask_BT, pooled_BD;
      of masks only left-aligned ones.
    process, processes: which share of the files this process writes.
    verify: files that are there are compared with their checksums, and
      written anew if they differ.

  Raises:
    ValueError: another cache is there.
  """

  def __init__(
    self,
    directory: str | Path,
    identity: dict[str, Any],
    *,
    encode_images: EncodeImages,
    encode_text: EncodeText,
    process: int = 0,
    processes: int = 1,
    verify: bool = False,
  ):
    self.directory = Path(directory)
    self._encode_images = encode_images
    self._encode_text = encode_text
    self._process, self._processes = process, processes
    self._verify = verify
    self.directory.mkdir(parents=True, exist_ok=True)
    self._manifest = {
      "version": layout.VERSION,
      "config_hash": layout.json_hash(layout.plain(identity)),
      "tokenizer_hash": identity.get("tokenizer"),
      "identity": layout.plain(identity),
      "complete": False,
    }
    self._saved = {}
    if (self.directory / layout.MANIFEST).exists():
      self._saved = layout.read_manifest(self.directory)
      layout.check_identity(self.directory, self._saved["identity"], identity)

  def build(
    self, read: ReadExamples, plan: Plan, *, report=print, patience=PATIENCE
  ) -> None:
    """Writes what is not there yet of this process's share.

    Args:
      read: yields the examples at the places it is given, in that order.
      plan: how many, and how they are laid out.
      report: called with one line a file.
      patience: see `PATIENCE`.

    Raises:
      ValueError: other processes have not written their share in time.
    """
    if self._saved.get("counts", {}).get("examples") != plan.examples:
      self._write_manifest()  # there is none, or it is of fewer or more
    shards = self._example_shards(plan)
    self._write_examples(shards, read, plan, report)
    self._wait_for(shards, report, patience)
    texts = self._text_shards(shards, plan)
    self._write_texts(texts, report)
    sides = [shard.facts() for shard, _ in texts]
    if all(sides):
      self._finish(shards, sides, plan, report)

  def _example_shards(self, plan: Plan) -> list[Shard]:
    size = plan.shard_examples
    return [
      Shard(self.directory, layout.EXAMPLES, number, first, count, facts)
      for number, first in enumerate(range(0, plan.examples, size))
      for count in [min(size, plan.examples - first)]
      for facts in [{"records": count, "first": first}]
    ]

  def _text_shards(
    self, shards: list[Shard], plan: Plan
  ) -> list[tuple[Shard, list[str]]]:
    """With their captions, all of them in the order of their occurrence."""
    captions: dict[str, None] = {}
    for shard in shards:
      captions.update(dict.fromkeys(shard.facts()["captions"]))
    words, size, out = list(captions), plan.shard_captions, []
    assert len(set(map(layout.caption_key, words))) == len(words), "collision"
    for number, first in enumerate(range(0, len(words), size)):
      mine = words[first : first + size]
      facts = {
        "records": len(mine),
        "first": first,
        "captions": layout.json_hash(mine),
      }
      shard = Shard(
        self.directory, layout.TEXTS, number, first, len(mine), facts
      )
      out.append((shard, mine))
    return out

  def _mine(self, shards: Sequence[Shard]) -> list[Shard]:
    """Those of this process's share that are to be written."""
    return [
      shard
      for shard in shards[self._process :: self._processes]
      if not shard.facts(self._verify)
    ]

  def _write_examples(self, shards, read: ReadExamples, plan, report) -> None:
    todo = self._mine(shards)
    if not todo:
      return
    rest = sum(shard.count for shard in todo)
    progress = _Progress(f"{self.directory.name}: pictures", rest, report)
    places = [np.arange(s.first, s.first + s.count) for s in todo]
    # One reader over all files: nothing waits at the end of a file.
    examples = read(np.concatenate(places))
    for shard in todo:
      self._write_example_shard(shard, examples, plan)
      progress.add(shard.count, shard.path.name)

  def _write_example_shard(self, shard: Shard, examples, plan: Plan) -> None:
    records, captions = [], []
    counts = {"flipped": 0, "spatial": 0}
    for begin in range(0, shard.count, plan.batch_size):
      places = range(begin, min(begin + plan.batch_size, shard.count))
      batch = [next(examples) for _ in places]
      flipped_BV = np.array(
        [
          self._flip(variants, shard.first + place, plan, counts)
          for variants, place in zip(batch, places)
        ]
      )
      idx_BVL = self._encode(batch, plan)
      for variants, idx_VL, flipped_V in zip(batch, idx_BVL, flipped_BV):
        said = [str(example["caption"]) for example in variants]
        keys_V = np.array([layout.caption_key(c) for c in said], np.uint64)
        record = layout.ExampleRecord(
          idx_VL, keys_V, flipped_V, variants[0]["id"]
        )
        records.append(record)
        captions += said
    shard.write(
      (record.pack() for record in records),
      layout.pack_keys([record.keys_V for record in records]),
      captions=list(dict.fromkeys(captions)),
      facts=counts,
    )

  def _flip(self, variants, place: int, plan: Plan, counts) -> list[bool]:
    """Mirrors about half of the variants that may be, in place."""
    out = []
    for number, example in enumerate(variants):
      rng = np.random.default_rng([plan.seed, place, number])
      wanted = plan.flip and rng.random() < 0.5
      refused = wanted and has_spatial_words(example["caption"])
      if wanted and not refused:
        example["image"] = mirrored(example["image"])
      counts["spatial"] += refused
      counts["flipped"] += wanted and not refused
      out.append(wanted and not refused)
    return out

  def _encode(self, batch, plan: Plan) -> np.ndarray:
    """uint16 or uint32 [B, V, L]. All calls are of one size, which is compiled
    once."""
    dtype = np.uint16 if plan.vocab_size <= 2**16 else np.uint32
    out = []
    for number in range(plan.variants):
      image = [variants[number]["image"] for variants in batch]
      image += image[-1:] * (plan.batch_size - len(batch))
      idx_BL = np.asarray(self._encode_images(np.stack(image)))
      out.append(idx_BL[: len(batch)].astype(dtype))
    return np.stack(out, axis=1)

  def _write_texts(self, texts: list[tuple[Shard, list[str]]], report) -> None:
    words = {shard.number: mine for shard, mine in texts}
    todo = self._mine([shard for shard, _ in texts])
    rest = sum(shard.count for shard in todo)
    progress = _Progress(f"{self.directory.name}: captions", rest, report)
    for shard in todo:
      captions = words[shard.number]
      shard.write(
        self._text_records(captions),
        layout.pack_keys([layout.caption_key(c) for c in captions]),
      )
      progress.add(shard.count, shard.path.name)

  def _text_records(self, captions: list[str]) -> Iterator[bytes]:
    for begin in range(0, len(captions), TEXT_BATCH):
      words = captions[begin : begin + TEXT_BATCH]
      states = self._encode_text(words)
      text_BTD = np.asarray(states.text_BTD)
      mask_BT = np.asarray(states.text_mask_BT)
      pooled_BD = np.asarray(states.pooled_BD)
      for i, caption in enumerate(words):
        text_TD = text_BTD[i][mask_BT[i]]
        yield layout.TextRecord(text_TD, pooled_BD[i], caption).pack()

  def _wait_for(self, shards: list[Shard], report, patience: float) -> None:
    """Until all are finished; those of other processes take their time."""
    missing = [shard for shard in shards if not shard.facts()]
    since, told = time.monotonic(), False
    while missing:
      if time.monotonic() - since > patience:
        raise ValueError(
          f"Other processes have written nothing for {patience:g} s and"
          f" {len(missing)} files are missing, first {missing[0].path}; start"
          " the same command for every process again, or once alone."
        )
      if not told:
        report(f"{self.directory.name}: waiting for the other processes")
        told = True
      time.sleep(0.2)
      left = [shard for shard in missing if not shard.facts()]
      if len(left) < len(missing):
        since = time.monotonic()
      missing = left

  def _finish(self, shards, texts: list[dict], plan: Plan, report) -> None:
    """Every file is there: says so in the manifest."""
    examples = [shard.facts()["facts"] for shard in shards]
    texts = [side["facts"] for side in texts]
    counts = {
      "examples": plan.examples,
      "variants": plan.variants,
      "captions": sum(facts["records"] for facts in texts),
      "flipped": sum(facts["flipped"] for facts in examples),
      "spatial": sum(facts["spatial"] for facts in examples),
    }
    self._manifest |= {
      "complete": True,
      "counts": counts,
      layout.EXAMPLES: examples,
      layout.TEXTS: texts,
    }
    self._write_manifest()
    # Left by builds that were killed; another process may be writing the
    # manifest at this moment.
    litter = ".*.tmp" if self._processes == 1 else ".*-*.tmp"
    for left in self.directory.glob(litter):
      left.unlink(missing_ok=True)
    size = sum(facts["bytes"] for facts in (*examples, *texts))
    report(
      f"{self.directory.name}: complete, {counts['examples']} examples,"
      f" {counts['captions']} captions, {size / 2**20:.0f} MiB"
    )
    if plan.flip:
      report(
        f"{self.directory.name}: {counts['flipped']} of"
        f" {plan.examples * plan.variants} pictures are mirrored;"
        f" {counts['spatial']} were not, for a word such as left in their"
        " captions"
      )

  def _write_manifest(self) -> None:
    text = json.dumps(self._manifest, indent=1) + "\n"
    write_atomically(self.directory / layout.MANIFEST, text)


class _Progress:
  """A line a file: how many are done, how fast, how long it takes still."""

  def __init__(self, label: str, total: int, report):
    self._label, self._total, self._report = label, total, report
    self._done, self._start = 0, time.perf_counter()

  def add(self, count: int, name: str) -> None:
    self._done += count
    rate = self._done / (time.perf_counter() - self._start)
    eta = (self._total - self._done) / rate / 60
    self._report(
      f"{self._label} {self._done}/{self._total} ({name}), {rate:.0f}/s, ETA"
      f" {eta:.1f} min"
    )
