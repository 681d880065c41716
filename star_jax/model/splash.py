"""Attention on a TPU: jax's splash kernel, without logits in memory.

The kernel walks blocks of queries and keys and skips those that its mask
leaves empty. Our masks are of one kind, "query i sees the first ends[i] keys":
of all scales at once that is the scale-causal pattern, of one scale behind a
cache every end is the number of keys. Lengths are padded to whole blocks; a
padded query sees what the last one does and is cut off again, a padded key is
behind every end.

B: batch, N: heads, q: queries, m: keys, d: head channels, L: tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from star_jax.model.attention import KEPT
from star_jax.model.kernel_blocks import KernelBlocks
from star_jax.sharding import activation_spec

# Lanes of a vector register: every block is a multiple.
LANES = 128
# Most queries, and most keys, of a block. Large ones read keys less often, and
# small ones skip more of what no query sees: of the pairs that are computed at
# 1024 px (9451 tokens) 12% are masked, at 512 px (2240) 17%, with blocks of 512
# 38%.
BLOCK, SHORT_BLOCK = 512, 256
# Tokens from which on blocks are large.
LONG = 4096
# Channels that carry the logarithm of a weight: bfloat16, as which a matrix
# unit reads float32, holds a third of its digits in each of the first three.
WEIGHT_CHANNELS = 8


def block_of(length: int) -> int:
  """Side of equal blocks with little padding."""
  count = -(-length // (BLOCK if length >= LONG else SHORT_BLOCK))
  return LANES * -(-length // (count * LANES))


def _sees(ends, keys):
  """The kernel hands over what `Prefixes.q_sequence` has of its queries."""
  return keys < ends


@dataclasses.dataclass(frozen=True)
class Prefixes(masks.Mask):
  """Query i sees the first ends[i] of `keys` keys, in whole blocks."""

  ends: tuple[int, ...]
  keys: int

  mask_function = staticmethod(_sees)

  @property
  def block(self) -> tuple[int, int]:
    """Queries and keys of a block."""
    return block_of(len(self.ends)), block_of(self.keys)

  @property
  def shape(self) -> tuple[int, int]:
    lengths = len(self.ends), self.keys
    return tuple(b * -(-x // b) for x, b in zip(lengths, self.block))

  @property
  def blocks(self) -> KernelBlocks:
    queries, keys = self.block
    # The last query of a block sees the most.
    most = self.q_sequence[queries - 1 :: queries]
    every = len(most) * (self.shape[1] // keys)
    return KernelBlocks(int(np.sum(-(-most // keys))), every, queries, keys)

  @functools.cached_property
  def q_sequence(self) -> np.ndarray:
    more = self.shape[0] - len(self.ends)
    return np.pad(np.asarray(self.ends, np.int32), (0, more), mode="edge")

  def __getitem__(self, index) -> np.ndarray:
    rows, columns = index
    keys = np.arange(self.shape[1])[columns]
    return _sees(self.q_sequence[rows, None], keys[None])


def scale_causal_mask(lengths: Sequence[int]) -> Prefixes:
  """Every token sees those of its own scale and of the ones before.

  Args:
    lengths: tokens of every scale.
  """
  ends = np.repeat(np.cumsum(lengths), lengths)
  return Prefixes(tuple(ends.tolist()), int(ends[-1]))


def scale_causal(
  q_BNLd: jax.Array,
  k_BNLd: jax.Array,
  v_BNLd: jax.Array,
  lengths: Sequence[int],
  *,
  scale: float = 1.0,
  weight_BL: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Every token against those of its own scale and of the ones before.

  Args:
    lengths: tokens of every scale, summing to L.
    scale: factor on the logits.
    weight_BL: see `attention.scale_causal_attention`; no gradient reaches it.
    interpret: run the kernel as plain jax, on any device.
  """
  mask = scale_causal_mask(lengths)
  return _sharded(q_BNLd, k_BNLd, v_BNLd, weight_BL, mask, scale, interpret)


