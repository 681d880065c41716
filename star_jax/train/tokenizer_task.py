"""Stage 1: the image tokenizer learns to reconstruct pictures.

Loss = reconstruction (L1 and L2 by config) + codebook and commitment loss
(VAR, arXiv 2404.02905, equation 5 without its perceptual and adversarial
terms). The codebook starts from features of real batches; codes that are
hardly used are replaced between steps.

B: batch, K: scales, V: codebook size, Cv: code width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from star_jax.bundle import save_bundle
from star_jax.data.position import ALL_ROWS
from star_jax.tokenizer import codebook as codebook_lib
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.linear_path import init_linear_path
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train import batches as batches_lib
from star_jax.train.global_arrays import fetch
from star_jax.train.losses import reconstruction_loss
from star_jax.train.pictures import sheet
from star_jax.train.state import TrainState
from star_jax.train.task import (
  BUNDLE,
  Batch,
  BatchIterator,
  LossFn,
  MappedBatches,
)

PyTree = Any
# A code counts as used from this share of its uniform expectation on, as in
# VAR's usage figure.
USED_SHARE = 0.08
CODEBOOK_PATH = ("quantizer", "codebook_VCv")


class TokenizerTask:
  """See `task.Task`."""

  width_ratio = 1.0

  def __init__(self, config):
    self.config = config
    self.vqvae_config = VQVAEConfig.from_dict(config.tokenizer.to_dict())
    self.vqvae = VQVAE(self.vqvae_config)
    batches_lib.check_size(config, self.vqvae_config)
    self.frozen = {}
    self.maintain_every = math.gcd(self._revive_every, self._rate_every)
    self._eval_batches: list[Batch] | None = None

  @property
  def _revive_every(self) -> int:
    """Steps between two looks at dead codes; 0: never. Codes that follow from
    their number cannot die."""
    learned = self.vqvae_config.quantizer == "vq"
    return self.config.codebook.revive_every if learned else 0

  @property
  def _rate_every(self) -> int:
    """Steps between two looks at how common codes are; 0: never."""
    rated = bool(self.vqvae_config.rate_weight)
    return self.config.codebook.rate_every if rated else 0

  def identity(self) -> dict:
    return {"stage": "tokenizer", "tokenizer": self.vqvae_config.to_dict()}

  def check_mesh(self, mesh: Mesh) -> str:
    del mesh
    return ""

  def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
    image = jnp.zeros((1, *self.vqvae_config.image_size, 3))
    params = self.vqvae.init({"params": key}, image)["params"]
    return params, {"usage_KV": self._expected_usage()}

  def _expected_usage(self) -> jax.Array:
    """Hits per batch [K, V] if every code were chosen equally often."""
    c = self.vqvae_config
    tokens_K = self.config.batch_size * np.asarray(c.schedule.lengths)
    shape = (c.schedule.num_scales, c.counted_codes)
    return jnp.broadcast_to(
      jnp.asarray(tokens_K / c.counted_codes, jnp.float32)[:, None], shape
    )

  def loss(self, params, extra, frozen, batch, key, step):
    del frozen
    train = step is not None
    weights = self.config.loss
    image_BHW3 = batches_lib.to_unit(batch["image"])
    out = self.vqvae.apply(
      {"params": params}, image_BHW3, train=train, rngs={"dropout": key}
    )
    recon, metrics = reconstruction_loss(
      out.recon_BHW3, image_BHW3, l1=weights.l1, l2=weights.l2
    )
    loss = recon + weights.vq * out.vq_loss
    metrics |= {"loss": loss, "vq_loss": out.vq_loss}
    metrics |= {f"vq_{name}": term for name, term in out.terms.items()}
    if train:
      # One batch says little about 1000 codes, so usage is a running mean and
      # is not reported for the few batches of an evaluation.
      decay = self.config.codebook.usage_decay
      # Of a part of the batch, if these are only a part: as of all of it.
      whole = self.config.batch_size / image_BHW3.shape[0]
      hits_KV = whole * jax.lax.stop_gradient(out.usage_KV)
      usage_KV = decay * extra["usage_KV"] + (1 - decay) * hits_KV
      metrics |= usage_metrics(usage_KV)
      extra = {"usage_KV": usage_KV}
    return loss, (metrics, extra)

  def loss_at(self, step: int) -> LossFn:
    del step
    return self.loss

  def train_batches(self, rows: slice = ALL_ROWS) -> BatchIterator:
    return MappedBatches(
      batches_lib.train_batches(self.config, self.config.seed, rows), _arrays
    )

  def eval_batches(self) -> Iterable[Batch]:
    if self._eval_batches is None:
      c = self.config
      source = batches_lib.eval_batches(c, c.seed, c.eval_batches)
      self._eval_batches = [_arrays(batch) for batch in source]
    return self._eval_batches

  def start(self, state: TrainState, batches: BatchIterator) -> TrainState:
    """Linear path and codebook are made of the first batches."""
    options = self.config.codebook
    images = [
      fetch(next(batches)["image"]) for _ in range(options.init_batches)
    ]
    if not images:
      return state
    params = state.params
    if self.vqvae_config.linear_path:
      params = init_linear_path(
        params,
        batches_lib.to_unit(np.concatenate(images)),
        self.vqvae_config.downsample,
      )
    features = jax.jit(
      lambda params, image: self.vqvae.apply(
        {"params": params}, batches_lib.to_unit(image), method="features"
      )
    )
    params = codebook_lib.init_codes_from_features(
      params,
      jnp.concatenate([features(params, image) for image in images]),
      jax.random.key(self.config.seed),
      self.vqvae_config,
      options.init_iterations,
    )
    averaged = state.ema_params
    if averaged is not None:
      averaged = jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema_params=averaged)

  def maintain(
    self, state: TrainState, batch: Batch, key: jax.Array
  ) -> TrainState:
    """Replaces dead codes, until `revive_until` of the run has passed; brings
    the rates up to date from `rate_from` on."""
    options = self.config.codebook
    step, passed = int(state.step), int(state.step) / self.config.num_steps
    if _due(step, self._revive_every) and passed <= options.revive_until:
      state = revive(
        state,
        batch["image"],
        key,
        self._expected_usage(),
        vqvae=self.vqvae,
        threshold=options.revive_below,
      )
    if _due(step, self._rate_every) and passed >= options.rate_from:
      rate_KV = codebook_lib.code_rates(
        state.extra["usage_KV"], self.vqvae_config.rate_weight
      )
      state = _with_rates(state, rate_KV)
    return state

  def pictures(self, state: TrainState) -> dict[str, Image.Image]:
    """Top row: originals; then the picture after every scale."""
    batches = self.eval_batches()
    if not batches:
      return {}
    image = batches_lib.to_unit(batches[0]["image"][:12])
    scales_KBHW3 = _reconstruct_scales(
      state.eval_params, image, vqvae=self.vqvae
    )
    rows = [image, *fetch(scales_KBHW3)]
    return {"reconstructions": sheet(rows, zoom=2)}

  def export(self, state: TrainState, workdir: Path) -> Path:
    save_bundle(
      workdir / BUNDLE,
      tokenizer_config=self.vqvae_config,
      tokenizer_params=jax.device_get(state.eval_params),
      licence=self.config.licence,
      notes={"steps": int(state.step), "data": self.config.data},
      storage="float32",
    )
    return workdir / BUNDLE


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _with_rates(state: TrainState, rate_KV: jax.Array) -> TrainState:
  """The state with other rates, in parameters and average."""

  def replaced(tree):
    if tree is None:
      return None
    # A copy: parameters and average are donated as two buffers.
    return {
      **tree,
      "quantizer": {**tree["quantizer"], "rate_KV": jnp.copy(rate_KV)},
    }

  return state.replace(
    params=replaced(state.params), ema_params=replaced(state.ema_params)
  )


def _arrays(batch: Batch) -> Batch:
  return {"image": np.asarray(batch["image"])}


def usage_metrics(usage_KV: jax.Array) -> dict[str, jax.Array]:
  """Share of codes in use, over all scales and per scale, and perplexity.

  A code is used from 8% of its uniform expectation on; the perplexity is
  given as a share of V.
  """
  usage_V = jnp.sum(usage_KV, axis=0)
  p_V = usage_V / jnp.maximum(jnp.sum(usage_V), 1e-9)
  entropy = -jnp.sum(p_V * jnp.log(jnp.maximum(p_V, 1e-12)))

  def used(hits):
    floor = USED_SHARE * jnp.mean(hits, axis=-1, keepdims=True)
    return jnp.mean((hits >= floor) & (hits > 0), axis=-1)

  return {
    "codebook_used": used(usage_V),
    "codebook_used_k": used(usage_KV),
    "codebook_perplexity": jnp.exp(entropy) / usage_V.shape[0],
  }


@functools.partial(jax.jit, static_argnames="vqvae")
def _reconstruct_scales(params, image_BHW3, *, vqvae: VQVAE):
  return vqvae.apply(
    {"params": params}, image_BHW3, method="reconstruct_scales"
  )


@functools.partial(
  jax.jit, static_argnames=("vqvae", "threshold"), donate_argnames="state"
)
def revive(
  state: TrainState,
  image: jax.Array,
  key: jax.Array,
  expected_KV: jax.Array,
  *,
  vqvae: VQVAE,
  threshold: float,
) -> TrainState:
  """Gives codes with hardly any hits a vector of this batch.

  Args:
    state: donated.
    image: uint8 [B, H, W, 3], the source of new vectors.
    key: the run's training key.
    expected_KV: hits of a uniformly used codebook.
    vqvae: the tokenizer.
    threshold: codes below this share of the expectation are replaced.

  Returns:
    The state with the codes replaced in parameters and average, their moments
    cleared and their usage back at the expectation.
  """
  variables = {"params": state.params}
  f_BhwCv = vqvae.apply(
    variables, batches_lib.to_unit(image), method="features"
  )
  residuals = vqvae.apply(variables, f_BhwCv, method="residuals")
  usage_V = state.extra["usage_KV"].sum(axis=0)
  share_V = usage_V / expected_KV.sum(axis=0)
  # Another stream than the step of the same number draws from.
  draw_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 1)
  module, name = CODEBOOK_PATH
  codes_VCv, dead_V = codebook_lib.revive_codes(
    state.params[module][name],
    share_V,
    residuals.reshape(-1, residuals.shape[-1]),
    draw_key,
    threshold,
  )

  def replaced(tree):
    if tree is None:
      return None
    old = tree[module][name]
    new = jnp.where(dead_V[:, None], codes_VCv, old)
    return {**tree, module: {**tree[module], name: new}}

  def cleared(path, leaf):
    names = tuple(getattr(part, "key", None) for part in path)
    if names[-2:] != CODEBOOK_PATH:
      return leaf
    return jnp.where(dead_V[:, None], 0.0, leaf)

  usage_KV = jnp.where(dead_V, expected_KV, state.extra["usage_KV"])
  return state.replace(
    params=replaced(state.params),
    ema_params=replaced(state.ema_params),
    opt_state=jax.tree_util.tree_map_with_path(cleared, state.opt_state),
    extra={"usage_KV": usage_KV},
  )
