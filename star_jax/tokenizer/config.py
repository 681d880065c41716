"""What an image tokenizer is made of, as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from star_jax.bits import MOST_BITS
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.resize import GROWTHS

VQ_LOSS_REDUCTIONS = ("mean", "sum")
DTYPES = ("float32", "bfloat16", "float16")
# How a vector becomes a code; "none": not at all, a continuous autoencoder.
QUANTIZERS = ("vq", "fsq", "lfq", "bsq", "none")
BINARY = ("lfq", "bsq")
DECODER_NORMS = ("group", "spatial")
# Most codes of bits whose use is counted one by one.
MOST_COUNTED = 2**16
# Most bits whose codes the entropy loss looks at one by one.
MOST_GROUP = 16


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
  """A VQVAE with a multi-scale residual quantizer (VAR, Algorithms 1 and 2).

  Attributes:
    schedule: the token grids; the last one is the latent grid.
    vocab_size: V, entries of the codebook.
    code_dim: Cv, width of a code.
    ch: base width of encoder and decoder.
    ch_mult: width factor of each resolution, finest first.
    num_res_blocks: residual blocks per resolution (the decoder has one more).
    dropout: rate inside the residual blocks.
    attention: single-head attention at the coarsest resolution and in the
      middle, as in the official layout.
    patch_size: pixels per side that are folded into channels before the
      encoder and unfolded after the decoder; 1 is the official layout, larger
      values make small models cheap.
    linear_path: a linear map of each patch of `downsample` pixels to its
      feature vector and back, beside the convolutional path.
    deep_encoder: with `linear_path`, False leaves the convolutional encoder
      out: features are then strictly local to their patch.
    quant_conv_ks: kernel side of the convolutions around the quantizer.
    quant_resi: mixing ratio of phi; its sign is dropped, 0 switches phi off.
    share_quant_resi: number of phi convolutions; 0 is one per scale.
    growth: how codes of a coarse grid reach the full one: "bicubic" (VAR) or
      "nearest". With "nearest", grids that divide each other and no phi, a
      token depends on nothing outside its cell and what the cell is part of:
      a plain ground has the same few tokens everywhere.
    rate_weight: of every scale, how much a nat of code length counts against
      squared distance when a code is chosen (entropy-constrained vector
      quantization, Chou, Lookabaugh and Gray 1989); empty: distance alone. Of
      codes that serve about equally well the common one is taken, so that
      tokens are far easier to predict at nearly the same reconstruction.
    beta: weight of the commitment loss.
    using_znorm: choose codes by cosine similarity instead of distance.
    vq_loss_reduction: "mean" over scales (VAR) or "sum" (STAR's copy).
    dtype: compute dtype of encoder and decoder. The quantizer and the two
      convolutions around it are always float32.
    quantizer: "vq", "fsq", "lfq" or "bsq", see tokenizer/scale_quantizers.py;
      "none": a continuous autoencoder (tokenizer/continuous.py), which has no
      tokens; of the schedule it takes the last grid alone.
    levels: of "fsq", how many values each channel of a code has, 3 or more;
      their product is V and their number Cv.
    learned_gains: of "fsq", "lfq" and "bsq": each scale multiplies its codes by
      factors that start from the data and learn from the codebook loss. False:
      codes have one size on all scales, as in Infinity.
    entropy_weight: of "lfq" and "bsq", weight of the entropy loss, see
      `scale_quantizers.entropy_loss`; 0: none.
    entropy_gamma: weight of its second term, that all codes be used.
    entropy_temperature: of the soft choice of codes; the default is that of LFQ
      and BSQ.
    entropy_group: bits of a code whose joint entropy is taken: 1 treats them as
      independent (BSQ), Cv takes all codes (LFQ).
    kl_weight: of "none", weight of the KL divergence from a standard normal in
      nats, the mean over numbers of the latent.
    decoder_norm: "group", or "spatial": normalised maps of the decoder are
      scaled and shifted by linear maps of the code of the place (MoVQ, arXiv
      2209.09002).
    scale_dropout: share of the samples of a training batch that end with an
      earlier scale, each equally likely, so that every prefix decodes well.
  """

  schedule: ScaleSchedule
  vocab_size: int
  code_dim: int
  ch: int
  ch_mult: tuple[int, ...]
  num_res_blocks: int
  dropout: float = 0.0
  attention: bool = True
  patch_size: int = 1
  linear_path: bool = False
  deep_encoder: bool = True
  quant_conv_ks: int = 3
  quant_resi: float = 0.5
  share_quant_resi: int = 4
  growth: str = "bicubic"
  rate_weight: tuple[float, ...] = ()
  beta: float = 0.25
  using_znorm: bool = False
  vq_loss_reduction: str = "mean"
  dtype: str = "float32"
  quantizer: str = "vq"
  levels: tuple[int, ...] = ()
  learned_gains: bool = False
  entropy_weight: float = 0.0
  entropy_gamma: float = 1.0
  entropy_temperature: float = 0.01
  entropy_group: int = 1
  kl_weight: float = 0.0
  decoder_norm: str = "group"
  scale_dropout: float = 0.0

  def __post_init__(self):
    for name in ("ch_mult", "rate_weight", "levels"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name in ("vocab_size", "code_dim", "ch", "patch_size"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} of a tokenizer is at least 1, got {getattr(self, name)}."
        )
    if not self.ch_mult or min(self.ch_mult) < 1:
      raise ValueError(
        f"ch_mult is a non-empty tuple of positive integers, got"
        f" {self.ch_mult}."
      )
    if self.share_quant_resi < 0:
      raise ValueError(
        f"share_quant_resi is 0 (one phi per scale) or the number of phi"
        f" convolutions, got {self.share_quant_resi}."
      )
    if self.quant_conv_ks < 1 or self.quant_conv_ks % 2 == 0:
      raise ValueError(
        f"quant_conv_ks is a positive odd number, got {self.quant_conv_ks}."
      )
    if self.vq_loss_reduction not in VQ_LOSS_REDUCTIONS:
      raise ValueError(
        f"vq_loss_reduction is one of {VQ_LOSS_REDUCTIONS}, got"
        f" {self.vq_loss_reduction!r}."
      )
    if not (self.linear_path or self.deep_encoder):
      raise ValueError(
        "deep_encoder = False needs linear_path = True: the tokenizer would"
        " have no encoder."
      )
    if self.growth not in GROWTHS:
      raise ValueError(
        f"growth is one of {', '.join(GROWTHS)}, got {self.growth!r}."
      )
    count = len(self.rate_weight)
    if count not in (0, self.schedule.num_scales) or any(
      weight < 0 for weight in self.rate_weight
    ):
      raise ValueError(
        f"rate_weight is empty or one number from 0 on for each of the"
        f" {self.schedule.num_scales} scales, got {self.rate_weight}."
      )
    if self.rate_weight and self.using_znorm:
      raise ValueError(
        "rate_weight is counted against squared distance; it does not go"
        " with using_znorm."
      )
    if self.dtype not in DTYPES:
      raise ValueError(f"dtype is one of {DTYPES}, got {self.dtype!r}.")
    if self.decoder_norm not in DECODER_NORMS:
      raise ValueError(
        f"decoder_norm is one of {', '.join(DECODER_NORMS)}, got"
        f" {self.decoder_norm!r}."
      )
    _check_quantizer(self)

  @property
  def binary(self) -> bool:
    """Whether tokens are bits, one a channel."""
    return self.quantizer in BINARY

  @property
  def counted_codes(self) -> int:
    """Length of a count of codes: V; of many bits, the codes of the first."""
    if self.binary:
      return min(self.vocab_size, MOST_COUNTED)
    return self.vocab_size

  @property
  def downsample(self) -> int:
    """Pixels per latent position and axis."""
    return self.patch_size * 2 ** (len(self.ch_mult) - 1)

  @property
  def image_size(self) -> tuple[int, int]:
    """(H, W) in pixels, the only size this tokenizer takes."""
    h, w = self.schedule.final_grid
    return h * self.downsample, w * self.downsample

  def with_aspect(self, aspect: str) -> VQVAEConfig:
    """The same tokenizer for pictures of another shape, see
    `ScaleSchedule.with_aspect`; its parameters do not know the shape."""
    schedule = self.schedule.with_aspect(aspect)
    return dataclasses.replace(self, schedule=schedule)

  def to_dict(self) -> dict[str, Any]:
    """JSON-able; the schedule is a list of [height, width] pairs."""
    # Not `asdict`: it would descend into the schedule.
    out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    out["schedule"] = [list(grid) for grid in self.schedule.grids]
    out["ch_mult"] = list(self.ch_mult)
    out["rate_weight"] = list(self.rate_weight)
    out["levels"] = list(self.levels)
    # Fields that came later are left out where they have their default, so that
    # older bundles and checkpoints are those of the same tokenizer.
    for name in _LATER:
      if getattr(self, name) == _DEFAULTS[name]:
        del out[name]
    return out

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> VQVAEConfig:
    """The inverse of `to_dict`.

    Raises:
      ValueError: a key is unknown or missing.
    """
    values = dict(values)
    known = {f.name for f in dataclasses.fields(cls)}
    needed = {
      f.name
      for f in dataclasses.fields(cls)
      if f.default is dataclasses.MISSING
    }
    unknown, missing = sorted(set(values) - known), sorted(needed - set(values))
    if unknown:
      raise ValueError(
        f"Unknown tokenizer setting(s) {', '.join(unknown)}; known are"
        f" {', '.join(sorted(known))}."
      )
    if missing:
      raise ValueError(f"Missing tokenizer setting(s): {', '.join(missing)}.")
    values["schedule"] = ScaleSchedule.parse(values["schedule"])
    return cls(**values)


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(VQVAEConfig)}
_LATER = tuple(_DEFAULTS)[tuple(_DEFAULTS).index("quantizer") :]
# Which quantizers a setting is for.
_ONLY_FOR = {
  "rate_weight": ("vq",),
  "using_znorm": ("vq",),
  "levels": ("fsq",),
  "learned_gains": ("fsq", *BINARY),
  "entropy_weight": BINARY,
  "kl_weight": ("none",),
  "scale_dropout": ("vq", "fsq", *BINARY),
}


def _check_quantizer(c: VQVAEConfig) -> None:
  """ValueError unless codes and settings are those of `c.quantizer`."""
  if c.quantizer not in QUANTIZERS:
    raise ValueError(
      f"quantizer is one of {', '.join(QUANTIZERS)}, got {c.quantizer!r}."
    )
  for name, quantizers in _ONLY_FOR.items():
    if getattr(c, name) and c.quantizer not in quantizers:
      raise ValueError(
        f"{name} is for quantizer {', '.join(quantizers)}, got"
        f" {getattr(c, name)} with quantizer {c.quantizer!r}."
      )
  if c.quantizer == "fsq":
    _check_levels(c)
  if c.binary:
    _check_bits(c)
  for name in ("entropy_weight", "entropy_gamma", "kl_weight"):
    if getattr(c, name) < 0:
      raise ValueError(f"{name} is 0 or more, got {getattr(c, name)}.")
  if not c.entropy_temperature > 0:
    raise ValueError(
      f"entropy_temperature is above 0, got {c.entropy_temperature}."
    )
  if not 0 <= c.scale_dropout < 1:
    raise ValueError(
      f"scale_dropout is a share in [0, 1), got {c.scale_dropout}."
    )


def _check_levels(c: VQVAEConfig) -> None:
  if not c.levels or min(c.levels) < 3:
    raise ValueError(
      f"levels of quantizer 'fsq' are integers from 3 on, got {c.levels}."
    )
  if len(c.levels) != c.code_dim:
    raise ValueError(
      f"levels has one entry for each channel of a code: code_dim is"
      f" {c.code_dim}, got {len(c.levels)} levels {c.levels}."
    )
  if math.prod(c.levels) != c.vocab_size:
    raise ValueError(
      f"levels {c.levels} make {math.prod(c.levels)} codes, vocab_size is"
      f" {c.vocab_size}."
    )


def _check_bits(c: VQVAEConfig) -> None:
  if c.code_dim > MOST_BITS:
    raise ValueError(
      f"A code of quantizer {c.quantizer!r} has at most {MOST_BITS} bits, got"
      f" code_dim = {c.code_dim}."
    )
  if c.vocab_size != 2**c.code_dim:
    raise ValueError(
      f"A code of quantizer {c.quantizer!r} has one bit a channel: with"
      f" code_dim = {c.code_dim} vocab_size is {2**c.code_dim}, got"
      f" {c.vocab_size}."
    )
  group = c.entropy_group
  if not 1 <= group <= MOST_GROUP or c.code_dim % group:
    raise ValueError(
      f"entropy_group is a divisor of code_dim = {c.code_dim} up to"
      f" {MOST_GROUP}, got {group}."
    )
