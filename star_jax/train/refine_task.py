"""Stage 3: the refinement head learns to complete a scale (STAR, arXiv
2406.10797, section 3.4).

Tokenizer and transformer are those of a bundle and stay as they are. Every
sample shows the head a random share of the tokens of the refined scales.

B: batch, L: tokens, C: width, Cv: code width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from star_jax.bundle import load_bundle, save_bundle
from star_jax.data.position import ALL_ROWS
from star_jax.model.attention_backends import check_here
from star_jax.model.refine import (
  RefineConfig,
  RefineHead,
  draw_visible,
  refine_loss,
)
from star_jax.model.star import Star
from star_jax.sampling.rounds import RefineSampling, check_refine
from star_jax.sampling.sampler import check_pair
from star_jax.shapes import example_inputs
from star_jax.sharding import check_heads
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.text.settings import TextSettings
from star_jax.train import frozen as frozen_lib
from star_jax.train.sample_sheet import SampleSheet
from star_jax.train.state import TrainState
from star_jax.train.task import BUNDLE, Batch, BatchIterator, LossFn
from star_jax.train.token_data import (
  TokenData,
  drop_condition,
  given_of,
  load_condition,
  load_tokenizer,
)

PyTree = Any


class RefineTask:
  """See `task.Task`."""

  maintain_every = 0
  width_ratio = 1.0

  def __init__(self, config):
    self.config = config
    self.bundle = load_bundle(config.bundle or None)
    if self.bundle.star_config is None:
      raise ValueError(
        f"The bundle {self.bundle.path} holds a tokenizer alone; a refinement"
        " head needs the transformer that it refines."
      )
    self.star_config = dataclasses.replace(
      self.bundle.star_config, attention=config.attention
    )
    refine = RefineConfig(**config.refine)
    refine.check(self.star_config)
    rounds = RefineSampling(**config.rounds)
    self.star = Star(self.star_config)
    self.head = RefineHead(self.star_config, refine)
    check_refine(self.star_config, rounds, self.head)
    tokenizer = load_tokenizer(config, self.star_config)
    self._check_codes(tokenizer)
    text = load_condition(config, self.star_config)
    if config.data != frozen_lib.SYNTHETIC:
      self._check_text(TextSettings.of(text))
    self.data = TokenData(config, self.star_config, tokenizer, text)
    star = jax.tree.map(jnp.asarray, self.bundle.params["star"])
    self.frozen = {**self.data.frozen(), "star": star}
    self._sheet = SampleSheet(config, self.data, refine, rounds)

  def _check_codes(self, tokenizer: frozen_lib.FrozenTokenizer) -> None:
    """ValueError unless its tokens are those of the bundle."""
    if self.config.data == frozen_lib.SYNTHETIC:
      return
    check_pair(self.star, tokenizer.vqvae)
    ours, theirs = (
      # FSQ, LFQ and BSQ have no codebook that could differ.
      params["quantizer"].get("codebook_VCv", 0)
      for params in (tokenizer.params, self.bundle.params["tokenizer"])
    )
    if not np.array_equal(ours, theirs):
      raise ValueError(
        f"The codebook in {self.config.tokenizer_path} is not that of the"
        f" bundle {self.bundle.path}; config.tokenizer_path is the tokenizer"
        " that its transformer was trained with."
      )

  def _check_text(self, text: TextSettings) -> None:
    """ValueError unless the head will read what the transformer reads."""
    if text != self.bundle.text:
      raise ValueError(
        f"The transformer of {self.bundle.path} was trained with"
        f" {self.bundle.text}, config.text is {text}."
      )

  @property
  def scales(self) -> tuple[int, ...]:
    """The refined ones."""
    first = self.head.refine.first_scale
    return tuple(range(first, self.star_config.schedule.num_scales))

  def identity(self) -> dict:
    return {
      "stage": "refine",
      "bundle": self.bundle.hash,
      "refine": dict(self.config.refine),
      **self.data.identity(),
    }

  def check_mesh(self, mesh: Mesh) -> str:
    check_heads(mesh, self.star_config.num_heads)
    return check_here(self.star_config, mesh.shape["sequence"])

  def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
    inputs = example_inputs(self.head)
    return self.head.init({"params": key}, *inputs)["params"], {}

  def loss(self, params, extra, frozen, batch, key, step):
    """See `task.Task.loss`."""
    star_config, tokenizer = self.data.shape_of(batch)
    schedule, vqvae = star_config.schedule, tokenizer.vqvae
    idx_BL = self.data.tokens(frozen, batch)
    x_BLCv = teacher_forcing_input(
      star_config, vqvae, frozen["tokenizer"], idx_BL
    )
    given = given_of(batch)
    drop_key, visible_key = jax.random.split(key)
    if step is not None:
      rate = self.config.cond_drop_rate
      given = drop_condition(given, frozen["null"], rate, drop_key)
    _, features_BLC = Star(star_config).apply(
      {"params": frozen["star"]}, x_BLCv, given, return_features=True
    )
    begin = schedule.begin_ends[self.head.refine.first_scale][0]
    idx_BL, features_BLC = idx_BL[:, begin:], features_BLC[:, begin:]
    visible_BL = draw_visible(visible_key, *idx_BL.shape)
    codes_BLCv = vqvae.apply(
      {"params": frozen["tokenizer"]}, idx_BL, method="codes"
    )
    head = RefineHead(star_config, self.head.refine)
    logits_BLV = head.apply(
      {"params": params},
      jnp.where(visible_BL[..., None], codes_BLCv, 0.0),
      jax.lax.stop_gradient(features_BLC),
      given.pooled_BD,
      self.scales,
    )
    loss, metrics = refine_loss(
      logits_BLV, idx_BL, visible_BL, schedule.num_tokens
    )
    return loss, (metrics, extra)

  def loss_at(self, step: int) -> LossFn:
    del step
    return self.loss

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
    return self._sheet.draw(
      {"star": self.frozen["star"], "refine": state.eval_params}
    )

  def export(self, state: TrainState, workdir: Path) -> Path:
    """The bundle that the run started from, with the head."""
    save_bundle(
      workdir / BUNDLE,
      tokenizer_config=self.bundle.tokenizer_config,
      tokenizer_params=self.bundle.params["tokenizer"],
      star_config=self.star_config,
      star_params=self.bundle.params["star"],
      refine_config=self.head.refine,
      refine_params=jax.device_get(state.eval_params),
      text=self.bundle.text,
      sampling={**self.bundle.sampling, "refine": "head"},
      licence=self.bundle.licence,
      notes={
        **self.bundle.notes,
        "refine_steps": int(state.step),
        "refined": self.bundle.hash,
      },
    )
    return workdir / BUNDLE
