"""What a sampler needs, said before it is compiled.

A formula over the settings of a model. Against the compiler's own assignment
of buffers the sum is within 1.3 times either way
(tests/sampling/memory_test.py); `compile_check` asks the compiler itself.

B: samples, R: rows of the model's batch (2B with guidance), S: tokens kept in
the cache, l: tokens of a scale, m: keys it sees, q: queries of a block, N:
heads, C: width, V: vocabulary, T: text tokens, D: width of the text.
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.config import StarConfig
from star_jax.sampling.sampler import SamplerConfig
from star_jax.tokenizer.config import VQVAEConfig

# Activations of the finest resolution that the decoder holds at once.
_DECODER_ARRAYS = 3
# Guided and filtered logits, and the bits that the filters compare.
_LOGIT_ARRAYS = 3
# Where Linux says what a container may take.
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclasses.dataclass(frozen=True)
class SamplerMemory:
  """Bytes of one program on one device.

  Attributes:
    parameters: all that lie there, read or not.
    condition: copies of the weights that make the condition.
    cache: keys and values, of a picture.
    scale: temporaries of the largest scale, of a picture.
    decoder: temporaries of the decoder, of a picture.
    decoder_rows: pictures that it sees at once; 0: all.
    outputs: of a picture.
  """

  parameters: int
  condition: int
  cache: int
  scale: int
  decoder: int
  decoder_rows: int
  outputs: int

  def bytes(self, batch: int) -> int:
    """At the worst moment; condition, scales and decoder come one after the
    other and share their space."""
    moments = (
      self.condition + self.cache * batch,
      (self.cache + self.scale) * batch,
      self.decoder * (self.decoder_rows or batch),
    )
    return self.parameters + self.outputs * batch + max(moments)

  def largest_batch(self, limit: int) -> int:
    """The largest batch within `limit` bytes; 0: not even one."""
    low, high = 0, 1
    while self.bytes(high) <= limit:
      low, high = high, 2 * high
    while high - low > 1:
      middle = (low + high) // 2
      fits = self.bytes(middle) <= limit
      low, high = (middle, high) if fits else (low, middle)
    return low


def sampler_memory(
  star: StarConfig,
  tokenizer: VQVAEConfig,
  config: SamplerConfig,
  *,
  parameters: int,
  text_tokens: int = 0,
  platform: str = "cpu",
) -> SamplerMemory:
  """The estimate for a model and its tokenizer.

  Args:
    star, tokenizer, config: as of `build_sampler`.
    parameters: bytes of them.
    text_tokens: T; 0 for a model of classes.
    platform: of the device. A CPU computes 16-bit types in float32.
  """

  def size(dtype: str) -> int:
    return 4 if platform == "cpu" else jnp.dtype(dtype).itemsize

  item, rows, width = size(star.dtype), 1 + config.guided, star.width
  cache = 2 * star.depth * rows * width * item
  cache *= star.cache_length + (text_tokens if star.cross_attention else 0)
  decoder_item = size(config.decoder_dtype or tokenizer.dtype)
  h, w = tokenizer.schedule.final_grid
  height, width_px = tokenizer.image_size
  latents = 4 * h * w * tokenizer.code_dim * tokenizer.schedule.num_scales
  return SamplerMemory(
    parameters=parameters,
    condition=_condition_bytes(star),
    cache=cache,
    scale=_scale_bytes(star, rows, item, config.return_logits),
    decoder=_DECODER_ARRAYS * decoder_item * _decoder_elements(tokenizer),
    decoder_rows=1 if config.decode_one_by_one else 0,
    outputs=latents + 12 * height * width_px,
  )


def check_batch(
  memory: SamplerMemory,
  batch: int,
  device: jax.Device,
  limit: int | None = None,
) -> None:
  """Refuses a batch that does not fit, before anything is compiled.

  Args:
    memory: of the program.
    batch: pictures at once.
    device: that it runs on.
    limit: bytes; None: `device_bytes`.

  Raises:
    ValueError: with the estimate and the largest batch that fits.
  """
  limit = device_bytes(device) if limit is None else limit
  need = memory.bytes(batch)
  if limit is None or need <= limit:
    return
  largest = memory.largest_batch(limit)
  advice = f"the largest batch that fits is {largest}"
  raise ValueError(
    f"A batch of {batch} needs about {_gib(need)} and {device.device_kind} has"
    f" {_gib(limit)}; {advice if largest else 'not even one picture fits'}."
  )


def device_bytes(device: jax.Device) -> int | None:
  """Memory that programs may take; None where nobody says it.

  Of a CPU all of the machine's, or what its container may take.
  """
  stats = device.memory_stats() or {}
  if "bytes_limit" in stats:
    return int(stats["bytes_limit"])
  if device.platform != "cpu" or not hasattr(os, "sysconf"):
    return None
  limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  if _CONTAINER_LIMIT.is_file():
    text = _CONTAINER_LIMIT.read_text().strip()
    limit = min(limit, int(text)) if text.isdigit() else limit
  return limit


def tree_bytes(params) -> int:
  """Of all arrays of a tree."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))


def _condition_bytes(star: StarConfig) -> int:
  """The stacked weights of keys and values of the text, or of the modulation,
  are laid out anew, and converted to the compute dtype where it is another."""
  weights = 0
  if star.cross_attention:
    weights = 2 * star.depth * star.text_dim * star.width
  if star.adaptive_norm == "block":
    weights = max(weights, 6 * star.depth * star.width**2)
  return weights * (4 if star.dtype == "float32" else 6)


def _scale_bytes(
  star: StarConfig, rows: int, item: int, return_logits: bool
) -> int:
  """Attention with its keys, values and tokens, or logits: the larger one."""
  lengths = star.schedule.lengths
  if star.prediction == "token":
    lengths = (1,) * sum(lengths)
  keys = np.cumsum(lengths)
  most = 0
  for length, seen in {(n, int(m)) for n, m in zip(lengths, keys)}:
    queries = min(length, star.query_block)
    # Logits in float32 and the probabilities that they become.
    attention = star.num_heads * queries * seen * (4 + max(item // 2, 2))
    tokens = (2 * seen + 4 * length) * star.width * item
    mlp = length * (star.width + 2 * star.mlp_width) * item
    logits = 4 * length * star.num_logits
    # Noise depends on nothing: that of every scale may be drawn before.
    noise = 4 * star.schedule.num_tokens * star.num_logits
    noise = noise if star.prediction == "scale" else logits
    moments = (
      rows * (attention + tokens),
      rows * mlp,
      (rows + _LOGIT_ARRAYS) * logits + noise,
    )
    most = max(most, *moments)
  kept = 4 * sum(lengths) * star.num_logits if return_logits else 0
  return most + kept


def _decoder_elements(tokenizer: VQVAEConfig) -> int:
  """Of the largest activation, of a picture."""
  height, width = tokenizer.image_size
  mults, p = tokenizer.ch_mult, tokenizer.patch_size
  sides = [(height // p >> i) * (width // p >> i) for i in range(len(mults))]
  # What comes from the resolution below still has its channels.
  channels = [max(mults[i : i + 2]) * tokenizer.ch for i in range(len(mults))]
  return max(n * c for n, c in zip(sides, channels))


def _gib(size: int) -> str:
  if size < 2**30:
    return f"{size / 2**20:.1f} MiB"
  return f"{math.ceil(size / 2**30 * 10) / 10:.1f} GiB"
