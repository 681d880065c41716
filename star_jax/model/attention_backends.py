"""What computes attention: products of XLA, or a kernel that keeps no logits.

"xla" is plain products and runs everywhere. "splash" is jax's Pallas kernel for
TPUs, "cudnn" NVIDIA's flash attention. "auto" takes the kernel of the device
where there is one for the model's dtype and heads. All are equal to rounding.

Plain products remain wherever a kernel does not fit: tokens one by one, a few
queries at a time, texts, devices that share a picture's tokens, and with cuDNN
tokens that stand for several (`weight_BL`).

B: batch, N: heads, q: queries, m: keys, d: head channels.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from einops import rearrange

if TYPE_CHECKING:
  from star_jax.model.config import StarConfig

AUTO, XLA, CUDNN, SPLASH = "auto", "xla", "cudnn", "splash"
BACKENDS = (XLA, CUDNN, SPLASH)
# What a user says.
CHOICES = (AUTO, *BACKENDS)
# Best last.
_OFFERED = {"tpu": (XLA, SPLASH), "cuda": (XLA, CUDNN)}
# Scales of fewer tokens are sampled with plain products: a block of the kernels
# is filled from here on.
FEWEST_QUERIES = 128
_CUDNN_DTYPES = ("bfloat16", "float16")
# Of a head, on cards before Hopper.
_CUDNN_CHANNELS = 128
# Compute capability of the first cards that cuDNN's kernel runs on (Ampere).
_FIRST_CARD = 8


def platform_here() -> str:
  """Of the devices at hand: "cpu", "tpu", "cuda", or "gpu" for cards without
  cuDNN's kernel."""
  device = jax.devices()[0]
  if device.platform != "gpu":
    return device.platform
  # Of AMD's cards this is a name, such as gfx90a.
  found = re.match(r"\d+", str(getattr(device, "compute_capability", "")))
  return "cuda" if found and int(found.group()) >= _FIRST_CARD else "gpu"


def available(platform: str) -> tuple[str, ...]:
  """Backends of a platform as `platform_here` calls it, the best last."""
  return _OFFERED.get(platform, (XLA,))


def choose(name: str, platform: str, config: StarConfig) -> str:
  """The backend that `name`, one of CHOICES, means there.

  Raises:
    ValueError: the platform does not offer it, or it cannot compute the model's
      attention.
  """
  offered = available(platform)
  if name != AUTO and name not in offered:
    raise ValueError(
      f"attention = {name!r} is not available on {platform}, which offers"
      f" {' and '.join(map(repr, offered))}; {AUTO!r} takes what is best there."
    )
  if name == AUTO:
    return offered[-1] if _misfit(offered[-1], config) is None else XLA
  if misfit := _misfit(name, config):
    raise ValueError(f"attention = {name!r} {misfit}; {XLA!r} takes any.")
  return name


def _misfit(backend: str, config: StarConfig) -> str | None:
  """Why it cannot compute the attention of a model; None: it can."""
  if backend != CUDNN:
    return None
  if config.dtype not in _CUDNN_DTYPES:
    return f"takes dtype {' or '.join(_CUDNN_DTYPES)}, got {config.dtype!r}"
  if config.head_dim % 8 or config.head_dim > _CUDNN_CHANNELS:
    return (
      f"takes heads of a multiple of 8 channels up to {_CUDNN_CHANNELS}, got"
      f" {config.head_dim}"
    )
  return None


def backend_of(config: StarConfig) -> str:
  """What the layers of a model are computed by.

  A name in the config stands, on whatever device the program is traced:
  programs are also compiled for others (see `compile_check`). Those who run
  one call `check_here` first.
  """
  if config.attention != AUTO:
    return config.attention
  return choose(AUTO, platform_here(), config)


def check_here(config: StarConfig, sequence: int = 1) -> str:
  """What a run prints of its attention, one line.

  Args:
    sequence: devices that share the tokens of a picture.

  Raises:
    ValueError: the device at hand does not offer what the config names.
  """
  platform = platform_here()
  backend = choose(config.attention, platform, config)
  if sequence > 1:
    return f"Attention: {XLA}, {sequence} devices share a picture's tokens"
  why = f", chosen for {platform}" if config.attention == AUTO else ""
  return f"Attention: {backend}{why}"


def full_attention(
  q_BNqd: jax.Array,
  k_BNmd: jax.Array,
  v_BNmd: jax.Array,
  *,
  scale: float,
  backend: str,
) -> jax.Array:
  """Every query against every key by a kernel, [B, N, q, d].

  Args:
    scale: factor on the logits.
    backend: "cudnn" or "splash".
  """
  if backend == SPLASH:
    # Imported here: Pallas takes a second, and others never ask for it.
    from star_jax.model import splash

    return splash.full(q_BNqd, k_BNmd, v_BNmd, scale=scale)
  assert backend == CUDNN, backend
  return _cudnn(q_BNqd, k_BNmd, v_BNmd, scale)


def _cudnn(q_BNqd, k_BNmd, v_BNmd, scale: float) -> jax.Array:
  """Lengths are made even: jax refuses odd ones in a gradient (it takes every
  call for one with a bias), the kernel itself does not."""
  batch, _, num_queries, _ = q_BNqd.shape
  num_keys = k_BNmd.shape[2]
  q, k, v = (
    jnp.pad(
      rearrange(x, "b n l d -> b l n d"),
      ((0, 0), (0, x.shape[2] % 2), (0, 0), (0, 0)),
    )
    for x in (q_BNqd, k_BNmd, v_BNmd)
  )
  real = jnp.full(batch, num_keys, jnp.int32) if num_keys % 2 else None
  out = jax.nn.dot_product_attention(
    q,
    k,
    v,
    scale=scale,
    key_value_seq_lengths=real,
    implementation="cudnn",
  )
  return rearrange(out[:, :num_queries], "b q n d -> b n q d")
