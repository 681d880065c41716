"""The frozen parts of stage 2: image tokenizer and text encoder.

Also what their outputs in a token cache depend on (`cache_identity`), so that
a cache of other parts is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from star_jax.bundle import load_bundle
from star_jax.classes import ClassLabels
from star_jax.data.position import ALL_ROWS, NumberedBatches
from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule
from star_jax.text.encoder import TextEncoder
from star_jax.text.settings import TextSettings
from star_jax.text.states import TextStates
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.batches import to_unit
from star_jax.train.task import TRAINED_AGAINST

SYNTHETIC = "synthetic"
# What stands for the text encoder of a token cache of classes.
CLASSES = "classes"
# Parameters that only turn f_hat into pixels.
DECODER = ("decoder/", "post_quant_conv/", "linear_path/out/")
HASH_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class FrozenTokenizer:
  """A trained tokenizer; `hash` names what its tokens depend on,
  `trained_against` the networks in its losses.

  Two tokenizers with one hash give a picture the same tokens, and tokens the
  same meaning for the transformer; their decoders may differ.
  """

  vqvae: VQVAE
  params: dict[str, Any]
  hash: str
  trained_against: tuple[str, ...] = ()

  @property
  def config(self) -> VQVAEConfig:
    return self.vqvae.config

  def with_aspect(self, aspect: str) -> FrozenTokenizer:
    """The same for pictures of another shape."""
    config = self.config.with_aspect(aspect)
    if config == self.config:
      return self
    hash_ = token_hash(config, self.params)
    return dataclasses.replace(self, vqvae=VQVAE(config), hash=hash_)

  def encoder(self) -> Callable[[np.ndarray], jax.Array]:
    """uint8 [B, H, W, 3] -> tokens int32 [B, L], jitted."""
    apply = jax.jit(
      lambda params, image: self.vqvae.apply(
        {"params": params}, to_unit(image), method="encode"
      )
    )
    return lambda image: apply(self.params, image)


def load_tokenizer(path: str) -> FrozenTokenizer:
  """From a bundle, or from the workdir of a finished stage 1 run.

  Raises:
    ValueError: no path given, or no tokenizer there.
  """
  if not path:
    raise ValueError(
      "Stage 2 needs a tokenizer: set config.tokenizer_path to the bundle"
      " directory that a stage 1 run has written."
    )
  bundle = load_bundle(path)
  config, params = bundle.tokenizer_config, bundle.params["tokenizer"]
  return FrozenTokenizer(
    VQVAE(config),
    params,
    token_hash(config, params),
    tuple(bundle.notes.get(TRAINED_AGAINST, ())),
  )


def token_hash(config: VQVAEConfig, params: dict[str, Any]) -> str:
  """Hex digits that change with everything but the decoder."""
  settings = config.to_dict()
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
  flat = traverse_util.flatten_dict(params, sep="/")
  for name in sorted(flat):
    if not name.startswith(DECODER):
      digest.update(name.encode())
      digest.update(np.asarray(flat[name], np.float32).tobytes())
  return digest.hexdigest()[:HASH_DIGITS]


def random_tokenizer(
  schedule: ScaleSchedule,
  vocab_size: int,
  code_dim: int,
  quantizer: str = "vq",
) -> FrozenTokenizer:
  """A small untrained one, so that a run needs no files."""
  config = VQVAEConfig(
    schedule=schedule,
    vocab_size=vocab_size,
    code_dim=code_dim,
    ch=32,
    ch_mult=(1,),
    num_res_blocks=1,
    attention=False,
    quantizer=quantizer,
  )
  vqvae = VQVAE(config)
  image = jnp.zeros((1, *config.image_size, 3))
  params = jax.jit(vqvae.init)(jax.random.key(0), image)["params"]
  return FrozenTokenizer(vqvae, params, SYNTHETIC)


class SyntheticText:
  """A text encoder made of noise: a prompt's states are drawn from its hash."""

  name = SYNTHETIC
  fingerprint = SYNTHETIC

  def __init__(self, width: int, max_tokens: int):
    self.width = width
    self.max_tokens = max_tokens

  def encode(self, prompts) -> TextStates:
    drawn = [self._draw(prompt) for prompt in prompts]
    mask_BT = np.stack([mask for _, mask in drawn])
    text_BTD = np.stack([text for text, _ in drawn])
    return TextStates(text_BTD, mask_BT, text_BTD.mean(axis=1))

  def _draw(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(list(prompt.encode()))
    shape = (self.max_tokens, self.width)
    mask_T = np.arange(self.max_tokens) < len(prompt.split()) + 2
    text_TD = rng.standard_normal(shape).astype(np.float32) * mask_T[:, None]
    return text_TD, mask_T

  def null(self) -> TextStates:
    return self.encode([""])

  def truncated(self, prompt: str) -> str | None:
    del prompt
    return None


class SyntheticTokens(NumberedBatches):
  """Endless random tokens and text states in the shape of a token cache.

  Args:
    config: of the run.
    model: what the batches are for.
    rows: of each batch, those that this process reads.
  """

  def __init__(self, config, model: StarConfig, rows: slice = ALL_ROWS):
    super().__init__(self._from)
    self._rows = rows
    self._model = model
    self._classes = model.num_classes
    if not self._classes:
      self._max_tokens = config.text.max_tokens
    self._batch_size = config.batch_size
    self._seed = config.seed
    self._num_tokens = model.schedule.num_tokens

  def _from(self, number: int) -> Iterator[dict[str, np.ndarray]]:
    for n in itertools.count(number):
      batch = self._draw(n)
      yield {name: values[self._rows] for name, values in batch.items()}

  def _draw(self, number: int) -> dict[str, np.ndarray]:
    """A batch of all processes."""
    rng = np.random.default_rng((self._seed, number))
    batch, vocab = self._batch_size, self._model.vocab_size
    shape = (batch, self._num_tokens)
    idx = rng.integers(vocab, size=shape, dtype=np.int32)
    if self._classes:
      label = rng.integers(self._classes, size=batch, dtype=np.int32)
      return {"idx": idx, "label": label}
    width = self._model.text_dim
    text_shape = (batch, self._max_tokens, width)
    return {
      "idx": idx,
      "text": rng.standard_normal(text_shape).astype(jnp.bfloat16),
      "text_mask": rng.random(text_shape[:2]) < 0.5,
      "pooled": rng.standard_normal((batch, width)).astype(jnp.bfloat16),
    }


def cache_identity(
  tokenizer: FrozenTokenizer, condition: TextEncoder | ClassLabels
) -> dict[str, Any]:
  """What a token cache and the training that reads it must agree on."""
  identity = {
    "tokenizer": tokenizer.hash,
    "schedule": [list(grid) for grid in tokenizer.config.schedule.grids],
    "vocab_size": tokenizer.config.vocab_size,
  }
  if isinstance(condition, ClassLabels):
    return identity | {"text_encoder": CLASSES}
  text = TextSettings.of(condition)
  return identity | {
    "text_encoder": text.name,
    "text_fingerprint": text.fingerprint,
    "max_tokens": text.max_tokens,
  }


def no_states(names: Sequence[str]) -> TextStates:
  """What a token cache of classes has for texts: states without width."""
  shape = (len(names), 1)
  return TextStates(
    np.zeros((*shape, 0)), np.ones(shape, bool), np.zeros((len(names), 0))
  )
