"""Stage 2: the transformer learns to predict the tokens of the next scale.

It reads a token cache (`config.data = "cache"`), or raw pictures and captions
that the frozen tokenizer encodes inside the step (any source of the data
pipeline), or random tokens ("synthetic"). For a model of classes a caption is
the name of a class.

B: batch, L: tokens, T: text tokens, D: text width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from star_jax.bundle import example_inputs, save_bundle
from star_jax.classes import ClassLabels
from star_jax.data.token_cache import TokenCache, check_identity
from star_jax.model.condition import Given, batch_of
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.pictures import contact_sheet, to_pil
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  check_pair,
  sample_keys,
)
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.text.encoder import load_text_encoder
from star_jax.text.settings import TextSettings
from star_jax.text.states import TextStates
from star_jax.train import batches as batches_lib
from star_jax.train import frozen as frozen_lib
from star_jax.train.kept_tokens import draw_tokens, first_scales
from star_jax.train.losses import next_scale_loss
from star_jax.train.progressive import build_stages
from star_jax.train.state import TrainState
from star_jax.train.task import Batch, BatchIterator, LossFn, MappedBatches

PyTree = Any
CACHE = "cache"
BUNDLE = "bundle"


class TransformerTask:
  """See `task.Task`."""

  maintain_every = 0

  def __init__(self, config):
    self.config = config
    self.star_config = StarConfig.from_dict(config.model.to_dict())
    if config.tail_tokens and self.star_config.prediction == "token":
      raise ValueError(
        "config.tail_tokens leaves tokens of the last scales out, which a model"
        " that predicts token by token must read: set it to ()."
      )
    self.star = Star(self.star_config)
    self.tokenizer = load_tokenizer(config, self.star_config)
    check_pair(self.star, self.tokenizer.vqvae)
    self.condition = load_condition(config, self.star_config)
    null = jax.tree.map(np.asarray, self.condition.null())
    params = self.tokenizer.params
    if not self._cached:
      batches_lib.check_size(config, self.tokenizer.config)
    else:
      # The step then only looks codes up; the rest would be dead weight.
      params = {"quantizer": params["quantizer"]}
    self.frozen = jax.tree.map(jnp.asarray, {"tokenizer": params, "null": null})
    self.stages = build_stages(
      **config.progressive,
      num_steps=config.num_steps,
      rate_warmup_steps=config.optimizer.warmup_steps,
      num_scales=self.star_config.schedule.num_scales,
    )
    self._stage_losses: dict[int, LossFn] = {}
    self._samplers: dict[int, Any] = {}
    self._eval_batches: list[Batch] | None = None

  @property
  def _cached(self) -> bool:
    return self.config.data in (CACHE, frozen_lib.SYNTHETIC)

  def identity(self) -> dict:
    return {
      "stage": "transformer",
      "model": self.star_config.to_dict(),
      "tokenizer": self.tokenizer.hash,
      **self._condition_identity(),
    }

  @property
  def _classes(self) -> bool:
    return bool(self.star_config.num_classes)

  def _condition_identity(self) -> dict:
    if self._classes:
      return {"classes": self.condition.names}
    return {"text": TextSettings.of(self.condition).__dict__}

  def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
    params = self.star.init({"params": key}, *example_inputs(self.star))
    return params["params"], {}

  def loss(self, params, extra, frozen, batch, key, step, stage=None):
    """See `task.Task.loss`; `stage` is static, None: all scales."""
    train = step is not None
    schedule = self.star_config.schedule
    idx_BL = self._tokens(frozen, batch)
    x_BLCv = teacher_forcing_input(
      self.star_config, self.tokenizer.vqvae, frozen["tokenizer"], idx_BL
    )
    given = given_of(batch)
    drop_key, path_key, tail_key = jax.random.split(key, 3)
    kept, lengths, newest = None, schedule.lengths, 1.0
    if train:
      rate = self.config.cond_drop_rate
      given = drop_condition(given, frozen["null"], rate, drop_key)
      if self.config.tail_tokens:
        kept = draw_tokens(schedule, self.config.tail_tokens, idx_BL, tail_key)
        lengths = kept.lengths
        if stage is not None:
          kept = first_scales(kept, stage + 1)
        idx_BL = jnp.take_along_axis(idx_BL, kept.index_BL, axis=1)
      elif stage is not None:
        end = schedule.begin_ends[stage][1]
        idx_BL, x_BLCv = idx_BL[:, :end], x_BLCv[:, : end - 1]
      if stage is not None:
        newest = self.stages.newest_weight(stage, step)
    logits_BLV = self.star.apply(
      {"params": params},
      x_BLCv,
      given,
      kept=kept,
      deterministic=not train,
      rngs={"drop_path": path_key},
    )
    loss, metrics = next_scale_loss(
      logits_BLV,
      idx_BL,
      lengths,
      None if kept is None else kept.weight_BL,
      self.config.scale_weights if train else (),
      newest,
    )
    if stage is not None:
      metrics |= {"finest_scale": jnp.asarray(stage), "newest_weight": newest}
    return loss, (metrics, extra)

  def loss_at(self, step: int) -> LossFn:
    stage = self.stages.at(step)
    if stage == self.star_config.schedule.num_scales - 1:
      return self.loss
    if stage not in self._stage_losses:
      self._stage_losses[stage] = functools.partial(self.loss, stage=stage)
    return self._stage_losses[stage]

  def _tokens(self, frozen, batch) -> jax.Array:
    if "idx" in batch:
      return batch["idx"]
    image_BHW3 = batches_lib.to_unit(batch["image"])
    idx_BL = self.tokenizer.vqvae.apply(
      {"params": frozen["tokenizer"]}, image_BHW3, method="encode"
    )
    return jax.lax.stop_gradient(idx_BL)

  def train_batches(self) -> BatchIterator:
    config = self.config
    if config.data == frozen_lib.SYNTHETIC:
      return frozen_lib.SyntheticTokens(config, self.star_config.schedule)
    if config.data == CACHE:
      return self._cache("train").train_batches(
        config.batch_size,
        config.seed,
        process=jax.process_index(),
        processes=jax.process_count(),
      )
    return MappedBatches(batches_lib.train_batches(config), self._encode)

  def eval_batches(self) -> Iterable[Batch]:
    if self._eval_batches is None:
      self._eval_batches = list(self._read_eval_batches())
    return self._eval_batches

  def _read_eval_batches(self) -> Iterable[Batch]:
    config = self.config
    if config.data == frozen_lib.SYNTHETIC:
      source = frozen_lib.SyntheticTokens(config, self.star_config.schedule)
      source.set_state({"next": 2**32})
      return [next(source) for _ in range(config.eval_batches)]
    if config.data == CACHE:
      cache = self._cache("heldout")
      return cache.in_order(config.batch_size, config.eval_batches)
    return map(self._encode, batches_lib.eval_batches(config))

  def _cache(self, split: str) -> TokenCache:
    path = Path(self.config.cache.directory) / split
    window = 0 if self._classes else self.condition.max_tokens
    cache = TokenCache(path, window, verify=self.config.cache.verify)
    wanted = frozen_lib.cache_identity(self.tokenizer, self.condition)
    check_identity(path, cache.identity, wanted)
    if self._classes:
      cache.use_labels(self.condition.encode)
    return cache

  def _encode(self, batch: Batch) -> Batch:
    """Raw pictures with states of their captions, or with their classes."""
    image = np.asarray(batch["image"])
    given = self.condition.encode([str(c) for c in batch["caption"]])
    if self._classes:
      return {"image": image, "label": given}
    return {
      "image": image,
      "text": np.asarray(given.text_BTD, np.float16),
      "text_mask": np.asarray(given.text_mask_BT),
      "pooled": np.asarray(given.pooled_BD, np.float16),
    }

  def start(self, state: TrainState, batches: BatchIterator) -> TrainState:
    del batches
    return state

  def maintain(
    self, state: TrainState, batch: Batch, key: jax.Array
  ) -> TrainState:
    del batch, key
    return state

  def pictures(self, state: TrainState) -> dict[str, Image.Image]:
    """One picture for each prompt of `config.sampling.prompts`."""
    options = self.config.sampling
    prompts = list(options.prompts)
    if not prompts:
      return {}
    guided = options.cfg_scale > 0
    if guided not in self._samplers:
      self._samplers[guided] = build_sampler(
        self.star, self.tokenizer.vqvae, SamplerConfig(guided=guided)
      )
    out = self._samplers[guided](
      {"star": state.eval_params, "tokenizer": self.tokenizer.params},
      self.condition.encode(prompts),
      self.condition.null(),
      sample_keys(self.config.seed, jnp.arange(len(prompts))),
      Knobs(
        cfg_scale=options.cfg_scale,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
      ),
    )
    images = [to_pil(image) for image in np.asarray(out.image_BHW3)]
    return {"samples": contact_sheet(images, prompts, cell=128)}

  def export(self, state: TrainState, workdir: Path) -> Path:
    options = self.config.sampling
    save_bundle(
      workdir / BUNDLE,
      tokenizer_config=self.tokenizer.config,
      tokenizer_params=jax.device_get(self.tokenizer.params),
      star_config=self.star_config,
      star_params=jax.device_get(state.eval_params),
      text=None if self._classes else TextSettings.of(self.condition),
      class_names=self.condition.names if self._classes else None,
      sampling={
        "cfg_scale": options.cfg_scale,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "temperature": options.temperature,
        "gumbel_smooth": False,
        # As in VAR, and as in STAR.
        "smooth_filtered": self._classes,
      },
      licence=self.config.licence,
      notes={
        "steps": int(state.step),
        "data": self.config.data,
        "tokenizer": self.tokenizer.hash,
      },
    )
    return workdir / BUNDLE


def load_tokenizer(config, star_config: StarConfig):
  """The image tokenizer of a stage 2 config."""
  if config.data == frozen_lib.SYNTHETIC:
    return frozen_lib.random_tokenizer(
      star_config.schedule, star_config.vocab_size, star_config.code_dim
    )
  return frozen_lib.load_tokenizer(config.tokenizer_path)


def load_condition(config, star_config: StarConfig):
  """What encodes the captions of a stage 2 config: a text encoder or classes.

  Raises:
    ValueError: the encoder has another width than the model takes, or there
      are not as many names as classes.
  """
  if star_config.num_classes:
    return ClassLabels(star_config.num_classes, tuple(config.classes) or None)
  if config.data == frozen_lib.SYNTHETIC:
    return frozen_lib.SyntheticText(
      star_config.text_dim, config.text.max_tokens
    )
  text = load_text_encoder(
    config.text.name, config.text.max_tokens, config.text.path or None
  )
  if text.width != star_config.text_dim:
    raise ValueError(
      f"The text encoder {text.name} has the width {text.width},"
      f" config.model.text_dim is {star_config.text_dim}."
    )
  return text


def given_of(batch: Batch) -> Given:
  """What the model of a batch is conditioned on."""
  if "label" in batch:
    return batch["label"]
  return TextStates(
    text_BTD=batch["text"].astype(jnp.float32),
    text_mask_BT=batch["text_mask"],
    pooled_BD=batch["pooled"].astype(jnp.float32),
  )


def drop_condition(
  given: Given, null: Given, rate: float, key: jax.Array
) -> Given:
  """Replaces whole prompts or classes by the null one with probability
  `rate`."""
  batch = batch_of(given)
  drop_B = jax.random.bernoulli(key, rate, (batch,))

  def mix(kept, empty):
    drop = drop_B.reshape(batch, *[1] * (kept.ndim - 1))
    return jnp.where(drop, jnp.asarray(empty, kept.dtype), kept)

  return jax.tree.map(mix, given, null)
