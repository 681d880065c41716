"""How tokens are laid out where devices share them."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.model.sequence import BLOCK, Rows, SequenceLayout, row_plan
from star_jax.scales import ScaleSchedule


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_spread_gives_every_device_a_block_of_every_row_and_collect_undoes_it(
  parts,
):
  layout = SequenceLayout((1, 4, 9, 16, 23), parts)
  x = jnp.arange(53)[None, :, None] + 1
  spread = layout.spread(x, 1)
  total = layout.num_rows * parts * layout.block
  assert spread.shape == (1, total, 1) and total % parts == 0
  rows = np.asarray(spread).reshape(parts, layout.num_rows, layout.block)
  for row in range(layout.num_rows):
    first = row * parts * layout.block + 1
    expected = np.arange(first, first + parts * layout.block)
    np.testing.assert_array_equal(
      rows[:, row].ravel(), np.where(expected <= 53, expected, 0)
    )
  np.testing.assert_array_equal(layout.collect(spread, 1), x)


def test_rows_of_one_scale_go_together_and_only_mixed_ones_are_masked():
  # Blocks of 2 on 2 devices: rows of 4 tokens.
  layout = SequenceLayout((1, 4, 9, 2), 2)
  assert layout.block == 2 and layout.num_rows == 4
  assert row_plan(layout) == (
    Rows(0, 1, 5, True),  # tokens 0 to 3: scales 0 and 1
    Rows(1, 2, 14, True),
    Rows(2, 3, 14, False),
    Rows(3, 4, 16, True),
  )
  layout = SequenceLayout((1, 31), 2)
  assert layout.block == 4
  assert row_plan(layout) == (Rows(0, 1, 32, True), Rows(1, 4, 32, False))


def test_a_picture_of_1024_pixels_is_padded_to_whole_blocks_of_128():
  schedule = ScaleSchedule.parse("1024")
  for parts, tokens in ((2, 9472), (4, 9728)):
    layout = SequenceLayout(tuple(schedule.lengths), parts)
    assert layout.block == BLOCK
    assert layout.num_rows * parts * BLOCK == tokens
    # All that a device computes of the pairs it should: little more.
    size = parts * BLOCK
    pairs = sum((r.last - r.first) * size * r.end for r in row_plan(layout))
    assert pairs < 1.1 * 56.9e6