def full(
  q_BNqd: jax.Array,
  k_BNmd: jax.Array,
  v_BNmd: jax.Array,
  *,
  scale: float = 1.0,
  interpret: bool = False,
) -> jax.Array:
  """Every query against every key; see `scale_causal`."""
  keys = k_BNmd.shape[2]
  mask = Prefixes((keys,) * q_BNqd.shape[2], keys)
  return _sharded(q_BNqd, k_BNmd, v_BNmd, None, mask, scale, interpret)


def _sharded(q, k, v, weight_BL, mask: Prefixes, scale: float, interpret: bool):
  """On each device its own pictures and heads: no compiler cuts a kernel."""
  attention = functools.partial(
    _attention, mask=mask, scale=scale, interpret=interpret
  )
  if jax.sharding.get_abstract_mesh().empty:
    return attention(q, k, v, weight_BL)
  heads = activation_spec(q.shape, "heads_BNLd")
  rows = activation_spec(q.shape, "weights_BL")
  return jax.shard_map(
    attention,
    in_specs=(heads,) * 3 + (rows,),
    out_specs=heads,
    check_vma=False,
  )(q, k, v, weight_BL)


def _attention(
  q_BNqd, k, v, weight_BL, *, mask: Prefixes, scale: float, interpret: bool
):
  num_heads, num_queries = q_BNqd.shape[1:3]
  if scale != 1.0:
    q_BNqd = (q_BNqd.astype(jnp.float32) * scale).astype(q_BNqd.dtype)
  if weight_BL is not None:
    q_BNqd, k = _with_weights(q_BNqd, k, weight_BL)
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
    for x, length in zip((q_BNqd, k, v), (mask.shape[0], *mask.shape[1:] * 2))
  )
  blocks = mask.blocks
  kernel = kernels.make_splash_mha_single_device(
    masks.MultiHeadMask([mask] * num_heads),
    block_sizes=kernels.BlockSizes(
      block_q=blocks.queries,
      block_kv=blocks.keys,
      block_q_dkv=blocks.queries,
      block_kv_dkv=blocks.keys,
      block_q_dq=blocks.queries,
      block_kv_dq=blocks.keys,
      k_layout=kernels.QKVLayout.SEQ_MINOR,
      v_layout=kernels.QKVLayout.SEQ_MINOR,
    ),
    interpret=interpret,
    # What the backward pass reads besides q, k and v.
    residual_checkpoint_name=KEPT,
  )
  run = jax.vmap(kernel)
  if q.dtype != jnp.float32:
    run = _at_default_precision(run)
  with jax.named_scope(blocks.name):
    return run(q, k, v)[:, :, :num_queries]


def _at_default_precision(fn: Callable) -> Callable:
  """The same function, whatever precision a user asks of all products, which
  the compiler of kernels refuses for other than float32."""
  default = functools.partial(jax.default_matmul_precision, "default")

  @jax.custom_vjp
  def run(*args):
    with default():
      return fn(*args)

  def forward(*args):
    with default():
      return jax.vjp(fn, *args)

  def backward(gradient, out):
    with default():
      return gradient(out)

  run.defvjp(forward, backward)
  return run


def _with_weights(q_BNqd, k_BNmd, weight_Bm):
  """Channels more, whose part of a logit is the logarithm of the weight."""
  rest_Bm = jax.lax.stop_gradient(jnp.log(weight_Bm.astype(jnp.float32)))
  parts = []
  for _ in range(3):
    # Not by casts alone, which compilers take away in pairs.
    parts.append(jax.lax.reduce_precision(rest_Bm, 8, 7))
    rest_Bm = rest_Bm - parts[-1]
  parts_Bmc = jnp.pad(
    jnp.stack(parts, -1), ((0, 0), (0, 0), (0, WEIGHT_CHANNELS - len(parts)))
  )
  more_q = jnp.ones((*q_BNqd.shape[:-1], WEIGHT_CHANNELS), q_BNqd.dtype)
  more_k = jnp.broadcast_to(
    parts_Bmc[:, None].astype(k_BNmd.dtype),
    (*k_BNmd.shape[:-1], WEIGHT_CHANNELS),
  )
  return (
    jnp.concatenate([q_BNqd, more_q], -1),
    jnp.concatenate([k_BNmd, more_k], -1),
  )
