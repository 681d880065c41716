"""Understanding by likelihood: which caption belongs to a picture.

Caption j of picture i scores log p(tokens i | caption j) - log p(tokens i |
empty). The second term does not change the order of captions for one picture;
it makes pictures comparable for one caption.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Ranks from 0 of the right partner, int [N].

  captions: among all captions, for each picture. pictures: among all
  pictures, for each caption.
  """

  captions: np.ndarray
  pictures: np.ndarray


def rank(score_NN: np.ndarray) -> Ranking:
  """Ranks of the diagonal; ties count against it.

  Args:
    score_NN: score of picture i (row) with caption j (column).

  Raises:
    ValueError: not square, or not finite.
  """
  score_NN = np.asarray(score_NN, np.float64)
  n = len(score_NN)
  if score_NN.shape != (n, n) or not np.isfinite(score_NN).all():
    raise ValueError(
      f"Ranking needs a square table of finite scores, got {score_NN.shape}."
    )
  right_N = np.diagonal(score_NN)
  return Ranking(
    (score_NN >= right_N[:, None]).sum(1) - 1,
    (score_NN >= right_N[None, :]).sum(0) - 1,
  )
