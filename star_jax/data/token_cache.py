"""Reads a token cache: shuffled batches of tokens and text states.

How it lies on disk, and what it is refused for, is in cache_layout.py. Only the
indices are held in memory; records are read as they are asked for.

L: tokens of all scales, T: text tokens, D: text width, B: batch, V: variants.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grain.python as pygrain
import ml_dtypes
import numpy as np

from star_jax.data import cache_layout as layout
from star_jax.data.art.store import file_sha256
from star_jax.data.position import ALL_ROWS, NumberedBatches, rows_of
from star_jax.data.shard_files import Readers

EncodeLabels = Callable[[Sequence[str]], np.ndarray]

REFUSE, SKIP = "refuse", "skip"
_NAMED = 5  # damaged files that a message spells out


class TokenCache:
  """Read access to a finished cache.

  Args:
    directory: of a cache.
    max_tokens: T of the batches; longer states are cut.
    verify: compare every file with its checksum (reads everything once).
    damaged: what to do with missing and damaged files: "refuse", or "skip",
      which goes on without the examples that need them, with a warning.

  Raises:
    ValueError: nothing there, unfinished, of another version, or files that
      are missing or damaged, by name.
  """

  def __init__(
    self,
    directory: str | Path,
    max_tokens: int,
    *,
    verify: bool = False,
    damaged: str = REFUSE,
  ):
    if damaged not in (REFUSE, SKIP):
      raise ValueError(
        f"config.cache.damaged is {REFUSE} or {SKIP}, got {damaged!r}."
      )
    self.directory = Path(directory)
    self.max_tokens = max_tokens
    manifest = layout.read_manifest(self.directory)
    if not manifest["complete"]:
      raise ValueError(
        f"The token cache {directory} is unfinished; the command that started"
        f" it ({layout.COMMAND}) finishes it."
      )
    self.identity = manifest["identity"]
    self.counts = manifest["counts"]
    self._readers = Readers()
    self._labels = None
    bad = {}
    self._examples = self._open(manifest[layout.EXAMPLES], verify, bad)
    self._texts = self._open(manifest[layout.TEXTS], verify, bad)
    if bad and damaged == REFUSE:
      raise ValueError(
        f"{_named(bad)}; {layout.COMMAND} with --config.cache.verify=true"
        " writes such files anew, --config.cache.damaged=skip trains without"
        " their examples."
      )
    self._rows_NV = self._find_captions()
    # Places of the examples that have all they need.
    self._kept = np.flatnonzero((self._rows_NV >= 0).all(axis=1))
    if left_out := self.counts["examples"] - len(self):
      if not bad:
        raise ValueError(
          f"The manifest of the token cache {directory} lacks files of"
          f" {left_out} examples; {layout.COMMAND} writes it anew."
        )
      warnings.warn(
        f"{left_out} of {self.counts['examples']} examples are left out:"
        f" {_named(bad)}.",
        stacklevel=2,
      )
    if not len(self):
      raise ValueError(f"The token cache {directory} has no whole example.")

  def _open(self, files: list[dict], verify: bool, bad: dict) -> _Files:
    """The whole files of a kind; the others go into `bad`, with reasons."""
    good, keys = [], []
    for facts in files:
      path = self.directory / facts["name"]
      try:
        _check_file(path, facts, verify)
        index = layout.unpack_keys(self._readers.last(path))
      except ValueError as error:
        bad[path] = str(error).rstrip(".")
        continue
      good.append((path, facts["records"]))
      keys.append(index.reshape(facts["records"], -1))
    return _Files(good, keys)

  def _find_captions(self) -> np.ndarray:
    """int32 [N, V]: which text each variant has, -1 for one that is not
    there."""
    keys_NV = self._examples.keys
    if not self._texts.keys.size or not keys_NV.size:
      return np.full(keys_NV.shape, -1, np.int32)
    known = self._texts.keys[:, 0]
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known, keys_NV, sorter=order)
    rows = order[np.minimum(at, len(known) - 1)]
    return np.where(known[rows] == keys_NV, rows, -1).astype(np.int32)

  def use_labels(self, encode: EncodeLabels) -> None:
    """From here on batches have the classes of their captions, not texts.

    Raises:
      ValueError: a caption that `encode` does not know.
    """
    captions = [self._text(row).caption for row in range(self.num_captions)]
    self._labels = np.asarray(encode(captions), np.int32)

  def __len__(self) -> int:
    """How many originals there are."""
    return len(self._kept)

  @property
  def num_captions(self) -> int:
    return len(self._texts.keys)

  @property
  def num_variants(self) -> int:
    return self.counts["variants"]

  def record(self, index: int) -> layout.ExampleRecord:
    """All of an original.

    Raises:
      ValueError: its file was damaged after the cache was opened.
    """
    path, row = self._examples.locate(int(self._kept[index]))
    return layout.ExampleRecord.unpack(self._readers.read(path, row))

  def rows(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """A batch; V variants of N originals: number v N + i is variant v of i.

    Returns:
      idx int32 [B, L], text bfloat16 [B, T, D], text_mask bool [B, T], pooled
      bfloat16 [B, D]; see `use_labels`: idx, label int32 [B].
    """
    idx, captions = [], []
    for number in map(int, numbers):
      variant, index = divmod(number, len(self))
      idx.append(self.record(index).idx_VL[variant])
      captions.append(int(self._rows_NV[self._kept[index], variant]))
    batch = {"idx": np.stack(idx).astype(np.int32)}
    if self._labels is not None:
      return batch | {"label": self._labels[captions]}
    return batch | self._padded([self._text(row) for row in captions])

  def _text(self, row: int) -> layout.TextRecord:
    path, at = self._texts.locate(row)
    return layout.TextRecord.unpack(self._readers.read(path, at))

  def _padded(self, texts: Sequence[layout.TextRecord]) -> dict:
    shape = (len(texts), self.max_tokens, texts[0].text_TD.shape[-1])
    text_BTD = np.zeros(shape, ml_dtypes.bfloat16)
    mask_BT = np.zeros(shape[:2], bool)
    for i, text in enumerate(texts):
      length = min(len(text.text_TD), self.max_tokens)
      text_BTD[i, :length] = text.text_TD[:length]
      mask_BT[i, :length] = True
    pooled_BD = np.stack([text.pooled_D for text in texts])
    return {"text": text_BTD, "text_mask": mask_BT, "pooled": pooled_BD}

  def train_batches(
    self, batch_size: int, seed: int, rows: slice = ALL_ROWS
  ) -> NumberedBatches:
    """Endless shuffled batches with get_state and set_state.

    Each epoch has its own order and takes the next variant of every original.

    Args:
      batch_size: over all processes.
      seed: of the order.
      rows: of each batch, those that this process reads.
    """
    order = pygrain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()
    order = order.map_with_index(self.number_at)
    share = len(range(batch_size)[rows])

    def start(number: int) -> pygrain.DatasetIterator:
      mine = rows_of(order, batch_size, rows, number).batch(share)
      # No threads: a batch takes about a millisecond, handing it over takes
      # longer on a busy machine.
      none = pygrain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      return iter(mine.map(self.rows).to_iter_dataset(none))

    return NumberedBatches(start)

  def number_at(self, position: int, index: int) -> int:
    """The number for `rows` of original `index` at a position of the order:
    the variant goes by the epoch."""
    epoch = position // len(self)
    return epoch % self.num_variants * len(self) + index

  def in_order(self, batch_size: int, count: int) -> Iterator[dict]:
    """The first `count` whole batches, in the order of the cache."""
    for i in range(min(count, len(self) // batch_size)):
      yield self.rows(range(i * batch_size, (i + 1) * batch_size))


class _Files:
  """Files of one kind as one sequence of records.

  keys: uint64 [N, V] of all of them.
  """

  def __init__(self, files: list[tuple[Path, int]], keys: list[np.ndarray]):
    self._paths = [path for path, _ in files]
    self._ends = np.cumsum([count for _, count in files])
    self.keys = np.concatenate(keys) if keys else np.zeros((0, 1), np.uint64)

  def locate(self, place: int) -> tuple[Path, int]:
    """Which file, and which record of it."""
    file = bisect.bisect_right(self._ends, place)
    return self._paths[file], place - int(self._ends[file - 1] if file else 0)


def _check_file(path: Path, facts: dict, verify: bool) -> None:
  """ValueError with the reason if it is not the file that was written."""
  if not path.exists():
    raise ValueError("it is missing")
  size = path.stat().st_size
  if size != facts["bytes"]:
    raise ValueError(f"{size} of {facts['bytes']} bytes")
  if verify and file_sha256(path) != facts["sha256"]:
    raise ValueError("its checksum differs")


def _named(bad: dict[Path, str]) -> str:
  """Which files of a cache are damaged, and why."""
  few = list(bad.items())[:_NAMED]
  named = "; ".join(f"{path} ({reason})" for path, reason in few)
  if len(bad) > _NAMED:
    named += f"; and {len(bad) - _NAMED} more"
  return f"Files of the token cache are missing or damaged: {named}"
