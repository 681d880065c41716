"""Stage 2: the transformer learns to predict the tokens of the next scale.

B: batch, L: tokens, Cv: code width, V: vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from PIL import Image

from star_jax.bundle import save_bundle
from star_jax.data.position import ALL_ROWS
from star_jax.model.attention_backends import check_here
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.sampling.sampler import check_pair
from star_jax.shapes import example_inputs
from star_jax.sharding import check_heads
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.train.kept_tokens import first_scales
from star_jax.train.losses import (
  head_losses,
  mean_loss,
  token_losses_by_parts,
)
from star_jax.train.progressive import build_stages
from star_jax.train.sample_sheet import (
  SampleSheet,
  condition_of_bundle,
  sampling_of_bundle,
)
from star_jax.train.state import TrainState
from star_jax.train.task import (
  BUNDLE,
  TRAINED_AGAINST,
  Batch,
  BatchIterator,
  LossFn,
)
from star_jax.train.token_data import (
  TokenData,
  check_bit_flip,
  drop_condition,
  given_of,
  load_condition,
  load_tokenizer,
)
from star_jax.train.token_drop import TokenDrop

PyTree = Any


class TransformerTask:
  """See `task.Task`."""

  maintain_every = 0

  def __init__(self, config):
    self.config = config
    self.star_config = dataclasses.replace(
      StarConfig.from_dict(config.model.to_dict()), attention=config.attention
    )
    self.width_ratio = self.star_config.width_ratio
    self.token_drop = TokenDrop(**config.token_drop)
    if self.token_drop.way and self.star_config.prediction == "token":
      raise ValueError(
        "config.token_drop leaves tokens of the last scales out, which a model"
        " that predicts token by token must read: set its way to ''."
      )
    self.star = Star(self.star_config)
    self.tokenizer = load_tokenizer(config, self.star_config)
    check_pair(self.star, self.tokenizer.vqvae)
    check_bit_flip(config, self.star_config, self.tokenizer.vqvae.config)
    self.data = TokenData(
      config,
      self.star_config,
      self.tokenizer,
      load_condition(config, self.star_config),
    )
    for shape in self.data.shapes.values():
      self.token_drop.lengths(shape.star_config.schedule)
    self.frozen = self.data.frozen()
    self._sheet = SampleSheet(config, self.data)
    self.stages = build_stages(
      **config.progressive,
      num_steps=config.num_steps,
      rate_warmup_steps=config.optimizer.warmup_steps,
      num_scales=self.star_config.schedule.num_scales,
    )
    self._stage_losses: dict[int, LossFn] = {}

  def identity(self) -> dict:
    return {
      "stage": "transformer",
      "model": self.star_config.to_dict(),
      **self.data.identity(),
    }

  def check_mesh(self, mesh: Mesh) -> str:
    check_heads(mesh, self.star_config.num_heads)
    return check_here(self.star_config, mesh.shape["sequence"])

  def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
    params = self.star.init({"params": key}, *example_inputs(self.star))
    return params["params"], {}

  def loss(self, params, extra, frozen, batch, key, step, stage=None):
    """See `task.Task.loss`; `stage` is static, None: all scales."""
    train = step is not None
    star_config, tokenizer = self.data.shape_of(batch)
    schedule = star_config.schedule
    if train and self.config.bit_flip:
      # A fourth stream beside those of the split below.
      flip_key = jax.random.fold_in(key, 3)
      idx_BL, x_BLCv = self.data.self_corrected(
        frozen, batch, flip_key, self.config.bit_flip
      )
    else:
      idx_BL = self.data.tokens(frozen, batch)
      x_BLCv = teacher_forcing_input(
        star_config, tokenizer.vqvae, frozen["tokenizer"], idx_BL
      )
    given = given_of(batch)
    drop_key, path_key, tail_key = jax.random.split(key, 3)
    kept, lengths, newest = None, schedule.lengths, 1.0
    if train:
      rate = self.config.cond_drop_rate
      given = drop_condition(given, frozen["null"], rate, drop_key)
      if self.token_drop.way:
        kept = self.token_drop.draw(schedule, idx_BL, tail_key)
        lengths = kept.lengths
        if stage is not None:
          kept = first_scales(kept, stage + 1)
        idx_BL = jnp.take_along_axis(idx_BL, kept.index_BL, axis=1)
      elif stage is not None:
        end = schedule.begin_ends[stage][1]
        idx_BL, x_BLCv = idx_BL[:, :end], x_BLCv[:, : end - 1]
      if stage is not None:
        newest = self.stages.newest_weight(stage, step)
    star, variables = Star(star_config), {"params": params}
    x_BLC, condition = star.apply(
      variables,
      x_BLCv,
      given,
      kept=kept,
      deterministic=not train,
      rngs={"drop_path": path_key},
      method="hidden",
    )
    losses = token_losses_by_parts(
      lambda x: star.apply(variables, x, condition, method="logits"),
      x_BLC,
      idx_BL,
      self.config.loss_tokens,
      head_losses(star_config),
    )
    loss, metrics = mean_loss(
      *losses,
      lengths,
      None if kept is None else kept.weight_BL,
      self.config.scale_weights if train else (),
      newest,
    )
    if star_config.head == "bits":
      # Trained on the mean over bits; the metrics are nats of a token.
      loss /= star_config.num_logits
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

  def train_batches(self, rows: slice = ALL_ROWS) -> BatchIterator:
    return self.data.train_batches(rows)

  def eval_batches(self) -> Iterable[Batch]:
    return self.data.eval_batches()

  def start(self, state: TrainState, batches: BatchIterator) -> TrainState:
    del batches
    return state

  def maintain(
    self, state: TrainState, batch: Batch, key: jax.Array
  ) -> TrainState:
    del batch, key
    return state

  def pictures(self, state: TrainState) -> dict[str, Image.Image]:
    return self._sheet.draw({"star": state.eval_params})

  def export(self, state: TrainState, workdir: Path) -> Path:
    save_bundle(
      workdir / BUNDLE,
      tokenizer_config=self.tokenizer.config,
      tokenizer_params=jax.device_get(self.tokenizer.params),
      star_config=self.star_config,
      star_params=jax.device_get(state.eval_params),
      **condition_of_bundle(self.data),
      sampling=sampling_of_bundle(self.config, self.data.classes),
      licence=self.config.licence,
      notes={
        "steps": int(state.step),
        "data": self.config.data,
        "tokenizer": self.tokenizer.hash,
        TRAINED_AGAINST: list(self.tokenizer.trained_against),
      },
    )
    return workdir / BUNDLE
