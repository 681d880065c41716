"""FLOPs by formula: 6 N D and attention of a training step, 2 N D of a sampler.

N: weights, D: how often each is used, L: tokens of a picture, l: of a scale,
T: text tokens, C: width, B: pictures, R: rows of the model's batch (2B with
guidance).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from star_jax.compile_check.parts import BACKBONE, DECODER, REFINEMENT
from star_jax.model.attention_backends import CUDNN, SPLASH, XLA, backend_of
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.sampling.rounds import RANDOM_ROUNDS
from star_jax.sampling.sampler import SamplerConfig
from star_jax.shapes import expected_shapes
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

# Which weights are matrices that something is multiplied by, and how often for
# a picture; first match wins.
_TOKENS, _TEXT, _SCALES, _ONCE = "tokens", "text", "scales", "once"
_USES = (
  (r"^blocks/(attn/qkv|.*kernel)$", _TOKENS),
  (r"^(head|word_embed)/kernel$", _TOKENS),
  (r"^cross/kv$", _TEXT),
  (r"^lvl_embed_(proj|adaln)/kernel$", _SCALES),
  (r"kernel$", _ONCE),
)


@dataclasses.dataclass(frozen=True)
class Analytic:
  """FLOPs of one run over a batch.

  Attributes:
    model: of the mathematics alone, what MFU is measured by.
    executed: with what remat computes again.
    parts: of a sampler, see `parts.PARTS`.
  """

  model: float
  executed: float
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def training_flops(
  config: StarConfig,
  batch: int,
  *,
  text_tokens: int = 0,
  lengths: Sequence[int] | None = None,
) -> Analytic:
  """What a training step costs.

  A weight that meets D rows costs 2 D forward, 2 D for the gradient of the rows
  and 2 D for its own: 6 N D. Attention multiplies q by k and the probabilities
  by v, 2 C FLOPs each for every pair of a query and a key that it sees; forward
  and the two gradients of each make 12 C a pair and layer. Pairs are
  sum_k l_k (l_1 + ... + l_k) in self-attention and L T in cross-attention.

  With remat "layer" every layer runs forward once more, 8 N D, but for the last
  product of the MLP, whose result no gradient asks for unless it is modulated;
  and self-attention a third time, since its blocks keep no probabilities: 20 C
  a pair, and 16 C in cross-attention. "attention" keeps what goes into
  self-attention and comes out, which is 16 C a pair there too. "dots" keeps the
  products with weights, 6 N D; without remat it is 16 C a pair in
  self-attention alone. The frozen quantizer, which makes the input, is not
  counted (some GFLOP). Kernels differ in self-attention, see `_own_products`.

  Args:
    config: of the model.
    batch: pictures.
    text_tokens: T; ignored by a model of classes.
    lengths: tokens of every scale that a step looks at; None: all.
  """
  lengths = tuple(lengths or config.schedule.lengths)
  uses = {
    _TOKENS: sum(lengths),
    _TEXT: text_tokens,
    _SCALES: len(lengths),
    _ONCE: 1,
  }
  layers = others = last = 0
  for path, shape in expected_shapes(Star(config)).items():
    found = next((use for key, use in _USES if re.search(key, path)), None)
    weights = math.prod(shape) * uses[found] if found else 0
    if path.startswith("blocks/"):
      layers += weights
      if path.endswith("fc2/kernel") and config.adaptive_norm == "none":
        last = weights
    else:
      others += weights
  own = int(np.dot(lengths, np.cumsum(lengths)))
  cross = sum(lengths) * text_tokens if config.cross_attention else 0
  scale = batch * config.depth * config.width
  again = 2 * scale * (_own_products(config, lengths) - 6 * own)
  if config.remat != "none":
    again += 4 * scale * cross
  if config.remat in ("layer", "attention"):
    again += 2 * batch * (layers - last)
  model = 6 * batch * (layers + others) + 12 * scale * (own + cross)
  return Analytic(model, model + again)


def _own_products(config: StarConfig, lengths: tuple[int, ...]) -> int:
  """Products over the channels that self-attention of a picture executes.

  Plain products keep the probabilities of short sequences and compute those of
  long ones again; kernels always do. Splash computes whole blocks, and the
  logits and their gradients twice: once for queries, once for keys.
  """
  pairs = int(np.dot(lengths, np.cumsum(lengths)))
  backend = backend_of(config)
  # Tokens that stand for several are none of cuDNN's.
  if backend == CUDNN and lengths != config.schedule.lengths:
    backend = XLA
  backward = {XLA: 4, CUDNN: 5, SPLASH: 7}[backend]
  # Blocks of short sequences keep their probabilities, if remat lets them.
  long = sum(lengths) > config.query_block
  if backend == XLA and (long or config.remat in ("attention", "dots")):
    backward += 2
  if backend == SPLASH:
    # Imported here: Pallas takes a second.
    from star_jax.model.splash import scale_causal_mask

    pairs = scale_causal_mask(lengths).blocks.pairs
  # cuDNN's kernel keeps more than goes in and comes out, so it runs again.
  kept = ("none",) if backend == CUDNN else ("none", "attention", "dots")
  once = config.remat in kept
  forward = 2 if once else 4
  return (forward + backward) * pairs


def layer_bytes(config: StarConfig, itemsize: int) -> int:
  """Weights of one layer."""
  return itemsize * sum(
    math.prod(shape[1:])
    for path, shape in expected_shapes(Star(config)).items()
    if path.startswith("blocks/")
  )


def sampling_flops(
  star: StarConfig,
  tokenizer: VQVAEConfig,
  config: SamplerConfig,
  batch: int,
  *,
  text_tokens: int = 0,
  refine: RefineConfig | None = None,
) -> Analytic:
  """What sampling costs: every weight once for each row that it meets.

  A weight costs 2 FLOPs a row, a pair of a query and a key 4 C in every layer.
  Conditions are computed for B prompts and one empty one. Of the tokenizer the
  decoder counts; what makes the next scale's input is some GFLOP. Nothing that
  `config.accelerate` leaves out is left out here.

  Args:
    star, tokenizer, config: as of `build_sampler`.
    batch: B.
    text_tokens: T; ignored by a model of classes.
    refine: of the head that `config.refine` asks.
  """
  rows = batch * (1 + config.guided)
  parts = {BACKBONE: _backbone_flops(star, rows, batch, text_tokens)}
  if config.refine is not None:
    parts[REFINEMENT] = sum(
      rows * _head_calls(config, k) * _head_flops(star, refine, k)
      + _surroundings_flops(star, rows, k)
      for k in range(refine.first_scale, star.schedule.num_scales)
    )
  if config.return_image:
    parts[DECODER] = batch * _decoder_flops(tokenizer)
  total = sum(parts.values())
  return Analytic(total, total, parts)


def _backbone_flops(
  config: StarConfig, rows: int, batch: int, text_tokens: int
) -> float:
  """All scales through the transformer, with a cache."""
  lengths = config.schedule.lengths
  conditions = batch + (rows > batch)
  uses = {
    _TOKENS: rows * sum(lengths),
    _TEXT: conditions * text_tokens,
    _SCALES: len(lengths),
    _ONCE: conditions,
  }
  flops = 2 * sum(
    math.prod(shape) * uses[found]
    for path, shape in expected_shapes(Star(config)).items()
    if (found := next((u for key, u in _USES if re.search(key, path)), None))
  )
  pairs = int(np.dot(lengths, np.cumsum(lengths)))
  if config.cross_attention:
    pairs += sum(lengths) * text_tokens
  return flops + 4 * rows * config.depth * config.width * pairs


def _head_calls(config: SamplerConfig, k: int) -> int:
  """How often the refinement head is asked for scale k."""
  rounds = config.refine.rounds_of(k)
  early = min(RANDOM_ROUNDS, rounds) if config.refine.asks_transformer(k) else 0
  return rounds - early


def _head_flops(star: StarConfig, refine: RefineConfig, k: int) -> float:
  """One call for one row: the l tokens of a scale behind one of the text."""
  tokens = star.schedule.lengths[k]
  flops = 2 * tokens * star.code_dim * star.width
  for path, shape in expected_shapes(RefineHead(star, refine)).items():
    if re.search(r"^blocks/.*(kernel|attn/qkv)$", path):
      flops += 2 * math.prod(shape) * (tokens + 1)
    elif path == "head/kernel":
      flops += 2 * math.prod(shape) * tokens
  # The text sees all, each other token the text and its own scale.
  return flops + 4 * refine.depth * star.width * (tokens + 1) ** 2


def _surroundings_flops(star: StarConfig, rows: int, k: int) -> float:
  """What the calls for a scale share: features and text of every row, levels
  and the embedding of codes once."""
  square = star.width**2
  of_rows = (star.schedule.lengths[k] + 1) * square + star.text_dim * star.width
  of_all = (star.schedule.num_scales + star.code_dim) * square
  return 2 * (rows * of_rows + of_all)


def _decoder_flops(config: VQVAEConfig) -> float:
  """One picture: each convolution at its resolution, and attention."""
  height, width = (side // config.patch_size for side in config.image_size)
  last, flops = len(config.ch_mult) - 1, 0.0
  for path, shape in expected_shapes(VQVAE(config)).items():
    if not re.match(r"(decoder|post_quant_conv)/(.*/)?kernel$", path):
      continue
    level = re.search(r"/up_(\d+)_(upsample)?", path)
    at = last
    if level:
      # The doubled map is convolved.
      at = int(level.group(1)) - bool(level.group(2))
    elif path.startswith("decoder/conv_out"):
      at = 0
    places = (height >> at) * (width >> at)
    flops += 2 * math.prod(shape) * places
    if path.endswith("qkv/kernel"):
      flops += 4 * shape[0] * places**2
  return flops
