"""A folder of pictures with captions: `x.png` beside `x.txt` or `x.json`.

A .txt file holds one caption a line (several lines: one is drawn at random).
A .json file holds a string, a list of strings, or an object with "caption" or
"captions". Pairs that cannot be used are skipped, counted and named; when
they are more than a stated share, that is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from star_jax.data import transforms
from star_jax.data.sources import Example, check_split

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION_SUFFIXES = (".txt", ".json")
SMALL = ("enlarge", "skip")
_NAMED = 5  # failures that a message spells out


@dataclasses.dataclass(frozen=True)
class Pair:
  """One usable picture. name: path inside the folder, with /."""

  name: str
  captions: tuple[str, ...]


def read_captions(path: Path) -> tuple[str, ...]:
  """The captions in a .txt or .json file, cleaned up.

  Raises:
    ValueError: with the reason when there is none to be had.
  """
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"caption is not UTF-8 (byte {error.start} of {path.name})"
    ) from None
  lines = text.splitlines()
  if path.suffix == ".json":
    try:
      value = json.loads(text)
    except json.JSONDecodeError as error:
      raise ValueError(f"{path.name} is not JSON: {error.msg}") from None
    if isinstance(value, dict):
      value = value.get("captions", value.get("caption"))
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(
      isinstance(line, str) for line in lines
    ):
      raise ValueError(
        f"{path.name} holds neither a string, a list of strings nor an object"
        ' with "caption" or "captions"'
      )
  captions = tuple(c for c in map(transforms.clean_caption, lines) if c)
  if not captions:
    raise ValueError(f"{path.name} holds no caption")
  return captions


def open_rgb(path: Path, least: int) -> Image.Image:
  """A picture as 8-bit RGB, read to its end.

  Args:
    path: of the file.
    least: a large JPEG may come out at a half, quarter or eighth of its size
      (which is much quicker) while both sides keep twice this many pixels.

  Raises:
    ValueError: with the reason for a corrupt or truncated file.
  """
  try:
    with Image.open(path) as image:
      image.draft(None, (2 * least, 2 * least))
      image.load()
      return transforms.to_rgb(image)
  except Exception as error:  # decoders raise whatever they like
    if isinstance(error, MemoryError):
      raise
    reason = str(error).replace(str(path), path.name) or type(error).__name__
    raise ValueError(f"image cannot be read ({reason})") from None


class FolderSource:
  """Pictures with captions from a folder and the folders in it.

  Every file is opened once at the start, so that training never meets a bad
  one; `failures` maps what was skipped to the reason.

  Args:
    folder: searched recursively.
    size: (H, W) of the crops.
    split: "heldout" is a share of the files by a hash of their names; "train"
      and "seen" are the others.
    heldout_share: in [0, 1).
    crop: "random" or "centre" ("heldout" is always centred).
    flip: mirror half of the training pictures. This breaks "left of",
      letters and arrows.
    small: what to do with pictures smaller than the crop, "enlarge" or "skip"
      (counts as unusable).
    max_bad_share: largest acceptable share of unusable pairs.
    classes: the caption of a picture is the name of the folder that it lies
      in; there are no caption files.

  Raises:
    ValueError: no such folder, no pairs, too many unusable ones, or an
      unknown option.
  """

  def __init__(
    self,
    folder: str | Path,
    size: tuple[int, int],
    split: str,
    *,
    heldout_share: float,
    crop: str,
    flip: bool,
    small: str,
    max_bad_share: float,
    classes: bool = False,
  ):
    check_split(split)
    if crop not in transforms.CROPS:
      raise ValueError(
        f"crop is one of {', '.join(transforms.CROPS)}, got {crop!r}."
      )
    if small not in SMALL:
      raise ValueError(f"small is one of {', '.join(SMALL)}, got {small!r}.")
    if not 0 <= heldout_share < 1:
      raise ValueError(f"heldout_share is in [0, 1), got {heldout_share!r}.")
    if not str(folder):
      raise ValueError(
        "No folder of pictures was given; set config.data_options.folder.path."
      )
    self.folder = Path(folder)
    if not self.folder.is_dir():
      raise ValueError(f"There is no folder {str(folder)!r}.")
    self.size = tuple(size)
    train = split != "heldout"
    self._crop = crop if train else "centre"
    self._flip = flip and train
    good, self.failures, self.num_enlarged = self._scan(small, classes)
    self._check_share(len(good), max_bad_share)
    held = _heldout_names([p.name for p in good], heldout_share)
    self.pairs = [p for p in good if (p.name not in held) == train]
    if not self.pairs:
      raise ValueError(
        f"None of the {len(good)} pictures in {self.folder} fall into the"
        f" split {split!r}; change heldout_share ({heldout_share})."
      )

  def __len__(self) -> int:
    return len(self.pairs)

  def example(self, index: int, seed: int) -> Example:
    pair = self.pairs[index]
    rng = np.random.default_rng([seed, index])
    caption = pair.captions[rng.integers(len(pair.captions))]
    picture = open_rgb(self.folder / pair.name, max(self.size))
    image = transforms.resize_and_crop(
      picture, self.size, crop=self._crop, rng=rng
    )
    if self._flip and rng.random() < 0.5:
      image = np.ascontiguousarray(image[:, ::-1])
    return image, caption, {"source": "folder", "name": pair.name}

  def _scan(self, small: str, classes: bool):
    """(usable pairs, {name: reason}, number of enlarged ones)."""
    files = [
      path
      for path in sorted(self.folder.rglob("*"))
      if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    if not files:
      raise ValueError(
        f"{self.folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)})."
      )

    def check(path: Path):
      try:
        if classes:
          captions = (_class_of(path, self.folder),)
        else:
          captions = read_captions(_caption_file(path))
        image = open_rgb(path, max(self.size))
        tiny = transforms.is_smaller(image, self.size)
        if tiny and small == "skip":
          raise ValueError(
            f"{image.height} x {image.width} pixels are fewer than the crop"
            f" of {self.size[0]} x {self.size[1]}"
          )
      except ValueError as error:
        return str(error), False
      return captions, tiny

    good, failures, enlarged = [], {}, 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      for path, (found, tiny) in zip(files, pool.map(check, files)):
        name = path.relative_to(self.folder).as_posix()
        if isinstance(found, str):
          failures[name] = found
        else:
          good.append(Pair(name, found))
          enlarged += tiny
    return good, failures, enlarged

  def _check_share(self, num_good: int, max_bad_share: float) -> None:
    bad = len(self.failures)
    total = num_good + bad
    if not bad:
      return
    named = "; ".join(
      f"{name}: {reason}"
      for name, reason in list(self.failures.items())[:_NAMED]
    )
    if bad > _NAMED:
      named += f"; and {bad - _NAMED} more"
    counted = f"{bad} of {total} pictures in {self.folder} cannot be used"
    if bad > max_bad_share * total:
      raise ValueError(
        f"{counted}, more than the accepted share max_bad_share ="
        f" {max_bad_share:g} ({named})."
      )
    warnings.warn(f"{counted} and are skipped ({named}).", stacklevel=3)


def _caption_file(path: Path) -> Path:
  for suffix in CAPTION_SUFFIXES:
    if (beside := path.with_suffix(suffix)).is_file():
      return beside
  raise ValueError(f"no {path.stem}.txt or {path.stem}.json beside it")


def _class_of(path: Path, folder: Path) -> str:
  if path.parent == folder:
    raise ValueError("it lies in no folder that names its class")
  return path.parent.name


def _heldout_names(names: Sequence[str], share: float) -> set[str]:
  """The names whose hash is low: a file stays where it is as others come.

  A small folder gives at least one, if any are wanted.
  """
  if not share:
    return set()
  hashes = {name: _hash(name) for name in names}
  held = {name for name, value in hashes.items() if value < share}
  return held or {min(names, key=hashes.get)}


def _hash(name: str) -> float:
  """In [0, 1)."""
  digest = hashlib.sha256(("folder " + name).encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
