"""Which tokens a training step looks at.

Most tokens belong to the last scales, and most of those are plain ground, easy
to predict. A step looks at some of them, those of rare surroundings more often,
each weighted by how many it stands for, so that loss and attention are those
over all tokens in the mean over draws.

What decides is the scale before, which the model sees. Were it the tokens of
the scale itself, which places are kept, and with which weight, would tell the
model what it is to predict.

B: batch, L: tokens, l: tokens of one scale, m: tokens kept of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.star import KeptTokens
from star_jax.scales import ScaleSchedule

# Where c places of the sample have the same token of the scale before, each is
# kept in proportion to c ** -RARITY: 0 would be uniform, 1 would keep the
# places of every token equally often.
RARITY = 1 / 3
# Rounds of taking the surplus from tokens that are certain to be kept.
_ROUNDS = 4


def draw_tokens(
  schedule: ScaleSchedule,
  tail_tokens: Sequence[int],
  idx_BL: jax.Array,
  key: jax.Array,
) -> KeptTokens:
  """All tokens of the first scales, some of each of the last.

  Args:
    schedule: of the model.
    tail_tokens: how many of each of the last scales are drawn.
    idx_BL: int32, all tokens.
    key: PRNG key.

  Raises:
    ValueError: more scales than there are, or more tokens than they have.
  """
  tail = tuple(tail_tokens)
  first = schedule.num_scales - len(tail)
  whole = schedule.lengths[max(first, 0) :]
  if first < 0 or not all(0 < n <= m for n, m in zip(tail, whole)):
    raise ValueError(
      "config.tail_tokens says how many tokens of each of the last scales a"
      f" step looks at; the scales have {schedule.lengths}, got {tail}."
    )
  batch, head = idx_BL.shape[0], schedule.num_tokens - sum(whole)
  index = [jnp.broadcast_to(jnp.arange(head), (batch, head))]
  weight = [jnp.ones((batch, head))]
  for k, count in enumerate(tail, first):
    begin, _ = schedule.begin_ends[k]
    above_Bl = token_above(schedule, k, idx_BL)
    share_Bl = keep_probabilities(above_Bl, count)
    place_Bm = systematic_sample(share_Bl, count, jax.random.fold_in(key, k))
    index.append(begin + place_Bm)
    weight.append(1 / jnp.take_along_axis(share_Bl, place_Bm, axis=1))
  return KeptTokens(
    jnp.concatenate(index, axis=1),
    jnp.concatenate(weight, axis=1),
    (*schedule.lengths[:first], *tail),
  )


def first_scales(kept: KeptTokens, count: int) -> KeptTokens:
  """Those of the first `count` scales."""
  lengths = kept.lengths[:count]
  here = slice(sum(lengths))
  return KeptTokens(kept.index_BL[:, here], kept.weight_BL[:, here], lengths)


def token_above(
  schedule: ScaleSchedule, k: int, idx_BL: jax.Array
) -> jax.Array:
  """The token of scale k - 1 that each place of scale k lies in.

  Args:
    schedule: of the model.
    k: static; 0 has nothing above, the same for all places.
    idx_BL: int32, all tokens.

  Returns:
    int32 [B, l].
  """
  (h, w), (begin, end) = schedule.grids[k], schedule.begin_ends[k]
  if k == 0:
    return jnp.zeros((idx_BL.shape[0], end - begin), jnp.int32)
  coarse_h, coarse_w = schedule.grids[k - 1]
  row_h = np.arange(h) * coarse_h // h
  column_w = np.arange(w) * coarse_w // w
  place_l = (row_h[:, None] * coarse_w + column_w).reshape(-1)
  return idx_BL[:, schedule.begin_ends[k - 1][0] + place_l]


def keep_probabilities(above_Bl: jax.Array, count: int) -> jax.Array:
  """float32 [B, l] in (0, 1], summing to `count` in every sample.

  Args:
    above_Bl: what `token_above` returns.
    count: how many are kept.
  """
  equal_Bl = jnp.sum(above_Bl[:, :, None] == above_Bl[:, None, :], axis=-1)
  free_Bl = equal_Bl.astype(jnp.float32) ** -RARITY
  share_Bl = free_Bl * count / jnp.sum(free_Bl, axis=1, keepdims=True)
  for _ in range(_ROUNDS):
    certain_Bl = share_Bl >= 1
    rest_B1 = count - jnp.sum(certain_Bl, axis=1, keepdims=True)
    free_Bl = jnp.where(certain_Bl, 0.0, share_Bl)
    total_B1 = jnp.maximum(jnp.sum(free_Bl, axis=1, keepdims=True), 1e-9)
    share_Bl = jnp.where(certain_Bl, 1.0, free_Bl * rest_B1 / total_B1)
  return jnp.minimum(share_Bl, 1.0)


def systematic_sample(
  share_Bl: jax.Array, count: int, key: jax.Array
) -> jax.Array:
  """`count` different places of each row, in order, each with its probability.

  The probabilities are laid end to end and `count` points, one apart from the
  next, are thrown on them together.

  Args:
    share_Bl: probabilities, at most 1, summing to `count`.
    count: m.
    key: PRNG key.

  Returns:
    int32 [B, m].
  """
  batch, length = share_Bl.shape
  start_B1 = jax.random.uniform(key, (batch, 1))
  point_Bm = start_B1 + jnp.arange(count)
  end_Bl = jnp.cumsum(share_Bl, axis=1)
  place_Bm = jnp.sum(end_Bl[:, None, :] <= point_Bm[:, :, None], axis=-1)
  return jnp.minimum(place_Bm, length - 1).astype(jnp.int32)
