"""Attention without an L x L mask, with or without a cache.

A token of scale k sees all tokens of scales <= k. For the whole sequence that
is one rectangle per scale: its queries against a static prefix of the keys.
Where tokens come one after the other, each is a scale of its own.

B: batch, L: tokens of all scales, l: of one scale, S: cache length,
N: heads, d: head channels, C = N d, q: queries of a block, m: keys.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from star_jax.model.attention_backends import (
  BACKENDS,
  CUDNN,
  FEWEST_QUERIES,
  SPLASH,
  XLA,
  full_attention,
)
from star_jax.model.cache import KVCache, read_cache, write_cache
from star_jax.sharding import axis_size, constrain, platform

# Early scales are packed together up to this many queries: one masked product
# of this size costs less than the calls for a handful of 1x1 and 2x2 grids.
PACKED_QUERIES = 16
# The same where every token is a scale of its own.
PACKED_TOKENS = 64
# Most logits of one block over all its heads, 64 MiB of float32.
BLOCK_ELEMENTS = 2**24
# The same on several TPUs: 16 MiB fit their VMEM.
TPU_BLOCK_ELEMENTS = 2**22
# Name of what goes into self-attention and comes out, for remat "attention".
KEPT = "attention"
# Below any softmax denominator with a key in it, which is at least 1.
TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Rectangle:
  """Queries [begin, end) against keys [0, end), in `blocks` equal parts.

  `levels` has the scale lengths if several scales share the rectangle; their
  own corner [begin, end) x [begin, end) then needs a mask.
  """

  begin: int
  end: int
  blocks: int
  levels: tuple[int, ...]

  def mask(self) -> np.ndarray | None:
    """bool [end - begin, end], or None if every query sees every key."""
    if len(self.levels) == 1:
      return None
    lvl = np.repeat(np.arange(len(self.levels)), self.levels)
    corner = lvl[:, None] >= lvl[None, :]
    return np.pad(corner, ((0, 0), (self.begin, 0)), constant_values=True)


@functools.cache
def attention_plan(
  lengths: tuple[int, ...], query_block: int
) -> tuple[Rectangle, ...]:
  """Static rectangles that cover the scale-causal pattern exactly.

  Args:
    lengths: tokens of every scale that are present, coarse to fine.
    query_block: most queries of one block; longer scales are cut into equal
      blocks (the last one padded).
  """
  plan, begin, packed = [], 0, []
  limit = PACKED_QUERIES if max(lengths) > 1 else PACKED_TOKENS
  limit = min(limit, query_block)
  for i, length in enumerate(lengths):
    packed.append(length)
    last = i + 1 == len(lengths)
    if not last and sum(packed) + lengths[i + 1] <= limit:
      continue
    end = begin + sum(packed)
    blocks = -(-(end - begin) // query_block)
    plan.append(Rectangle(begin, end, blocks, tuple(packed)))
    begin, packed = end, []
  return tuple(plan)


def attend(
  q_BNqd: jax.Array,
  k_BNmd: jax.Array,
  v_BNmd: jax.Array,
  scale: float,
  mask: jax.Array | np.ndarray | None = None,
  bias_Bm: jax.Array | None = None,
) -> jax.Array:
  """Softmax attention, logits and softmax in float32; a row that sees no key
  yields 0.

  `mask` is bool, True = keep, broadcastable to [B, N, q, m]; `bias_Bm` is added
  to the logits of each key.
  """
  logits = jnp.einsum(
    "bnqd,bnmd->bnqm", q_BNqd, k_BNmd, preferred_element_type=jnp.float32
  )
  if scale != 1.0:
    logits = logits * scale
  if bias_Bm is not None:
    logits = logits + bias_Bm[:, None, None]
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  # The division comes after the product with v: the backward pass then holds
  # two arrays of the size of the logits, not four.
  highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  weights = jnp.exp(logits - highest)
  if isinstance(mask, jax.Array):
    # Masks known at trace time leave every query a key; text masks may not.
    weights = jnp.where(mask, weights, 0.0)
  total = jnp.maximum(weights.sum(-1, keepdims=True), TINY)
  out = jnp.einsum(
    "bnqm,bnmd->bnqd",
    weights.astype(v_BNmd.dtype),
    v_BNmd,
    preferred_element_type=jnp.float32,
  )
  return (out / total).astype(v_BNmd.dtype)


def _blocked(q, k, v, scale: float, rect: Rectangle, bias_Bm=None) -> jax.Array:
  """One rectangle, block after block; backward recomputes each block."""
  size = -(-(rect.end - rect.begin) // rect.blocks)
  padding = size * rect.blocks - (rect.end - rect.begin)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, padding), (0, 0)))
  q = rearrange(q, "b n (g q) d -> g b n q d", g=rect.blocks)
  body = jax.checkpoint(lambda q: attend(q, k, v, scale, None, bias_Bm))
  out = rearrange(jax.lax.map(body, q), "g b n q d -> b n (g q) d")
  return out[:, :, : rect.end - rect.begin]


def scale_causal_attention(
  q_BNLd: jax.Array,
  k_BNLd: jax.Array,
  v_BNLd: jax.Array,
  lengths: Sequence[int],
  *,
  scale: float = 1.0,
  query_block: int = 256,
  backend: str = XLA,
  weight_BL: jax.Array | None = None,
) -> jax.Array:
  """Self-attention of all scales at once: [B, N, L, d] -> [B, N, L, d].

  Args:
    lengths: tokens of every scale, summing to L.
    scale: factor on the logits.
    query_block: most queries of one block; it bounds every temporary at
      [B, N, query_block, L].
    backend: what computes it, see `attention_backends`.
    weight_BL: how many tokens each one at hand stands for, where a training
      step only looks at some of them: what it counts for in the softmax. None:
      one.
  """
  if backend not in BACKENDS:
    raise ValueError(
      f"Attention backend is one of {BACKENDS}, got {backend!r}."
    )
  assert sum(lengths) == q_BNLd.shape[2], (lengths, q_BNLd.shape)
  attention = functools.partial(
    all_rectangles,
    lengths=tuple(lengths),
    scale=scale,
    query_block=query_block,
    bias_BL=None if weight_BL is None else jnp.log(weight_BL),
  )
  qkv = tuple(
    checkpoint_name(constrain(x, "heads_BNLd"), KEPT)
    for x in (q_BNLd, k_BNLd, v_BNLd)
  )
  if backend == SPLASH:
    from star_jax.model import splash

    return splash.scale_causal(*qkv, lengths, scale=scale, weight_BL=weight_BL)
  if backend == CUDNN and weight_BL is None:
    return _cudnn_rectangles(*qkv, tuple(lengths), scale)
  batch, heads, total, _ = q_BNLd.shape
  # What one device has of them.
  batch = -(-batch // (axis_size("data") * axis_size("fsdp")))
  parts = math.gcd(heads, axis_size("tensor"))
  elements = batch * min(query_block, total) * total
  group = heads_at_once(heads // parts, elements, most_logits())
  out = heads_in_turn(attention, qkv, group, parts)
  return checkpoint_name(out, KEPT)


def heads_in_turn(
  attention: Callable[[tuple[jax.Array, ...]], jax.Array],
  qkv: tuple[jax.Array, ...],
  group: int,
  parts: int = 1,
) -> jax.Array:
  """A few heads after the other, so that the temporaries of all rectangles
  together stay small, not only those of one block.

  Args:
    attention: of q, k and v.
    qkv: [B, N, L, d] each.
    group: heads at once, of each part; all of them: no loop.
    parts: that devices have of the heads.
  """
  if group * parts == qkv[0].shape[1]:
    return attention(qkv)
  qkv = tuple(
    rearrange(x, "b (t h n) l d -> h b (t n) l d", t=parts, n=group)
    for x in qkv
  )
  out = jax.lax.map(attention, qkv)
  return rearrange(out, "h b (t n) l d -> b (t h n) l d", t=parts)


def most_logits() -> int:
  """Of one block on a device."""
  return TPU_BLOCK_ELEMENTS if platform() == "tpu" else BLOCK_ELEMENTS


def heads_at_once(heads: int, elements: int, limit: int) -> int:
  """The largest divisor of `heads` that keeps the logits of a block small.

  Args:
    heads: N.
    elements: logits of one head in the largest block.
    limit: most logits of all heads at once.
  """
  fits = [
    n for n in range(1, heads + 1) if heads % n == 0 and n * elements <= limit
  ]
  return max(fits, default=1)


def all_rectangles(
  qkv,
  *,
  lengths: tuple[int, ...],
  scale: float,
  query_block: int,
  bias_BL: jax.Array | None,
) -> jax.Array:
  """`scale_causal_attention` of heads that one device has, all at once."""
  q_BNLd, k_BNLd, v_BNLd = qkv
  # Probabilities of short sequences are kept for the backward pass; of long
  # ones they would dwarf everything else, so they are computed again.
  recompute = sum(lengths) > query_block
  out = []
  for rect in attention_plan(lengths, query_block):
    q = q_BNLd[:, :, rect.begin : rect.end]
    k, v = k_BNLd[:, :, : rect.end], v_BNLd[:, :, : rect.end]
    bias_Bm = None if bias_BL is None else bias_BL[:, : rect.end]
    if rect.blocks > 1:
      out.append(_blocked(q, k, v, scale, rect, bias_Bm))
      continue
    one = functools.partial(
      attend, scale=scale, mask=rect.mask(), bias_Bm=bias_Bm
    )
    out.append((jax.checkpoint(one) if recompute else one)(q, k, v))
  return jnp.concatenate(out, axis=2)


def _cudnn_rectangles(
  q_BNLd, k_BNLd, v_BNLd, lengths: tuple[int, ...], scale: float
) -> jax.Array:
  """Each scale in one call; cuDNN keeps no logits. The few queries that share
  a masked rectangle are left to plain products."""
  out = []
  for rect in attention_plan(lengths, sum(lengths)):
    q = q_BNLd[:, :, rect.begin : rect.end]
    k, v = k_BNLd[:, :, : rect.end], v_BNLd[:, :, : rect.end]
    if rect.mask() is None:
      out.append(full_attention(q, k, v, scale=scale, backend=CUDNN))
    else:
      out.append(attend(q, k, v, scale, rect.mask()))
  return jnp.concatenate(out, axis=2)


def within_scale_attention(
  q_BNLd: jax.Array,
  k_BNLd: jax.Array,
  v_BNLd: jax.Array,
  lengths: Sequence[int],
  *,
  scale: float,
  query_block: int,
  backend: str = XLA,
) -> jax.Array:
  """Every scale against itself and the first token, which sees all of them.

  Args:
    lengths: 1 for the first token, then the tokens of every scale.
    scale, query_block: as of `scale_causal_attention`.
    backend: see `attention_backends`; scales of fewer than FEWEST_QUERIES go
      through plain products.
  """
  assert lengths[0] == 1 and sum(lengths) == q_BNLd.shape[2], lengths
  out = [attend(q_BNLd[:, :, :1], k_BNLd, v_BNLd, scale)]
  begin = 1
  for length in lengths[1:]:
    part = slice(begin, begin + length)
    k, v = (
      jnp.concatenate([x[:, :, :1], x[:, :, part]], axis=2)
      for x in (k_BNLd, v_BNLd)
    )
    q, blocks = q_BNLd[:, :, part], -(-length // query_block)
    begin += length
    if backend != XLA and length >= FEWEST_QUERIES:
      out.append(full_attention(q, k, v, scale=scale, backend=backend))
    elif blocks == 1:
      out.append(attend(q, k, v, scale))
    else:
      rect = Rectangle(0, length, blocks, (length,))
      out.append(_blocked(q, k, v, scale, rect))
  return jnp.concatenate(out, axis=2)


def cached_attention(
  q_BNld: jax.Array,
  k_BlC: jax.Array,
  v_BlC: jax.Array,
  cache: KVCache,
  layer: jax.Array,
  begin: int,
  *,
  scale: float,
  query_block: int,
  backend: str = XLA,
) -> tuple[jax.Array, KVCache]:
  """One scale against itself and everything before it.

  Writes the scale's keys and values into `cache` at (layer, begin), unless it
  is the last scale, whose keys no later scale reads. `backend`: see
  `attention_backends`; fewer than FEWEST_QUERIES go through plain products.
  """
  num_heads, num_new = q_BNld.shape[1], k_BlC.shape[1]
  end = begin + num_new
  fits = end <= cache.k.shape[2]
  if fits:
    stored = {}
    for name, new in (("k", k_BlC), ("v", v_BlC)):
      stored |= write_cache(cache, name, new, layer, begin)
    cache = cache.replace(**stored)
  # The scale's own keys are read as they are where the cache only rounds them.
  from_cache = fits and cache.k_scale is None
  read = []
  for name, new in (("k", k_BlC), ("v", v_BlC)):
    kept = end if from_cache else begin
    past = read_cache(cache, name, layer, kept, q_BNld.dtype)
    if not from_cache:
      past = jnp.concatenate([past, new.astype(past.dtype)], axis=1)
    read.append(rearrange(past, "b m (n d) -> b n m d", n=num_heads))
  k, v = read
  if backend != XLA and num_new >= FEWEST_QUERIES:
    out = full_attention(q_BNld, k, v, scale=scale, backend=backend)
    return out, cache
  blocks = -(-num_new // query_block)
  rect = Rectangle(0, num_new, blocks, (num_new,))
  if blocks > 1:
    return _blocked(q_BNld, k, v, scale, rect), cache
  return attend(q_BNld, k, v, scale), cache


def cached_token_attention(
  q_BN1d: jax.Array,
  k_B1C: jax.Array,
  v_B1C: jax.Array,
  cache: KVCache,
  layer: jax.Array,
  place: jax.Array,
  *,
  scale: float,
) -> tuple[jax.Array, KVCache]:
  """One token against itself and all tokens before it.

  Writes its key and value into `cache` at (layer, place); `place` is a traced
  int32, so that one program serves all tokens.
  """
  heads, (_, _, length, _) = q_BN1d.shape[1], cache.k.shape
  stored, read = {}, []
  for name, new in (("k", k_B1C), ("v", v_B1C)):
    slab = getattr(cache, name)
    stored[name] = jax.lax.dynamic_update_slice(
      slab, new.astype(slab.dtype)[None], (layer, 0, place, 0)
    )
    past = jax.lax.dynamic_index_in_dim(stored[name], layer, keepdims=False)
    past = rearrange(past, "b m (n d) -> b n m d", n=heads)
    read.append(past.astype(q_BN1d.dtype))
  seen = (jnp.arange(length) <= place)[None, None, None]
  return attend(q_BN1d, *read, scale, seen), KVCache(**stored)
