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
    max_crop: largest share of a picture that the crop may cut off; a picture
      that loses more counts as unusable.
    classes: the caption of a picture is the name of the folder that it lies
      in; there are no caption files.
    found: what `find_pictures` says, if it has been asked already.

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
    max_crop: float = 1.0,
    classes: bool = False,
    found: Found | None = None,
  ):
    check_split(split)
    if crop not in transforms.CROPS:
      raise ValueError(
        f"crop is one of {', '.join(transforms.CROPS)}, got {crop!r}."
      )
    if not 0 <= heldout_share < 1:
      raise ValueError(f"heldout_share is in [0, 1), got {heldout_share!r}.")
    self.size = tuple(size)
    if found is None:
      found = find_pictures(
        folder,
        (self.size,),
        small=small,
        max_crop=max_crop,
        max_bad_share=max_bad_share,
        classes=classes,
      )
    self.folder = Path(folder)
    train = split != "heldout"
    self._crop = crop if train else "centre"
    self._flip = flip and train
    self.failures, self.num_enlarged = found.failures, found.num_enlarged
    self.pairs = found.of_split(self.size, split, heldout_share)
    if not self.pairs:
      raise ValueError(
        f"None of the {len(found.pairs[self.size])} pictures in {self.folder}"
        f" fall into the split {split!r}; change heldout_share"
        f" ({heldout_share})."
      )

  @classmethod
  def of_sizes(
    cls,
    folder: str | Path,
    sizes: Sequence[tuple[int, int]],
    split: str,
    *,
    heldout_share: float,
    small: str,
    max_bad_share: float,
    max_crop: float,
    classes: bool,
    **options,
  ) -> dict[tuple[int, int], FolderSource]:
    """A source for each size, of the pictures whose shape is nearest to it.

    Args:
      sizes: (H, W) of each.

    Returns:
      By size, without those that no picture is nearest to.
    """
    common = dict(
      small=small, max_bad_share=max_bad_share, max_crop=max_crop,
      classes=classes,
    )  # fmt: skip
    found = find_pictures(folder, sizes, **common)
    return {
      size: cls(
        folder,
        size,
        split,
        heldout_share=heldout_share,
        found=found,
        **common,
        **options,
      )
      for size in found.pairs
      if found.of_split(size, split, heldout_share)
    }

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


@dataclasses.dataclass(frozen=True)
class Found:
  """The pictures of a folder.

  pairs: usable ones by the size (H, W) that they are cropped to, which is the
  nearest in shape. failures: what was skipped -> the reason. num_enlarged: how
  many are smaller than their crop.
  """

  pairs: dict[tuple[int, int], list[Pair]]
  failures: dict[str, str]
  num_enlarged: int

  def of_split(
    self, size: tuple[int, int], split: str, heldout_share: float
  ) -> list[Pair]:
    """Those of one size in a split."""
    held = _heldout_names([p.name for p in self.pairs[size]], heldout_share)
    heldout = split == "heldout"
    return [p for p in self.pairs[size] if (p.name in held) == heldout]


def find_pictures(
  folder: str | Path,
  sizes: Sequence[tuple[int, int]],
  *,
  small: str,
  max_crop: float,
  max_bad_share: float,
  classes: bool,
) -> Found:
  """Opens every picture of a folder once; arguments as of `FolderSource`.

  Raises:
    ValueError: no such folder, no pictures, or too many unusable ones.
  """
  if small not in SMALL:
    raise ValueError(f"small is one of {', '.join(SMALL)}, got {small!r}.")
  if not 0 < max_crop <= 1:
    raise ValueError(f"max_crop is in (0, 1], 1 is no limit, got {max_crop!r}.")
  if not str(folder):
    raise ValueError(
      "No folder of pictures was given; set config.data_options.folder.path."
    )
  folder = Path(folder)
  if not folder.is_dir():
    raise ValueError(f"There is no folder {str(folder)!r}.")
  files = [
    path
    for path in sorted(folder.rglob("*"))
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
  ]
  if not files:
    raise ValueError(
      f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)})."
    )
  sizes = [tuple(size) for size in sizes]
  least = max(max(size) for size in sizes)

  def check(path: Path):
    try:
      if classes:
        captions = (_class_of(path, folder),)
      else:
        captions = read_captions(_caption_file(path))
      image = open_rgb(path, least)
      size = min(sizes, key=lambda size: transforms.cropped_share(image, size))
      return captions, size, _check_crop(image, size, small, max_crop)
    except ValueError as error:
      return str(error)

  found = Found({size: [] for size in sizes}, {}, 0)
  enlarged = 0
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    for path, outcome in zip(files, pool.map(check, files)):
      name = path.relative_to(folder).as_posix()
      if isinstance(outcome, str):
        found.failures[name] = outcome
        continue
      captions, size, tiny = outcome
      found.pairs[size].append(Pair(name, captions))
      enlarged += tiny
  _check_share(folder, found.failures, len(files), max_bad_share)
  return dataclasses.replace(found, num_enlarged=enlarged)


def _check_crop(
  image: Image.Image, size: tuple[int, int], small: str, max_crop: float
) -> bool:
  """Whether the crop enlarges the picture.

  Raises:
    ValueError: it may not, or it cuts off too much.
  """
  tiny = transforms.is_smaller(image, size)
  if tiny and small == "skip":
    raise ValueError(
      f"{image.height} x {image.width} pixels are fewer than the crop of"
      f" {size[0]} x {size[1]}"
    )
  lost = transforms.cropped_share(image, size)
  if lost > max_crop:
    raise ValueError(
      f"the crop to {size[0]} x {size[1]} cuts off {lost:.0%} of its"
      f" {image.height} x {image.width} pixels, more than max_crop ="
      f" {max_crop:g}"
    )
  return tiny


def _check_share(
  folder: Path, failures: dict[str, str], total: int, max_bad_share: float
) -> None:
  """Warns of what is skipped; ValueError if it is too much."""
  bad = len(failures)
  if not bad:
    return
  named = "; ".join(
    f"{name}: {reason}" for name, reason in list(failures.items())[:_NAMED]
  )
  if bad > _NAMED:
    named += f"; and {bad - _NAMED} more"
  counted = f"{bad} of {total} pictures in {folder} cannot be used"
  if bad > max_bad_share * total:
    raise ValueError(
      f"{counted}, more than the accepted share max_bad_share ="
      f" {max_bad_share:g} ({named})."
    )
  warnings.warn(f"{counted} and are skipped ({named}).", stacklevel=4)


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
