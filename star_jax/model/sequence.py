"""Self-attention where devices share the tokens of a picture.

Cut into S neighbouring parts, the last device would have most of the work,
since fine scales see everything before them. Tokens are therefore padded to
rows of S blocks, and device s holds block s of every row: all devices have the
same share of every scale, and a row needs no keys beyond its own scale. Keys
and values are gathered, queries stay where they are.

B: batch, L: tokens, N: heads, d: head channels, S: devices, q: tokens of a
block, R: rows of S blocks, m: keys.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from star_jax.model.attention import attend, heads_at_once
from star_jax.sharding import SEQUENCE, activation_spec

# Tokens of a block; a multiple of the tiles of a TPU.
BLOCK = 128
# Most logits of a row on a device, 16 MiB of float32: they fit a TPU's VMEM.
LOGITS = 2**22
# Shorter pictures have smaller blocks, so that padding stays a small part.
FEWEST_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Rows:
  """Neighbouring rows [first, last) whose queries see the keys [0, end).

  masked: some queries of theirs see fewer.
  """

  first: int
  last: int
  end: int
  masked: bool


@dataclasses.dataclass(frozen=True)
class SequenceLayout:
  """Where the tokens of a picture lie on `parts` devices.

  lengths: tokens of every scale, coarse to fine.
  """

  lengths: tuple[int, ...]
  parts: int

  @property
  def num_tokens(self) -> int:
    return sum(self.lengths)

  @property
  def block(self) -> int:
    """q."""
    return min(BLOCK, -(-self.num_tokens // (self.parts * FEWEST_ROWS)))

  @property
  def num_rows(self) -> int:
    """R."""
    return -(-self.num_tokens // (self.parts * self.block))

  def spread(self, x: jax.Array, axis: int) -> jax.Array:
    """Tokens in their order -> as they lie on the devices, zeros at the end."""
    axis %= x.ndim
    total = self.num_rows * self.parts * self.block
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, total - self.num_tokens)
    return self._turned(jnp.pad(x, pad), axis, self.num_rows, self.parts)

  def collect(self, x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `spread`."""
    axis %= x.ndim
    x = self._turned(x, axis, self.parts, self.num_rows)
    return jax.lax.slice_in_dim(x, 0, self.num_tokens, axis=axis)

  def _turned(self, x, axis: int, first: int, second: int) -> jax.Array:
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*before, first, second, self.block, *after)
    return jnp.swapaxes(x, axis, axis + 1).reshape(*before, -1, *after)


@functools.cache
def row_plan(layout: SequenceLayout) -> tuple[Rows, ...]:
  """All rows; neighbours that see the same keys without a mask are together."""
  ends = np.cumsum(layout.lengths)
  size = layout.parts * layout.block
  plan: list[Rows] = []
  for row in range(layout.num_rows):
    last = min((row + 1) * size, layout.num_tokens) - 1
    scales = np.searchsorted(ends, [row * size, last], side="right")
    here = Rows(row, row + 1, int(ends[scales[1]]), bool(scales[0] < scales[1]))
    before = plan[-1] if plan else None
    alike = before and before.end == here.end
    if alike and not (before.masked or here.masked):
      plan[-1] = dataclasses.replace(before, last=row + 1)
    else:
      plan.append(here)
  return tuple(plan)


def sequence_attention(
  q_BNLd: jax.Array,
  k_BNLd: jax.Array,
  v_BNLd: jax.Array,
  layout: SequenceLayout,
  *,
  scale: float,
  weight_BL: jax.Array | None = None,
) -> jax.Array:
  """What `attention.scale_causal_attention` computes, of tokens as `layout`
  lays them out: [B, N, L, d] -> [B, N, L, d].

  Args:
    scale: factor on the logits.
    weight_BL: see there; in the order of the tokens.
  """
  shape = q_BNLd.shape
  queries = activation_spec(shape, "queries_BNLd")
  bias_BL = None
  if weight_BL is not None:
    bias_BL = jnp.log(weight_BL)
  # By hand: left to the compiler, the gradients of keys and values would be
  # summed over the devices after every row instead of once.
  attention = jax.shard_map(
    functools.partial(_on_one_device, layout=layout, scale=scale),
    in_specs=(queries,) * 3 + (activation_spec(shape, "weights_BL"),),
    out_specs=queries,
    check_vma=False,
  )
  return attention(q_BNLd, k_BNLd, v_BNLd, bias_BL)


def _on_one_device(
  q_BNqd, k_BNqd, v_BNqd, bias_BL, *, layout: SequenceLayout, scale: float
) -> jax.Array:
  """The device's own queries, R blocks, against all keys."""
  k, v = (
    layout.collect(jax.lax.all_gather(x, SEQUENCE, axis=2, tiled=True), 2)
    for x in (k_BNqd, v_BNqd)
  )
  batch, heads, _, _ = q_BNqd.shape
  group = heads_at_once(heads, batch * layout.block * layout.num_tokens, LOGITS)
  attention = functools.partial(
    _all_rows, bias_BL=bias_BL, layout=layout, scale=scale
  )
  # A few heads after the other, so that the logits of a row stay on the chip.
  groups = [
    rearrange(x, "b (g n) l d -> g b n l d", n=group) for x in (q_BNqd, k, v)
  ]
  out = jax.lax.map(lambda qkv: attention(*qkv), tuple(groups))
  return rearrange(out, "g b n l d -> b (g n) l d")


def _all_rows(q_BNqd, k, v, bias_BL, *, layout: SequenceLayout, scale: float):
  q_RBNqd = rearrange(q_BNqd, "b n (r q) d -> r b n q d", q=layout.block)
  out = []
  for rows in row_plan(layout):
    one = jax.checkpoint(
      functools.partial(
        attend,
        k_BNmd=k[:, :, : rows.end],
        v_BNmd=v[:, :, : rows.end],
        scale=scale,
        mask=_mask(layout, rows) if rows.masked else None,
        bias_Bm=None if bias_BL is None else bias_BL[:, : rows.end],
      )
    )
    out.append(jax.lax.map(one, q_RBNqd[rows.first : rows.last]))
  return rearrange(jnp.concatenate(out), "r b n q d -> b n (r q) d")


def _mask(layout: SequenceLayout, rows: Rows) -> jax.Array:
  """bool [q, m], True where a query of this device's block sees the key.

  Compared inside of the program: as a constant it would be as large as the
  logits of the row.
  """
  ends = jnp.asarray(np.cumsum(layout.lengths), jnp.int32)
  block = rows.first * layout.parts + jax.lax.axis_index(SEQUENCE)
  query = block * layout.block + jnp.arange(layout.block)
  query = jnp.minimum(query, layout.num_tokens - 1)
  sees = ends[jnp.searchsorted(ends, query, side="right")]
  return jnp.arange(rows.end) < sees[:, None]
