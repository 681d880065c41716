"""What is compared: one model, one thing to do, one batch."""

from __future__ import annotations

import dataclasses
from typing import Any

from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig

SAMPLE, DECODE, TRAIN = "sample", "decode", "train"
WHAT = (SAMPLE, DECODE, TRAIN)
# What both sides draw with, as in the authors' demo.
CFG_SCALE, TOP_K, TOP_P = 4.0, 900, 0.95
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Case:
  """One row of the table. The model is a VAR: classes, learned positions.

  Attributes:
    name: of the row.
    what: "sample" (class to picture, with guidance), "decode" (f_hat to
      picture) or "train" (forward, backward, clipping, AdamW).
    depth: of the transformer; width and heads follow, as in VAR.
    batch: pictures.
    schedule: name or sides of the scales.
    ch: base width of the tokenizer.
    width, heads: other ones than those that follow from the depth; 0: those.
    prediction, dtype, attention: see `StarConfig`; "token" and other dtypes
      than float32 have no side of the authors'.
  """

  name: str
  what: str
  depth: int
  batch: int
  schedule: str | tuple[int, ...] = "256"
  ch: int = 160
  width: int = 0
  heads: int = 0
  prediction: str = "scale"
  dtype: str = "float32"
  attention: str = "auto"

  def __post_init__(self):
    if self.what not in WHAT:
      raise ValueError(f"what of a case is one of {WHAT}, got {self.what!r}.")

  @property
  def star(self) -> StarConfig:
    """Random weights of these spread give logits of the size of trained ones:
    with the official ones they would all be about 0, and agree whatever the
    layers do."""
    return StarConfig(
      schedule=ScaleSchedule.parse(self.schedule),
      vocab_size=4096,
      code_dim=32,
      depth=self.depth,
      width=self.width or 64 * self.depth,
      num_heads=self.heads or self.depth,
      num_classes=CLASSES,
      adaptive_norm="block",
      position="absolute",
      rope_norm=-1.0,
      cross_attention=False,
      drop_path_rate=0.0,
      prediction=self.prediction,
      dtype=self.dtype,
      attention=self.attention,
      init_head=1.0,
      init_adaln_gamma=0.5,
    )

  @property
  def tokenizer(self) -> VQVAEConfig:
    """Of the only layout the authors' code has."""
    return VQVAEConfig(
      schedule=ScaleSchedule.parse(self.schedule),
      vocab_size=4096,
      code_dim=32,
      ch=self.ch,
      ch_mult=(1, 1, 2, 2, 4),
      num_res_blocks=2,
    )

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)
