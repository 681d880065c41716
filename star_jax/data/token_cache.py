"""Tokens and text states of pictures on disk, computed once, read in training.

A cache is one directory:

  manifest.json            identity, shards with their sizes and checksums
  null.npz                 text states of the empty prompt
  idx-00000.npy            uint16 [n, L], tokens of all scales
  caption-00000.npy        int32 [n], caption of each example (ids over shards)
  text-00000.npy           float16 [t, D], token states of the captions that
                           first occur in this shard, padding left out
  offset-00000.npy         int64 [m + 1], where each caption begins in `text`
  pooled-00000.npy         float16 [m, D]
  words-00000.json         the m captions themselves

A shard counts once it is in the manifest, which also holds the position of
the data iterator after it: a build that was killed goes on behind its last
whole shard. Equal captions are encoded and stored once. In a cache of classes
captions are names of classes, and the states have no width: which class a name
is, the reader says.

L: tokens of all scales, T: text tokens, D: text width, B: batch.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain.python as pygrain
import numpy as np

from star_jax.data.position import ALL_ROWS, NumberedBatches, rows_of

VERSION = 1
MANIFEST = "manifest.json"
NULL_FILE = "null.npz"
ARRAYS = ("idx", "caption", "text", "offset", "pooled")

EncodeImages = Callable[[np.ndarray], np.ndarray]
EncodeText = Callable[[Sequence[str]], Any]
EncodeLabels = Callable[[Sequence[str]], np.ndarray]


class TokenCacheWriter:
  """Builds a cache shard by shard; see `build`.

  Args:
    directory: created if needed; what is there is continued.
    identity: flat dict of everything the contents depend on. A directory with
      another identity is refused.
    encode_images: uint8 [B, H, W, 3] -> tokens [B, L].
    encode_text: captions -> an object with text_BTD, text_mask_BT, pooled_BD;
      of masks only left-aligned ones.
  """

  def __init__(
    self,
    directory: str | Path,
    identity: dict[str, Any],
    *,
    encode_images: EncodeImages,
    encode_text: EncodeText,
  ):
    self.directory = Path(directory)
    self._encode_images = encode_images
    self._encode_text = encode_text
    self.directory.mkdir(parents=True, exist_ok=True)
    self.manifest = self._open(_plain(identity))
    self._ids: dict[str, int] = {}
    for shard in self.manifest["shards"]:
      words = json.loads((self.directory / _words(shard["name"])).read_text())
      self._ids |= {word: len(self._ids) + i for i, word in enumerate(words)}

  def _open(self, identity: dict) -> dict:
    path = self.directory / MANIFEST
    if path.exists():
      manifest = _read_manifest(self.directory)
      check_identity(self.directory, manifest["identity"], identity)
      return manifest
    manifest = {
      "version": VERSION,
      "identity": identity,
      "complete": False,
      "shards": [],
    }
    null = self._encode_text([""])
    np.savez(
      self.directory / NULL_FILE,
      text=np.asarray(null.text_BTD, np.float16),
      mask=np.asarray(null.text_mask_BT, bool),
      pooled=np.asarray(null.pooled_BD, np.float16),
    )
    _write_json(path, manifest)
    return manifest

  def build(
    self, batches, num_examples: int, *, shard_examples: int, report=print
  ) -> None:
    """Takes examples from `batches` until the cache holds `num_examples`.

    Args:
      batches: iterator of {"image": uint8, "caption": strings} with get_state
        and set_state; batches are never split over shards.
      report: called with one line of progress a shard.
    """
    shards = self.manifest["shards"]
    done = sum(shard["examples"] for shard in shards)
    if shards and done < num_examples:
      batches.set_state(shards[-1]["data_state"])
    start, first = time.perf_counter(), done
    while done < num_examples:
      wanted = min(shard_examples, num_examples - done)
      shard = self._write_shard(len(shards), batches, wanted)
      shards.append(shard)
      _write_json(self.directory / MANIFEST, self.manifest)
      done += shard["examples"]
      rate = (done - first) / (time.perf_counter() - start)
      report(
        f"{self.directory.name}: {done}/{num_examples} examples,"
        f" {len(self._ids)} captions, {rate:.0f} examples/s, ETA"
        f" {max(num_examples - done, 0) / rate / 60:.1f} min"
      )
    self.manifest["complete"] = True
    _write_json(self.directory / MANIFEST, self.manifest)

  def _write_shard(self, number: int, batches, wanted: int) -> dict:
    idx, captions, fresh, count = [], [], [], 0
    while count < wanted:
      batch = next(batches)
      idx.append(self._encode_images(batch["image"]))
      for caption in map(str, batch["caption"]):
        if caption not in self._ids:
          self._ids[caption] = len(self._ids)
          fresh.append(caption)
        captions.append(self._ids[caption])
      count = len(captions)
    text, offset, pooled = self._encode_captions(fresh)
    arrays = {
      "idx": np.concatenate([np.asarray(x) for x in idx]).astype(np.uint16),
      "caption": np.asarray(captions, np.int32),
      "text": text,
      "offset": offset,
      "pooled": pooled,
    }
    name = f"{number:05d}"
    files = {}
    for kind in ARRAYS:
      path = self.directory / f"{kind}-{name}.npy"
      files[path.name] = _save_array(path, arrays[kind])
    _write_json(self.directory / _words(name), fresh)
    return {
      "name": name,
      "examples": len(captions),
      "captions": len(fresh),
      "files": files,
      "data_state": batches.get_state(),
    }

  def _encode_captions(self, captions: list[str]):
    """Token states without padding, offsets, pooled states."""
    text, lengths, pooled = [], [], []
    for begin in range(0, len(captions), 256):
      states = self._encode_text(captions[begin : begin + 256])
      mask_BT = np.asarray(states.text_mask_BT)
      text.append(np.asarray(states.text_BTD)[mask_BT].astype(np.float16))
      lengths.append(mask_BT.sum(axis=1))
      pooled.append(np.asarray(states.pooled_BD, np.float16))
    if not captions:
      width = self._encode_text([""]).pooled_BD.shape[-1]
      empty = np.zeros((0, width), np.float16)
      return empty, np.zeros(1, np.int64), empty
    offset = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return (
      np.concatenate(text),
      offset.astype(np.int64),
      np.concatenate(pooled),
    )


class TokenCache:
  """Read access to a finished cache; arrays stay on disk (memory-mapped).

  Args:
    directory: of a cache.
    max_tokens: T of the batches; longer states are cut.
    verify: compare every file with its checksum (reads everything once).

  Raises:
    ValueError: nothing there, unfinished, of another version, or a file that
      is missing or damaged, by name.
  """

  def __init__(
    self, directory: str | Path, max_tokens: int, *, verify: bool = False
  ):
    self.directory = Path(directory)
    self.max_tokens = max_tokens
    manifest = _read_manifest(self.directory)
    if not manifest["complete"]:
      raise ValueError(
        f"The token cache {directory} is unfinished ("
        f"{len(manifest['shards'])} shards so far); the command that started"
        " it finishes it."
      )
    self.identity = manifest["identity"]
    self._shards = []
    for shard in manifest["shards"]:
      self._check_files(shard["files"], verify)
      self._shards.append(
        {kind: self._map(f"{kind}-{shard['name']}.npy") for kind in ARRAYS}
      )
    self._examples = np.cumsum([s["examples"] for s in manifest["shards"]])
    self._captions = np.cumsum([s["captions"] for s in manifest["shards"]])
    self._words = [_words(s["name"]) for s in manifest["shards"]]
    self._labels = None

  def use_labels(self, encode: EncodeLabels) -> None:
    """From here on batches have the classes of their captions, not texts.

    Raises:
      ValueError: a caption that `encode` does not know.
    """
    captions: list[str] = []
    for name in self._words:
      captions += json.loads((self.directory / name).read_text())
    self._labels = np.asarray(encode(captions), np.int32)

  def _check_files(self, files: dict, verify: bool) -> None:
    for name, facts in files.items():
      path = self.directory / name
      if not path.exists():
        raise ValueError(f"The token cache lacks {path}.")
      if path.stat().st_size != facts["bytes"]:
        raise ValueError(
          f"{path} of the token cache is damaged: {path.stat().st_size} of"
          f" {facts['bytes']} bytes."
        )
      if verify and _sha256(path) != facts["sha256"]:
        raise ValueError(
          f"{path} of the token cache is damaged: its checksum differs."
        )

  def _map(self, name: str) -> np.ndarray:
    # A memory map of an empty array does not exist.
    path = self.directory / name
    array = np.load(path, mmap_mode="r")
    return array if array.size else np.array(array)

  def __len__(self) -> int:
    return int(self._examples[-1]) if len(self._examples) else 0

  @property
  def num_captions(self) -> int:
    return int(self._captions[-1]) if len(self._captions) else 0

  def null(self) -> dict[str, np.ndarray]:
    """States of the empty prompt, batch of one, as in `rows`."""
    with np.load(self.directory / NULL_FILE) as saved:
      text, mask = saved["text"], saved["mask"]
      return self._padded([text[0][mask[0]]], saved["pooled"])

  def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """A batch: idx int32 [B, L], text float16 [B, T, D], text_mask bool
    [B, T], pooled float16 [B, D]; see `use_labels`: idx, label int32 [B]."""
    idx, captions = [], []
    for index in indices:
      shard, row = _locate(self._examples, int(index))
      idx.append(self._shards[shard]["idx"][row])
      captions.append(int(self._shards[shard]["caption"][row]))
    batch = {"idx": np.stack(idx).astype(np.int32)}
    if self._labels is not None:
      return batch | {"label": self._labels[captions]}
    text, pooled = zip(*map(self._caption, captions))
    return batch | self._padded(text, np.stack(pooled))

  def _caption(self, caption: int) -> tuple[np.ndarray, np.ndarray]:
    shard, row = _locate(self._captions, caption)
    arrays = self._shards[shard]
    begin, end = arrays["offset"][row : row + 2]
    return arrays["text"][begin:end], arrays["pooled"][row]

  def _padded(
    self, text: Sequence[np.ndarray], pooled
  ) -> dict[str, np.ndarray]:
    shape = (len(text), self.max_tokens, text[0].shape[-1])
    text_BTD = np.zeros(shape, np.float16)
    mask_BT = np.zeros(shape[:2], bool)
    for i, states in enumerate(text):
      length = min(len(states), self.max_tokens)
      text_BTD[i, :length] = states[:length]
      mask_BT[i, :length] = True
    return {
      "text": text_BTD,
      "text_mask": mask_BT,
      "pooled": np.asarray(pooled),
    }

  def train_batches(
    self, batch_size: int, seed: int, rows: slice = ALL_ROWS
  ) -> NumberedBatches:
    """Endless shuffled batches with get_state and set_state.

    Each epoch has its own order.

    Args:
      batch_size: over all processes.
      seed: of the order.
      rows: of each batch, those that this process reads.
    """
    order = pygrain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()
    share = len(range(batch_size)[rows])

    def start(number: int) -> pygrain.DatasetIterator:
      mine = rows_of(order, batch_size, rows, number).batch(share)
      # No threads: a batch takes about a millisecond, handing it over takes
      # longer on a busy machine.
      none = pygrain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      return iter(mine.map(self.rows).to_iter_dataset(none))

    return NumberedBatches(start)

  def in_order(self, batch_size: int, count: int) -> Iterator[dict]:
    """The first `count` whole batches, in the order of the cache."""
    for i in range(min(count, len(self) // batch_size)):
      yield self.rows(range(i * batch_size, (i + 1) * batch_size))


def check_identity(path: str | Path, saved: dict, wanted: dict) -> None:
  """Refuses a cache that was made by something else, naming what differs.

  Only the keys of `wanted` are compared.
  """
  wanted = _plain(wanted)
  differing = [
    f"{key} is {saved.get(key)!r} there and {value!r} here"
    for key, value in sorted(wanted.items())
    if saved.get(key) != value
  ]
  if differing:
    raise ValueError(
      f"The token cache {path} was made by another configuration:"
      f" {'; '.join(differing)}; build a cache in another directory."
    )


def _read_manifest(directory: Path) -> dict:
  path = directory / MANIFEST
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise ValueError(
      f"No token cache in {directory}; launch/cache_tokens.py builds one."
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is damaged: {error}.") from error
  if manifest.get("version") != VERSION:
    raise ValueError(
      f"{path} has version {manifest.get('version')}, this program reads"
      f" version {VERSION}."
    )
  return manifest


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
  """Which shard, and which row of it."""
  shard = bisect.bisect_right(ends, index)
  return shard, index - (int(ends[shard - 1]) if shard else 0)


def _words(name: str) -> str:
  return f"words-{name}.json"


def _save_array(path: Path, array: np.ndarray) -> dict:
  temporary = path.with_name(f".{path.name}.tmp")
  with temporary.open("wb") as f:
    np.save(f, array)
  temporary.replace(path)
  return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
  temporary = path.with_name(f".{path.name}.tmp")
  temporary.write_text(json.dumps(value) + "\n")
  temporary.replace(path)


def _plain(tree: Any) -> Any:
  """As JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(tree))
