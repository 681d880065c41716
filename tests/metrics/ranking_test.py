"""Ranks of the diagonal of a score table."""

import numpy as np
import pytest

from star_jax.metrics.ranking import rank


def test_ranks_by_row_and_by_column():
  score = np.array([[5.0, 1, 1], [6, 4, 0], [0, 9, 2]])
  out = rank(score)
  assert out.captions.tolist() == [0, 1, 1]
  assert out.pictures.tolist() == [1, 1, 0]


def test_a_term_of_the_picture_changes_only_the_columns():
  rng = np.random.default_rng(0)
  score = rng.normal(size=(20, 20))
  moved = score + rng.normal(size=(20, 1)) * 10
  assert (rank(score).captions == rank(moved).captions).all()
  assert (rank(score).pictures != rank(moved).pictures).any()


def test_ties_are_no_hits():
  assert rank(np.zeros((4, 4))).captions.tolist() == [3] * 4


@pytest.mark.parametrize(
  "score", [np.zeros((2, 3)), np.array([[0.0, np.nan], [0, 1]])]
)
def test_bad_tables(score):
  with pytest.raises(ValueError, match="square table of finite"):
    rank(score)
