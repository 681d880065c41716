"""Zero-shot editing: some tokens are given, the others are drawn.

As in VAR (arXiv 2404.02905, section 5.3 and the authors' notebook; golden
README, rule 16): in-painting keeps what lies outside a box, out-painting what
lies inside. Kept tokens replace drawn ones at every scale before the picture so
far is updated, so that they steer the scales after.

B: batch, L: tokens of all scales, h w: last grid.
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.resize import bilinear_matrix

# Maps of at most so many tokens are kept whatever the mask says.
ALWAYS_KEPT = 3


@flax.struct.dataclass
class Edit:
  """What is given.

  idx_BL: int32, tokens of the picture.
  keep_BL: bool, True where they are kept.
  restore_hw: bool, cells of the last grid where f_hat after every scale is that
    of the given tokens; None: nowhere, which is VAR's rule. A coarse token
    covers cells on both sides of the mask: where it is drawn anew, the picture
    outside would change its tone though its fine tokens are kept.
  """

  idx_BL: jax.Array
  keep_BL: jax.Array
  restore_hw: jax.Array | None = None


def box_mask(
  grid: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
  """bool [h, w], True inside the box.

  Args:
    grid: (h, w).
    box: (y0, x0, y1, x1) as shares of height and width. Edges are rounded to
      the grid, halves to even.

  Raises:
    ValueError: a box that is not inside the picture, or holds no cell.
  """
  try:
    y0, x0, y1, x1 = map(float, box)
    inside = 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1
  except (TypeError, ValueError):
    inside = False
  if not inside:
    raise ValueError(
      "A box is (y0, x0, y1, x1) with 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1,"
      f" got {box!r}."
    )
  h, w = grid
  mask = np.zeros(grid, bool)
  mask[round(y0 * h) : round(y1 * h), round(x0 * w) : round(x1 * w)] = True
  if not mask.any():
    raise ValueError(
      f"The box {tuple(box)} holds no cell of the {h} x {w} grid of tokens."
    )
  return mask


def keep_tokens(schedule: ScaleSchedule, keep_hw: np.ndarray) -> np.ndarray:
  """bool [L]: the mask of the last grid at every scale.

  It is resized bilinearly and cut above one half. Maps of up to three tokens
  are always kept.

  Raises:
    ValueError: a mask of another size.
  """
  h, w = schedule.final_grid
  if keep_hw.shape != (h, w):
    raise ValueError(
      f"A mask of this model has {h} x {w} cells, got"
      f" {' x '.join(map(str, keep_hw.shape))}."
    )
  keep = []
  for rows, columns in schedule.grids:
    share = (
      bilinear_matrix(h, rows)
      @ keep_hw.astype(np.float32)
      @ bilinear_matrix(w, columns).T
    )
    keep.append((share > 0.5).reshape(-1) | (rows * columns <= ALWAYS_KEPT))
  return np.concatenate(keep)
