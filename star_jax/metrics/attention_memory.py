"""What one attention layer of the 1024 px model needs, forward and backward.

Compiled for the backend at hand, not run: 30 heads of 64 channels (star_d30),
batch 1, 9,451 tokens.

  python -m star_jax.metrics.attention_memory
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from star_jax.model.attention import scale_causal_attention
from star_jax.scales import ScaleSchedule

HEADS, HEAD_DIM = 30, 64


def attention_memory(dtype: str, query_block: int) -> int:
  """Bytes of temporaries of one layer's gradient, inputs and outputs apart."""
  lengths = ScaleSchedule.from_name("1024").lengths

  def loss(q, k, v):
    out = scale_causal_attention(q, k, v, lengths, query_block=query_block)
    return jnp.sum(jnp.square(out.astype(jnp.float32)))

  x = jax.ShapeDtypeStruct((1, HEADS, sum(lengths), HEAD_DIM), dtype)
  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
  print("| dtype | queries a block | temporaries |")
  print("|---|---|---|")
  for dtype in ("float32", "bfloat16"):
    for query_block in (256, 128):
      size = attention_memory(dtype, query_block)
      print(f"| {dtype} | {query_block} | {size / 1e9:.2f} GB |", flush=True)


if __name__ == "__main__":
  main()
