"""Stage 1: the image tokenizer learns to reconstruct pictures.

Loss = how far reconstructions are and whether a discriminator tells them apart
(tokenizer_objective.py) + codebook and commitment loss (VAR, arXiv 2404.02905,
equation 5). The codebook starts from features of real batches; codes that are
hardly used are replaced between steps.

B: batch, K: scales, V: codebook size, Cv: code width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from PIL import Image

from star_jax.bundle import save_bundle
from star_jax.data.position import ALL_ROWS
from star_jax.tokenizer import codebook as codebook_lib
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.linear_path import init_linear_path
from star_jax.tokenizer.vqvae import VQVAE, VQVAEOutput
from star_jax.train import batches as batches_lib
from star_jax.train.code_sheet import code_sheet
from star_jax.train.codebook_health import (
  CODEBOOK_PATH,
  USED_SHARE,
  due,
  revive,
  usage_metrics,
  with_rates,
)
from star_jax.train.global_arrays import fetch
from star_jax.train.optimizer import trained_parts
from star_jax.train.pictures import sheet
from star_jax.train.state import TrainState
from star_jax.train.task import (
  BUNDLE,
  TRAINED_AGAINST,
  Batch,
  BatchIterator,
  LossFn,
  MappedBatches,
)
from star_jax.train.tokenizer_objective import LECAM, Objective
from star_jax.train.tokenizer_start import trained_against

PyTree = Any
LAST_LAYER = "conv_out"


class TokenizerTask:
  """See `task.Task`."""

  width_ratio = 1.0

  def __init__(self, config):
    self.config = config
    self.vqvae_config = VQVAEConfig.from_dict(config.tokenizer.to_dict())
    self.vqvae = VQVAE(self.vqvae_config)
    batches_lib.check_size(config, self.vqvae_config)
    self.objective = Objective(config)
    self.frozen = self.objective.frozen
    self._judges = sorted(
      {*self.objective.judges, *trained_against(config.init_from)}
    )
    self._starts = trained_parts(config)
    self._check_parts()
    self.maintain_every = math.gcd(self._revive_every, self._rate_every)
    if not self._trains(CODEBOOK_PATH):
      # Tokens stay what they are.
      self.maintain_every = 0
    self._eval_batches: list[Batch] | None = None

  def _check_parts(self) -> None:
    """ValueError for losses that nothing which is trained would learn from."""
    weights, part = self.config.loss, self.config.train_only
    if part == "quantizer" and (weights.perceptual or weights.adversarial):
      raise ValueError(
        "config.train_only = 'quantizer' learns from config.loss.vq and entropy"
        " alone: set loss.perceptual and loss.adversarial to 0."
      )
    if part == "decoder" and weights.entropy:
      raise ValueError(
        "config.train_only = 'decoder' leaves the codebook alone: set"
        " loss.entropy to 0."
      )
    if weights.entropy and self.vqvae_config.quantizer != "vq":
      raise ValueError(
        "config.loss.entropy is of the learned codebook of quantizer 'vq', got"
        f" {self.vqvae_config.quantizer!r}: its own is"
        " config.tokenizer.entropy_weight."
      )

  def _trains(self, path: tuple[str, ...]) -> bool:
    starts = self._starts
    return not starts or "/".join(path).startswith(starts)

  def _trained(self, params: PyTree) -> PyTree:
    """Parameters, of which those that stay have no gradient."""
    if not self._starts:
      return params
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict(
      {
        path: x if self._trains(path) else jax.lax.stop_gradient(x)
        for path, x in flat.items()
      }
    )

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
    out = {"stage": "tokenizer", "tokenizer": self.vqvae_config.to_dict()}
    if self._starts:
      out["train_only"] = self.config.train_only
    if self._judges:
      out[TRAINED_AGAINST] = self._judges
    if self.objective.discriminator is not None:
      config = self.objective.discriminator.config
      out["discriminator"] = dataclasses.asdict(config)
    return out

  def check_mesh(self, mesh: Mesh) -> str:
    del mesh
    return ""

  def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
    image = jnp.zeros((1, *self.vqvae_config.image_size, 3))
    params = self.vqvae.init({"params": key}, image)["params"]
    extra = {"usage_KV": self._expected_usage(), **self.objective.init_extra()}
    return params, extra

  def init_adversary(self, key: jax.Array) -> PyTree:
    return self.objective.init_adversary(key)

  def _expected_usage(self) -> jax.Array:
    """Hits per batch [K, V] if every code were chosen equally often."""
    c = self.vqvae_config
    tokens_K = self.config.batch_size * np.asarray(c.schedule.lengths)
    shape = (c.schedule.num_scales, c.counted_codes)
    return jnp.broadcast_to(
      jnp.asarray(tokens_K / c.counted_codes, jnp.float32)[:, None], shape
    )

  def loss(self, params, extra, frozen, batch, key, step, adversary=None):
    """See `task.Task.loss`."""
    train = step is not None
    weights = self.config.loss
    params = self._trained(params)
    image_BHW3 = batches_lib.to_unit(batch["image"])
    if adversary is None:
      out = self._forward(params, image_BHW3, key, train)
      recon, metrics = self.objective.fidelity(
        frozen, out.recon_BHW3, image_BHW3
      )
      against = 0.0
    else:
      out, recon, against, metrics, averages = self._play(
        params, extra, frozen, image_BHW3, key, step, adversary
      )
      extra = {**extra, LECAM: averages}
    loss = recon + weights.vq * out.vq_loss
    metrics |= {"vq_loss": out.vq_loss}
    metrics |= {f"vq_{name}": term for name, term in out.terms.items()}
    if train and weights.entropy:
      entropy = self._entropy_loss(params, out.f_BhwCv)
      loss += weights.entropy * entropy
      metrics["entropy_loss"] = entropy
    metrics["loss"] = loss
    if train:
      # One batch says little about 1000 codes, so usage is a running mean and
      # is not reported for the few batches of an evaluation.
      decay = self.config.codebook.usage_decay
      # Of a part of the batch, if these are only a part: as of all of it.
      whole = self.config.batch_size / image_BHW3.shape[0]
      hits_KV = whole * jax.lax.stop_gradient(out.usage_KV)
      usage_KV = decay * extra["usage_KV"] + (1 - decay) * hits_KV
      metrics |= usage_metrics(usage_KV)
      extra = {**extra, "usage_KV": usage_KV}
    return loss + against, (metrics, extra)

  def _forward(self, params, image_BHW3, key, train: bool) -> VQVAEOutput:
    return self.vqvae.apply(
      {"params": params}, image_BHW3, train=train, rngs={"dropout": key}
    )

  def _play(self, params, extra, frozen, image_BHW3, key, step, adversary):
    """Both sides of the game: the forward pass, the loss of the tokenizer's
    picture, that of the discriminator, figures, its next averages."""
    decoder = params["decoder"]

    def picture(last):
      changed = {**decoder, LAST_LAYER: {**decoder[LAST_LAYER], "kernel": last}}
      changed = {**params, "decoder": changed}
      out = self._forward(changed, image_BHW3, key, train=True)
      return out.recon_BHW3, out

    recon_BHW3, to_last, out = jax.vjp(
      picture, decoder[LAST_LAYER]["kernel"], has_aux=True
    )
    # Another stream than dropout draws from.
    key = jax.random.fold_in(key, 1)
    recon, metrics = self.objective.generator(
      frozen, adversary, recon_BHW3, image_BHW3, to_last, key, step
    )
    against, more, averages = self.objective.adversary(
      frozen, adversary, extra[LECAM], recon_BHW3, image_BHW3, key
    )
    return out, recon, against, metrics | more, averages

  def _entropy_loss(self, params, f_BhwCv: jax.Array) -> jax.Array:
    z_BLCv = self.vqvae.apply({"params": params}, f_BhwCv, method="residuals")
    module, name = CODEBOOK_PATH
    return codebook_lib.entropy_loss(
      z_BLCv.reshape(-1, z_BLCv.shape[-1]),
      params[module][name],
      self.config.codebook.entropy_temperature,
      self.vqvae_config.using_znorm,
    )

  def _loss_alone(
    self, params, extra, frozen, batch, key, step, adversary=None
  ):
    """Before the discriminator comes in; it gets no gradient."""
    del adversary
    return self.loss(params, extra, frozen, batch, key, step)

  def loss_at(self, step: int) -> LossFn:
    if self.objective.discriminator is None or self.objective.plays(step):
      return self.loss
    return self._loss_alone

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
    if due(step, self._revive_every) and passed <= options.revive_until:
      state = revive(
        state,
        batch["image"],
        key,
        self._expected_usage(),
        vqvae=self.vqvae,
        threshold=options.revive_below,
      )
    if due(step, self._rate_every) and passed >= options.rate_from:
      rate_KV = codebook_lib.code_rates(
        state.extra["usage_KV"], self.vqvae_config.rate_weight
      )
      state = with_rates(state, rate_KV)
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
    return {
      "reconstructions": sheet(rows, zoom=2),
      "codes": code_sheet(
        fetch(state.extra["usage_KV"]), self.vqvae_config.schedule, USED_SHARE
      ),
    }

  def export(self, state: TrainState, workdir: Path) -> Path:
    save_bundle(
      workdir / BUNDLE,
      tokenizer_config=self.vqvae_config,
      tokenizer_params=jax.device_get(state.eval_params),
      licence=self.config.licence,
      notes={
        "steps": int(state.step),
        "data": self.config.data,
        TRAINED_AGAINST: self._judges,
      },
      storage="float32",
    )
    return workdir / BUNDLE


def _arrays(batch: Batch) -> Batch:
  return {"image": np.asarray(batch["image"])}


@functools.partial(jax.jit, static_argnames="vqvae")
def _reconstruct_scales(params, image_BHW3, *, vqvae: VQVAE):
  return vqvae.apply(
    {"params": params}, image_BHW3, method="reconstruct_scales"
  )
