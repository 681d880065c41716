"""The art on disk: ArrayRecord shards, an index, a manifest with checksums.

  manifest.json            counts, checksums, what was skipped and why
  index.jsonl              one line a picture: name, split, shard, position
  <style>-00003-of-00016.arrayrecord   JSON header + PNG per record

A record is 4 bytes (little-endian length of the header), the header and the
PNG. The index can be written anew (better names, other splits) without
rendering again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_jax.data.art.names import neutral, untoned
from star_jax.data.art.render import decode_png
from star_jax.data.shard_files import open_reader

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index.jsonl"


@dataclasses.dataclass(frozen=True)
class ArtRecord:
  """One picture. `holdout_reason` is '' for split 'train'."""

  key: str
  style: str
  name: str
  keywords: tuple[str, ...]
  category: str
  subcategory: str
  split: str
  holdout_reason: str
  shard: str
  position: int

  @property
  def concept(self) -> str:
    """The key without skin tone: what all tone variants share."""
    return untoned(self.key)

  @property
  def merged_concept(self) -> str:
    """The key without skin tone, gender and direction."""
    return neutral(self.key)


def default_art_dir(size: int = 128) -> Path:
  """$STAR_DATA_DIR/art<size>, or data_cache/art<size> in the repository."""
  parent = os.environ.get("STAR_DATA_DIR")
  root = Path(__file__).resolve().parents[3]
  return (Path(parent) if parent else root / "data_cache") / f"art{size}"


def pack_record(header: dict, png: bytes) -> bytes:
  """Bytes of one record of a shard."""
  text = json.dumps(header, sort_keys=True).encode()
  return struct.pack("<I", len(text)) + text + png


def unpack_record(record: bytes) -> tuple[dict, bytes]:
  """(header, PNG bytes)."""
  (length,) = struct.unpack_from("<I", record)
  return json.loads(record[4 : 4 + length]), record[4 + length :]


def file_sha256(path: Path) -> str:
  """Hex digest of a file's bytes."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def file_facts(path: Path) -> dict:
  """What the manifest says of a file."""
  return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def partial_path(path: Path) -> Path:
  """Where a file is written before it is renamed; no other writer's, on
  whatever machine."""
  return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_atomically(path: Path, text: str) -> None:
  """A reader sees the old file or the whole new one."""
  partial = partial_path(path)
  with open(partial, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


class ArtStore:
  """Pictures by number. Decodes on demand; may be sent to other processes."""

  def __init__(self, folder: Path, size: int, records: list[ArtRecord]):
    self.folder = folder
    self.size = size
    self.records = records
    self._by_key = {(r.style, r.key): i for i, r in enumerate(records)}
    self._readers = {}

  def __len__(self) -> int:
    return len(self.records)

  def __getstate__(self):
    return {**self.__dict__, "_readers": {}}

  def index(self, style: str, key: str) -> int:
    """The number of a picture; KeyError when the style does not draw it."""
    return self._by_key[style, key]

  def __contains__(self, style_and_key: tuple[str, str]) -> bool:
    return style_and_key in self._by_key

  def select(self, keep: Callable[[ArtRecord], bool]) -> np.ndarray:
    """The numbers of the records that `keep` accepts, int64."""
    return np.array(
      [i for i, record in enumerate(self.records) if keep(record)], np.int64
    )

  def png(self, i: int) -> bytes:
    """The PNG as it was rendered."""
    record = self.records[i]
    # A reader must not cross a fork, so each process opens its own.
    place = (os.getpid(), record.shard)
    if place not in self._readers:
      self._readers[place] = open_reader(self.folder / record.shard)
    return unpack_record(self._readers[place].read([record.position])[0])[1]

  def rgba(self, i: int) -> np.ndarray:
    """uint8 [size, size, 4], straight alpha."""
    return decode_png(self.png(i))


def read_shard(path: Path) -> list[tuple[dict, bytes]]:
  """All (header, PNG) of a shard."""
  reader = open_reader(path)
  try:
    return [unpack_record(r) for r in reader.read_all()]
  finally:
    reader.close()


def load_art(folder: str | Path | None = None) -> ArtStore:
  """Opens an art store after checking every file against the manifest.

  Args:
    folder: what launch/prepare_data.py wrote; None for the default place.

  Raises:
    ValueError: nothing there, unfinished, or a file is missing or damaged;
      one sentence that names the file and says what to do.
  """
  folder = Path(folder) if folder is not None else default_art_dir()
  redo = "run launch/prepare_data.py to write it"
  path = folder / MANIFEST
  if not path.exists():
    raise ValueError(f"There is no finished art store in {folder}: {redo}.")
  try:
    manifest = json.loads(path.read_text("utf-8"))
    version = manifest["format"]
  except (ValueError, KeyError, TypeError):
    raise ValueError(f"{path} is damaged: {redo} again.") from None
  if version != FORMAT:
    raise ValueError(
      f"{path} has format {version!r}, this code reads {FORMAT}: {redo} anew."
    )
  for name, facts in manifest["files"].items():
    _check_file(folder / name, facts)
  records = []
  for line in (folder / INDEX).read_text("utf-8").splitlines():
    fields = json.loads(line)
    fields["keywords"] = tuple(fields["keywords"])
    records.append(ArtRecord(**fields))
  return ArtStore(folder, manifest["size"], records)


def _check_file(path: Path, facts: dict) -> None:
  again = "run launch/prepare_data.py again to repair it"
  if not path.exists():
    raise ValueError(f"{path.name} is missing from {path.parent}: {again}.")
  size = path.stat().st_size
  if size != facts["bytes"]:
    raise ValueError(
      f"{path} has {size} bytes where the manifest says {facts['bytes']}:"
      f" {again}."
    )
  if file_sha256(path) != facts["sha256"]:
    raise ValueError(
      f"{path} does not match its checksum in the manifest: {again}."
    )
