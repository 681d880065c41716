"""The frozen description of one transformer, STAR or VAR, and its checks.

Presets (the published sizes, the shipped one) are data in
`configs/presets.py`; nothing here reads a config file.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from star_jax.model.attention_backends import AUTO, CHOICES
from star_jax.scales import ROPE_COORDS, ScaleSchedule

ADAPTIVE_NORMS = ("none", "level", "block", "shared")
POSITIONS = ("rope", "absolute", "rope+absolute", "sinusoidal")
PREDICTIONS = ("scale", "token")
HEADS = ("softmax", "bits")
REMATS = ("none", "layer", "attention", "dots")
DTYPES = ("float32", "bfloat16", "float16")
# Fields that came later: left out of files where they have these values, so
# that older checkpoints and bundles are those of the same model.
_LATER = {"prediction": "scale", "base_width": 0, "head": "softmax"}
# Fields of a run, which no file has.
_OF_THE_RUN = ("attention",)
# Values of remat in files from before it had names, and still.
_REMAT_FLAGS = {False: "none", True: "layer"}


@dataclasses.dataclass(frozen=True)
class StarConfig:
  """Everything static about the transformer. Defaults are STAR's own values.

  STAR and VAR are the same layers under another condition: a VAR has
  num_classes, adaptive_norm "block" (or "shared", its d36), position
  "absolute", no cross-attention.

  Fields:
    schedule: the K grids, coarse to fine; the first is 1x1 (start token) unless
      prediction is "token".
    vocab_size, code_dim: V and Cv of the tokenizer whose codes are modelled.
    depth, width, num_heads: layers, C and N; head_dim d = C / N.
    num_classes: of a model that draws classes; 0: it draws texts.
    text_dim: D, width of the text states and of the pooled text; 0 with
      classes.
    rope_norm: range that every scale's coordinates are stretched to; -1 keeps
      integer coordinates (plain RoPE). Ignored when position is "absolute".
    drop_path_rate: rate of the last layer; layer i has i / (depth - 1) of it.
    mlp_ratio: hidden width of the MLP over C.
    attn_l2_norm: l2-normalised q and k with a learned clamped scale per head;
      without it logits are divided by 4 * sqrt(d), the official choice.
    position: "rope" (on q and k of self-attention), "absolute" (learned
      embedding of each of the L positions added to the input), both,
      "rope+absolute", or "sinusoidal" (fixed, added to the input).
    rope_theta, rope_coords: base of the frequencies; "checkpoint" or "paper"
      coordinates, see `ScaleSchedule.coordinates`.
    lvl_embed: add a learned embedding of the scale to the input.
    adaptive_norm: what scales and shifts the normalised input of attention and
      MLP. "none"; "level": the scale, by one projection for all layers plus an
      offset per layer (STAR's shared_aln); "block": the condition (class, or
      pooled text), by a projection per layer; "shared": the condition, by one
      projection plus offsets (VAR's shared_aln). The last two also modulate the
      features before the head.
    cross_attention: attend to all text tokens in every block.
    logit_norm: normalise features before the head.
    legacy_batch0_cross_attention: what the published code does: the
      cross-attention output of batch row 0 is used for every row. Parity only.
    prediction: "scale": all tokens of a scale at once from the scales before
      it (VAR); "token": one after the other, row by row, from all tokens before
      it: the raster-order baseline with a single scale, a flattened multi-scale
      one with several.
    head: "softmax" over the V tokens; "bits": one logit for each bit of a
      token, independent of the others (Infinity, arXiv 2412.04431), for
      tokenizers whose codes are bits.
    remat: what the backward pass computes again. "none": nothing but the
      attention of long sequences; "layer": all of each layer but its input;
      "attention": all but that and what goes into self-attention and comes out;
      "dots": all but the products with weights, which stay in memory.
    query_block: most queries of one attention block; bounds temporaries.
    attention: what computes it, see `attention_backends`. It depends on the
      device, not on the model: files do not have it.
    dtype: compute dtype. Parameters, softmax, norms, rotary application and
      logits are float32 whatever it is.
    init_std: of all weights and embeddings; -1 means sqrt(1 / (3 C)).
    base_width: muP (star_jax/train/mup.py): width of the model that rates and
      initial weights were chosen for; 0: the official initial weights, and one
      rate for all.
    init_head, init_adaln, init_adaln_gamma: factors on the head weight, on the
      shift and scale rows and on the gamma rows of the adaptive norm offsets.
  """

  schedule: ScaleSchedule
  vocab_size: int
  code_dim: int
  depth: int
  width: int
  num_heads: int
  rope_norm: float
  drop_path_rate: float
  text_dim: int = 0
  num_classes: int = 0
  mlp_ratio: float = 4.0
  attn_l2_norm: bool = True
  position: str = "rope"
  rope_theta: float = 100.0
  rope_coords: str = "checkpoint"
  lvl_embed: bool = True
  adaptive_norm: str = "none"
  cross_attention: bool = True
  logit_norm: bool = True
  legacy_batch0_cross_attention: bool = False
  prediction: str = "scale"
  head: str = "softmax"
  remat: str = "none"
  query_block: int = 256
  attention: str = AUTO
  dtype: str = "float32"
  norm_eps: float = 1e-6
  init_std: float = -1.0
  base_width: int = 0
  init_head: float = 0.02
  init_adaln: float = 0.5
  init_adaln_gamma: float = 1e-5

  def __post_init__(self):
    for name in (
      "vocab_size", "code_dim", "depth", "width", "num_heads", "query_block",
    ):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}."
        )
    if self.prediction == "scale" and self.schedule.grids[0] != (1, 1):
      raise ValueError(
        "The first grid of the schedule must be 1x1 (the start token), got"
        f" {self.schedule.grids[0]}."
      )
    if self.width % self.num_heads:
      raise ValueError(
        f"width must be a multiple of num_heads, got {self.width} and"
        f" {self.num_heads}."
      )
    for name, choices in (
      ("position", POSITIONS),
      ("rope_coords", ROPE_COORDS),
      ("adaptive_norm", ADAPTIVE_NORMS),
      ("prediction", PREDICTIONS),
      ("head", HEADS),
      ("remat", REMATS),
      ("attention", CHOICES),
      ("dtype", DTYPES),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f"{name} is one of {choices}, got {getattr(self, name)!r}."
        )
    if self.position == "sinusoidal" and self.width % 4:
      raise ValueError(
        "Sinusoidal positions need a width that is a multiple of 4, got"
        f" {self.width}."
      )
    if "rope" in self.position and self.head_dim % 4:
      raise ValueError(
        "2D RoPE needs a head width (width / num_heads) that is a multiple of"
        f" 4, got {self.head_dim}."
      )
    if self.rope_norm <= 0 and self.rope_norm != -1:
      raise ValueError(
        f"rope_norm is positive, or -1 for plain RoPE, got {self.rope_norm}."
      )
    if not 0.0 <= self.drop_path_rate < 1.0:
      raise ValueError(
        f"drop_path_rate is in [0, 1), got {self.drop_path_rate}."
      )
    if self.base_width < 0 or (self.base_width and self.init_std >= 0):
      raise ValueError(
        "base_width is a width, with init_std -1, or 0 for none, got"
        f" {self.base_width} and init_std {self.init_std}."
      )
    if self.adaptive_norm == "level" and not self.lvl_embed:
      raise ValueError(
        "adaptive_norm 'level' reads the level embedding: it needs"
        " lvl_embed=True."
      )
    if (self.text_dim > 0) == (self.num_classes > 0):
      raise ValueError(
        "A model has either text_dim or num_classes above 0, got"
        f" {self.text_dim} and {self.num_classes}."
      )
    if self.head == "bits" and self.vocab_size != 2**self.code_dim:
      raise ValueError(
        "head 'bits' predicts one bit for each channel of a code: with"
        f" code_dim = {self.code_dim} vocab_size is {2**self.code_dim}, got"
        f" {self.vocab_size}."
      )
    if self.num_classes and self.cross_attention:
      raise ValueError(
        "Cross-attention needs a text: with num_classes, cross_attention is"
        " False."
      )

  @property
  def num_logits(self) -> int:
    """Logits of a token: V, or its bits."""
    return self.code_dim if self.head == "bits" else self.vocab_size

  @property
  def modulated_head(self) -> bool:
    """Whether the condition scales and shifts the features of the head."""
    return self.adaptive_norm in ("block", "shared")

  @property
  def head_dim(self) -> int:
    """d, channels of one attention head."""
    return self.width // self.num_heads

  @property
  def mlp_width(self) -> int:
    """Hidden channels of the MLP."""
    return round(self.width * self.mlp_ratio)

  @property
  def weight_std(self) -> float:
    """Standard deviation of freshly drawn weights."""
    if self.init_std < 0:
      return math.sqrt(1.0 / (3.0 * self.width))
    return self.init_std

  @property
  def width_ratio(self) -> float:
    """Width over that of muP's base; 1 without one."""
    return self.width / (self.base_width or self.width)

  @property
  def input_std(self) -> float:
    """Standard deviation of fresh embeddings and of weights whose input does
    not grow with the width."""
    return self.weight_std * math.sqrt(self.width_ratio)

  @property
  def head_std(self) -> float:
    """Standard deviation of fresh weights of the head."""
    return self.weight_std * self.init_head / math.sqrt(self.width_ratio)

  @property
  def cache_length(self) -> int:
    """S, tokens kept for later steps: all but those of the last scale, or all
    where tokens come one after the other (a step is then one program for all
    places)."""
    last = 0 if self.prediction == "token" else self.schedule.lengths[-1]
    return self.schedule.num_tokens - last

  def with_schedule(self, schedule: ScaleSchedule) -> StarConfig:
    """The same parameters for grids of other shapes, as many as before.

    Raises:
      ValueError: learned positions, which have a row for every token of the old
        grids; or another number of scales.
    """
    if schedule == self.schedule:
      return self
    if "absolute" in self.position:
      raise ValueError(
        "This model has learned positions, which fit its own grids"
        f" {self.schedule.grids} alone; other shapes need one with position"
        " 'rope' or 'sinusoidal'."
      )
    if schedule.num_scales != self.schedule.num_scales:
      raise ValueError(
        f"This model has {self.schedule.num_scales} scales, got"
        f" {schedule.num_scales}."
      )
    return dataclasses.replace(self, schedule=schedule)

  def to_dict(self) -> dict[str, Any]:
    """JSON-able; the schedule becomes a list of [h, w]."""
    names = [f.name for f in dataclasses.fields(self)]
    out = {n: getattr(self, n) for n in names if n not in _OF_THE_RUN}
    out["schedule"] = [list(grid) for grid in self.schedule.grids]
    for flag, name in _REMAT_FLAGS.items():
      if self.remat == name:
        out["remat"] = flag
    return {k: v for k, v in out.items() if k not in _LATER or v != _LATER[k]}

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> StarConfig:
    """Inverse of `to_dict`; the schedule may also be sides or a name.

    Raises:
      ValueError: unknown or missing keys, by name.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values = _renamed(values)
    unknown = sorted(set(values) - set(fields))
    if unknown:
      raise ValueError(
        f"Unknown model settings {unknown}; the known ones are"
        f" {sorted(fields)}."
      )
    missing = sorted(
      name
      for name, f in fields.items()
      if f.default is dataclasses.MISSING and name not in values
    )
    if missing:
      raise ValueError(f"The model settings lack {missing}.")
    schedule = ScaleSchedule.parse(values["schedule"])
    return cls(**{**values, "schedule": schedule})


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
  """Settings written before adaptive_norm and remat had their names."""
  values = dict(values)
  if "shared_aln" in values:
    values["adaptive_norm"] = "level" if values.pop("shared_aln") else "none"
  if isinstance(values.get("remat"), bool):
    values["remat"] = _REMAT_FLAGS[values["remat"]]
  return values
