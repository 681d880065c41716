"""Training examples from captioned pictures of one's own: split, decode, crop.

Where the pictures lie is the listing's (see listing.py). Every picture is
opened once at the start, so that training never meets a bad one. Those that
cannot be used are skipped, counted and named; when they are more than a stated
share, that is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from star_jax.data import transforms
from star_jax.data.flips import has_spatial_words, mirrored
from star_jax.data.listing import Listing
from star_jax.data.sources import Example, check_split

SMALL = ("enlarge", "skip")
_NAMED = 5  # failures that a message spells out


@dataclasses.dataclass(frozen=True)
class PictureOptions:
  """What becomes of the pictures.

  heldout_share: share of the pictures, by a hash of their names, that is held
    out, in [0, 1).
  crop: "random" or "centre" (the split "heldout" is always centred).
  flip: mirror half of the training pictures, but none whose caption has
    spatial words; see flips.py.
  small: what to do with pictures smaller than the crop, "enlarge" or "skip"
    (counts as unusable).
  max_bad_share: largest acceptable share of unusable pictures.
  max_crop: largest share of a picture that the crop may cut off; a picture
    that loses more counts as unusable.

  Raises:
    ValueError: an unknown option.
  """

  heldout_share: float
  crop: str
  flip: bool
  small: str
  max_bad_share: float
  max_crop: float = 1.0

  def __post_init__(self):
    if self.crop not in transforms.CROPS:
      raise ValueError(
        f"crop is one of {', '.join(transforms.CROPS)}, got {self.crop!r}."
      )
    if not 0 <= self.heldout_share < 1:
      raise ValueError(
        f"heldout_share is in [0, 1), got {self.heldout_share!r}."
      )
    if self.small not in SMALL:
      raise ValueError(
        f"small is one of {', '.join(SMALL)}, got {self.small!r}."
      )
    if not 0 < self.max_crop <= 1:
      raise ValueError(
        f"max_crop is in (0, 1], 1 is no limit, got {self.max_crop!r}."
      )


@dataclasses.dataclass(frozen=True)
class Pair:
  """One usable picture. name: its id; number: in the listing."""

  name: str
  captions: tuple[str, ...]
  number: int


class PictureSource:
  """Pictures with captions; `failures` maps what was skipped to the reason.

  Args:
    listing: the pictures.
    options: what becomes of them.
    size: (H, W) of the crops.
    split: "heldout" is a share of them; "train" and "seen" are the others.
    found: what `find_pictures` says, if it has been asked already.

  Raises:
    ValueError: too many unusable pictures, or none in the split.
  """

  def __init__(
    self,
    listing: Listing,
    options: PictureOptions,
    *,
    size: tuple[int, int],
    split: str,
    found: Found | None = None,
  ):
    self.size = tuple(size)
    train = check_split(split) != "heldout"
    self._listing = listing
    self._crop = options.crop if train else "centre"
    self._flip = options.flip and train
    found = found or find_pictures(listing, options, (self.size,))
    self.failures, self.num_enlarged = found.failures, found.num_enlarged
    self.pairs = found.of_split(self.size, split, options.heldout_share)
    if not self.pairs:
      raise ValueError(
        f"None of the {len(found.pairs[self.size])} pictures in"
        f" {listing.where} fall into the split {split!r}; change heldout_share"
        f" ({options.heldout_share})."
      )

  @classmethod
  def of_sizes(
    cls,
    listing: Listing,
    options: PictureOptions,
    *,
    sizes: Sequence[tuple[int, int]],
    split: str,
  ) -> dict[tuple[int, int], PictureSource]:
    """A source for each size, of the pictures whose shape is nearest to it.

    Args:
      sizes: (H, W) of each.

    Returns:
      By size, without those that no picture is nearest to.
    """
    found = find_pictures(listing, options, sizes)
    return {
      size: cls(listing, options, size=size, split=split, found=found)
      for size in found.pairs
      if found.of_split(size, split, options.heldout_share)
    }

  def __len__(self) -> int:
    return len(self.pairs)

  @property
  def digest(self) -> str:
    """Hex digits that change with the names and captions of the pictures."""
    digest = hashlib.sha256()
    for pair in self.pairs:
      digest.update("\n".join((pair.name, *pair.captions, "")).encode())
    return digest.hexdigest()[:16]

  def example(self, index: int, seed: int) -> Example:
    pair = self.pairs[index]
    rng = np.random.default_rng([seed, index])
    caption = pair.captions[rng.integers(len(pair.captions))]
    picture = open_rgb(self._listing.picture(pair.number), max(self.size))
    image = transforms.resize_and_crop(
      picture, self.size, crop=self._crop, rng=rng
    )
    if self._flip and rng.random() < 0.5 and not has_spatial_words(caption):
      image = mirrored(image)
    return image, caption, {"id": pair.name, "source": self._listing.kind}


@dataclasses.dataclass(frozen=True)
class Found:
  """The pictures of a listing.

  pairs: usable ones by the size (H, W) that they are cropped to, which is the
  nearest in shape. failures: what was skipped -> the reason. num_enlarged: how
  many are smaller than their crop. kind: of the listing.
  """

  pairs: dict[tuple[int, int], list[Pair]]
  failures: dict[str, str]
  num_enlarged: int
  kind: str

  def of_split(
    self, size: tuple[int, int], split: str, heldout_share: float
  ) -> list[Pair]:
    """Those of one size in a split."""
    names = [p.name for p in self.pairs[size]]
    held = _heldout_names(names, heldout_share, self.kind)
    heldout = split == "heldout"
    return [p for p in self.pairs[size] if (p.name in held) == heldout]


def find_pictures(
  listing: Listing,
  options: PictureOptions,
  sizes: Sequence[tuple[int, int]],
) -> Found:
  """Opens every picture of a listing once; `sizes` are (H, W) of crops.

  Raises:
    ValueError: too many unusable ones.
  """
  sizes = [tuple(size) for size in sizes]
  least = max(max(size) for size in sizes)

  def check(number: int):
    name = listing.name(number)
    try:
      captions = listing.captions(number)
      image = open_rgb(listing.picture(number), least)
      size = min(sizes, key=lambda size: transforms.cropped_share(image, size))
      tiny = _check_crop(image, size, options)
      return Pair(name, captions, number), size, tiny
    except ValueError as error:
      return name, str(error)

  found = Found({size: [] for size in sizes}, {}, 0, listing.kind)
  enlarged = 0
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    for outcome in pool.map(check, range(len(listing))):
      if isinstance(outcome[0], str):
        name, reason = outcome
        found.failures[name] = reason
        continue
      pair, size, tiny = outcome
      found.pairs[size].append(pair)
      enlarged += tiny
  _check_share(listing, found.failures, options.max_bad_share)
  return dataclasses.replace(found, num_enlarged=enlarged)


def open_rgb(source: Path | bytes, least: int) -> Image.Image:
  """A picture as 8-bit RGB, read to its end.

  Args:
    source: its file, or what is in it.
    least: a large JPEG may come out at a half, quarter or eighth of its size
      (which is much quicker) while both sides keep twice this many pixels.

  Raises:
    ValueError: with the reason for a corrupt or truncated file.
  """
  file = io.BytesIO(source) if isinstance(source, bytes) else source
  try:
    with Image.open(file) as image:
      image.draft(None, (2 * least, 2 * least))
      image.load()
      return transforms.to_rgb(image)
  except Exception as error:  # decoders raise whatever they like
    if isinstance(error, MemoryError):
      raise
    reason = str(error) or type(error).__name__
    reason = re.sub(r"<_io\.BytesIO[^>]*>", "its bytes", reason)
    if isinstance(source, Path):
      reason = reason.replace(str(source), source.name)
    raise ValueError(f"image cannot be read ({reason})") from None


def _check_crop(
  image: Image.Image, size: tuple[int, int], options: PictureOptions
) -> bool:
  """Whether the crop enlarges the picture.

  Raises:
    ValueError: it may not, or it cuts off too much.
  """
  tiny = transforms.is_smaller(image, size)
  if tiny and options.small == "skip":
    raise ValueError(
      f"{image.height} x {image.width} pixels are fewer than the crop of"
      f" {size[0]} x {size[1]}"
    )
  lost = transforms.cropped_share(image, size)
  if lost > options.max_crop:
    raise ValueError(
      f"the crop to {size[0]} x {size[1]} cuts off {lost:.0%} of its"
      f" {image.height} x {image.width} pixels, more than max_crop ="
      f" {options.max_crop:g}"
    )
  return tiny


def _check_share(
  listing: Listing, failures: dict[str, str], max_bad_share: float
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
  counted = (
    f"{bad} of {len(listing)} pictures in {listing.where} cannot be used"
  )
  if bad > max_bad_share * len(listing):
    raise ValueError(
      f"{counted}, more than the accepted share max_bad_share ="
      f" {max_bad_share:g} ({named})."
    )
  warnings.warn(f"{counted} and are skipped ({named}).", stacklevel=4)


def _heldout_names(names: Sequence[str], share: float, kind: str) -> set[str]:
  """The names whose hash is low: a picture stays where it is as others come.

  A small listing gives at least one, if any are wanted.
  """
  if not share:
    return set()
  hashes = {name: _hash(f"{kind} {name}") for name in names}
  held = {name for name, value in hashes.items() if value < share}
  return held or {min(names, key=hashes.get)}


def _hash(text: str) -> float:
  """In [0, 1)."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
