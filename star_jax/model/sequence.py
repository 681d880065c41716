"""Self-attention where devices share the tokens of a picture.

Outside of attention each device has a part of the tokens, as they come. For
attention devices trade: each gives its tokens of all heads for all tokens of a
part of the heads, and the other way round for the result (DeepSpeed-Ulysses,
arXiv 2309.14509). Less is sent than by gathering keys and values, and no
gradient is summed over devices.

B: batch, L: tokens, N: heads, d: head channels, S: devices, l = L / S,
n: heads of a device, C: channels of some heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from star_jax.model.attention import (
  KEPT,
  all_rectangles,
  heads_at_once,
  heads_in_turn,
  most_logits,
)
from star_jax.sharding import SEQUENCE, activation_spec, axis_size

# Tokens of a device are a multiple of this, the rows of a TPU's tile.
TILE = 8
# Groups of heads: one travels while another one is computed.
GROUPS = 2


def padded_tokens(x: jax.Array, axis: int) -> jax.Array:
  """Zeros after the tokens, so that the devices of `use_mesh` have as many."""
  axis %= x.ndim
  pad = [(0, 0)] * x.ndim
  pad[axis] = (0, -x.shape[axis] % (TILE * axis_size(SEQUENCE)))
  return jnp.pad(x, pad)


def sequence_attention(
  q_BNLd: jax.Array,
  k_BNLd: jax.Array,
  v_BNLd: jax.Array,
  lengths: Sequence[int],
  *,
  scale: float,
  query_block: int,
  weight_BL: jax.Array | None = None,
) -> jax.Array:
  """What `attention.scale_causal_attention` computes: [B, N, L, d] -> the same.

  Args:
    q_BNLd, k_BNLd, v_BNLd: of `padded_tokens`; what comes out of the padding is
      zero.
    lengths: tokens of every scale, without padding.
    scale, query_block, weight_BL: see there.
  """
  shape = q_BNLd.shape
  queries = activation_spec(shape, "queries_BNLd")
  bias_BL = None if weight_BL is None else jnp.log(weight_BL)
  attention = jax.shard_map(
    functools.partial(
      _on_one_device,
      lengths=tuple(lengths),
      scale=scale,
      query_block=query_block,
    ),
    in_specs=(queries,) * 3 + (activation_spec(shape, "weights_BL"),),
    out_specs=queries,
    check_vma=False,
  )
  return attention(q_BNLd, k_BNLd, v_BNLd, bias_BL)


def _on_one_device(
  q_BNld, k_BNld, v_BNld, bias_BL, *, lengths, scale: float, query_block: int
) -> jax.Array:
  batch, heads, tokens, channels = q_BNld.shape
  parts, total = axis_size(SEQUENCE), sum(lengths)
  # Heads that the devices do not divide are filled up with zeros.
  padded = heads + -heads % parts
  groups = math.gcd(padded // parts, GROUPS)
  mine = padded // parts // groups
  elements = batch * min(query_block, total) * total
  at_once = heads_at_once(mine, elements, most_logits())
  attention = functools.partial(
    all_rectangles,
    lengths=lengths,
    scale=scale,
    query_block=query_block,
    bias_BL=bias_BL,
  )

  def to_heads(x_BNld):
    """g times [B, n, L, d], without the padding of tokens."""
    pad = [(0, 0), (0, padded - heads), (0, 0), (0, 0)]
    # Heads and channels as one axis: head channels alone fill half a tile.
    x = rearrange(jnp.pad(x_BNld, pad), "b n l d -> b l (n d)")
    x = [trade(x, 2, 1)[:, :total] for x in jnp.split(x, groups, axis=2)]
    x = checkpoint_name(x, KEPT)
    return [rearrange(x, "b l (n d) -> b n l d", d=channels) for x in x]

  def to_tokens(x_BnLd):
    x = rearrange(x_BnLd, "b n l d -> b l (n d)")
    x = jnp.pad(x, [(0, 0), (0, parts * tokens - total), (0, 0)])
    return checkpoint_name(trade(x, 1, 2), KEPT)

  qkv = zip(*map(to_heads, (q_BNld, k_BNld, v_BNld)))
  out = [to_tokens(heads_in_turn(attention, x, at_once)) for x in qkv]
  out = rearrange(jnp.concatenate(out, 2), "b l (n d) -> b n l d", d=channels)
  return out[:, :heads]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def trade(x: jax.Array, split: int, join: int) -> jax.Array:
  """`jax.lax.all_to_all(..., tiled=True)` over `sequence`, one permutation
  round the ring a distance. On a line of four devices the busiest link carries
  four messages, with swaps of two devices each it carries five.

  Args:
    x: of this device, in `shard_map`.
    split: axis that is cut, a part for each device.
    join: axis along which what comes from the devices is put together.
  """
  parts, here = axis_size(SEQUENCE), jax.lax.axis_index(SEQUENCE)
  width, length = x.shape[split] // parts, x.shape[join]
  shape = list(x.shape)
  shape[split], shape[join] = width, length * parts
  out = jnp.zeros(shape, x.dtype)
  for distance in range(parts):
    to, source = (here + distance) % parts, (here - distance) % parts
    piece = jax.lax.dynamic_slice_in_dim(x, to * width, width, split)
    if distance:
      pairs = [(i, (i + distance) % parts) for i in range(parts)]
      piece = jax.lax.ppermute(piece, SEQUENCE, pairs)
    out = jax.lax.dynamic_update_slice_in_dim(out, piece, source * length, join)
  return out


# The way back of the gradient, without a sum of pieces.
trade.defvjp(
  lambda x, split, join: (trade(x, split, join), None),
  lambda split, join, _, g: (trade(g, join, split),),
)
