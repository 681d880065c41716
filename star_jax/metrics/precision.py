"""bfloat16 against float32 on the same tokens.

K: scales, B: batch, L: tokens, V: vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.star import Star
from star_jax.sampling.logits import bit_pairs
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.text.states import TextStates
from star_jax.tokenizer.vqvae import VQVAE


@dataclasses.dataclass(frozen=True)
class Agreement:
  """kl_BL: nats of KL(float32 || other) per token; same_BL: equal argmax."""

  kl_BL: np.ndarray
  same_BL: np.ndarray

  def per_scale(self, begin_ends: Sequence[tuple[int, int]]) -> list[dict]:
    """Mean KL and top-1 agreement of each scale."""
    return [
      {
        "kl": float(self.kl_BL[:, begin:end].mean()),
        "top1": float(self.same_BL[:, begin:end].mean()),
      }
      for begin, end in begin_ends
    ]


def compare_logits(reference_BLV, other_BLV, head: str = "softmax"):
  """(KL in nats float32 [B, L], equal argmax bool [B, L])."""
  if head == "bits":
    kl_BLn, same_BLn = compare_logits(
      bit_pairs(reference_BLV), bit_pairs(other_BLV)
    )
    return kl_BLn.sum(-1), same_BLn.all(-1)
  log_p = jax.nn.log_softmax(reference_BLV.astype(jnp.float32))
  log_q = jax.nn.log_softmax(other_BLV.astype(jnp.float32))
  kl_BL = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
  same_BL = reference_BLV.argmax(-1) == other_BLV.argmax(-1)
  return kl_BL, same_BL


def compare_dtypes(
  star: Star,
  vqvae: VQVAE,
  params,
  idx_BL: np.ndarray,
  text: TextStates,
  *,
  dtype: str,
  batch_size: int,
) -> Agreement:
  """Teacher-forced logits of the model in `dtype` against float32.

  Args:
    star: the model; its own dtype does not matter.
    vqvae: its tokenizer.
    params: {"star": ..., "tokenizer": ...}.
    idx_BL: int32 tokens of B pictures.
    text: states of their B captions.
    dtype: "bfloat16" or "float16".
    batch_size: pictures at once; B is a multiple of it.

  Raises:
    ValueError: B is not a multiple of batch_size.
  """
  if len(idx_BL) % batch_size:
    raise ValueError(
      f"The number of pictures is a multiple of the batch {batch_size}, got"
      f" {len(idx_BL)}."
    )
  reference, other = (
    Star(dataclasses.replace(star.config, dtype=d)) for d in ("float32", dtype)
  )

  @jax.jit
  def step(params, idx_BL, text):
    x_BLCv = teacher_forcing_input(
      star.config, vqvae, params["tokenizer"], idx_BL
    )
    return compare_logits(
      *(m.apply({"params": params["star"]}, x_BLCv, text)
        for m in (reference, other)),
      star.config.head,
    )  # fmt: skip

  parts = []
  for start in range(0, len(idx_BL), batch_size):
    rows = slice(start, start + batch_size)
    parts.append(step(params, idx_BL[rows], text[rows]))
  return Agreement(*(np.concatenate(x) for x in zip(*parts)))
