"""What one attention layer of the 1024 px model needs, forward and backward.

Compiled, not run: 30 heads of 64 channels (star_d30), batch 1, 9,451 tokens.

  python -m star_jax.metrics.attention_memory            # the backend at hand
  python -m star_jax.metrics.attention_memory v5e:2x2    # one chip of that TPU

The second needs the TPU compiler, not a TPU: `pip install libtpu`, the version
that `jax[tpu]` asks for.
"""

from __future__ import annotations

import os
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from star_jax.model.attention import scale_causal_attention
from star_jax.scales import ScaleSchedule

HEADS, HEAD_DIM = 30, 64


def tpu_sharding(topology: str) -> jax.sharding.Sharding:
  """Of one chip of a TPU that need not be here, "v5e:2x2" for example.

  Raises:
    ValueError: no TPU compiler, or a topology that it does not know.
  """
  # Otherwise the compiler asks the network what machine this is.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  try:
    found = topologies.get_topology_desc(topology, platform="tpu")
  except Exception as error:
    raise ValueError(
      f"Compiling for the TPU {topology!r} needs the package libtpu and a"
      f" topology that it knows, such as v5e:2x2: {error}"
    ) from error
  return jax.sharding.SingleDeviceSharding(found.devices[0])


def attention_memory(dtype: str, query_block: int, sharding=None) -> int:
  """Bytes of temporaries of one layer's gradient, inputs and outputs apart."""
  lengths = ScaleSchedule.from_name("1024").lengths

  def loss(q, k, v):
    out = scale_causal_attention(q, k, v, lengths, query_block=query_block)
    return jnp.sum(jnp.square(out.astype(jnp.float32)))

  shape = (1, HEADS, sum(lengths), HEAD_DIM)
  x = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main(argv: list[str]) -> None:
  try:
    sharding = tpu_sharding(argv[0]) if argv else None
  except ValueError as error:
    sys.exit(str(error))
  print("| dtype | queries a block | temporaries |")
  print("|---|---|---|")
  for dtype in ("float32", "bfloat16"):
    for query_block in (256, 128):
      size = attention_memory(dtype, query_block, sharding)
      print(f"| {dtype} | {query_block} | {size / 1e9:.2f} GB |", flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
