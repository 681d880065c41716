"""The Inception Score (arXiv 1606.03498), accumulated picture by picture.

exp of the mean KL divergence between the class distribution of a picture and
the mean one, in several splits. Which split a picture belongs to is drawn
before it is seen, so that only sums are kept. With the seed and number of
splits of torch-fidelity the splits are those of that tool.

N: pictures, S: splits, C: classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


def draw_splits(n: int, splits: int, seed: int) -> np.ndarray:
  """The split of each of n pictures, int16 [n].

  Raises:
    ValueError: fewer pictures than splits.
  """
  if n < splits:
    raise ValueError(
      f"A class score in {splits} splits needs at least {splits} pictures, got"
      f" {n}."
    )
  order = np.random.RandomState(seed).permutation(n)
  out = np.empty(n, np.int16)
  for s in range(splits):
    out[order[s * n // splits : (s + 1) * n // splits]] = s
  return out


@dataclasses.dataclass
class ClassSums:
  """Sums over the pictures of each split.

  Attributes:
    count_S: pictures.
    negentropy_S: of sum_c p log p.
    p_SC: of the class probabilities.
  """

  count_S: np.ndarray
  negentropy_S: np.ndarray
  p_SC: np.ndarray

  @classmethod
  def empty(cls, splits: int, classes: int) -> ClassSums:
    return cls(
      np.zeros(splits, np.int64), np.zeros(splits), np.zeros((splits, classes))
    )

  def add(self, split_N: np.ndarray, logits_NC: np.ndarray) -> None:
    """Adds pictures by their logits."""
    logits = np.asarray(logits_NC, np.float64)
    logits = logits - logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    p = np.exp(log_p)
    np.add.at(self.count_S, split_N, 1)
    np.add.at(self.negentropy_S, split_N, (p * log_p).sum(1))
    np.add.at(self.p_SC, split_N, p)

  def score(self) -> tuple[float, float]:
    """Mean and standard deviation over the splits."""
    q_SC = self.p_SC / self.count_S[:, None]
    log_q = np.log(np.maximum(q_SC, np.finfo(np.float64).tiny))
    kl_S = self.negentropy_S / self.count_S - (q_SC * log_q).sum(1)
    return float(np.exp(kl_S).mean()), float(np.exp(kl_S).std())

  def arrays(self, prefix: str) -> dict[str, np.ndarray]:
    """For a .npz; `from_arrays` reads them back."""
    return {
      f"{prefix}_{field.name}": getattr(self, field.name)
      for field in dataclasses.fields(self)
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping, prefix: str) -> ClassSums:
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(*(np.array(arrays[f"{prefix}_{name}"]) for name in names))
