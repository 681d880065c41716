"""Our side of the comparison.

B: batch, L: tokens of all scales, V: vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from configs import common
from star_jax import testing
from star_jax.convert.state_dict import jax_to_torch
from star_jax.convert.var import var_rules
from star_jax.convert.vqvae import vqvae_rules
from star_jax.metrics.versus.case import (
  CFG_SCALE,
  DECODE,
  SAMPLE,
  TOP_K,
  TOP_P,
  Case,
)
from star_jax.model.star import Star
from star_jax.sampling import logits as logit_ops
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  build_scale_decoder,
  sample_keys,
)
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.losses import next_scale_loss
from star_jax.train.optimizer import build_optimizer
from star_jax.train.state import Skipped, TrainState
from star_jax.train.step import train_step

WEIGHTS, INPUTS, CHECK = "weights.safetensors", "inputs.npz", "check.npz"


def weights_of(case: Case) -> dict[str, Any]:
  """{"star", "tokenizer"}, random and the same in every process."""
  star, vqvae = Star(case.star), VQVAE(case.tokenizer)
  return {
    "star": _spread(testing.random_params(star), case.star.width),
    "tokenizer": testing.random_params(vqvae),
  }


def _spread(params, width: int):
  """Embeddings of a size that leaves the residual stream one."""

  def scale(path, value):
    name = path[-1].key
    if name in ("kernel", "qkv"):
      fan_in = value.shape[-2] if name == "kernel" else width
      return (value * 0.5 / np.std(value) / np.sqrt(fan_in)).astype(np.float32)
    return value

  return jax.tree_util.tree_map_with_path(scale, params)


def inputs_of(case: Case) -> dict[str, np.ndarray]:
  """Classes, tokens and features, the same on both sides."""
  rng = np.random.default_rng(1)
  grid = case.tokenizer.schedule.final_grid
  tokens = (case.batch, case.star.schedule.num_tokens)
  f_hat = rng.standard_normal((case.batch, *grid, case.tokenizer.code_dim))
  return {
    "classes_B": rng.integers(0, case.star.num_classes, case.batch),
    "idx_BL": rng.integers(0, case.star.vocab_size, tokens),
    "f_hat_BhwCv": f_hat.astype(np.float32),
  }


def write_case(case: Case, folder: Path) -> None:
  """Weights with the authors' names, and inputs, for the other side."""
  params = weights_of(case)
  state = jax_to_torch(params["star"], var_rules(case.star))
  vae = jax_to_torch(params["tokenizer"], vqvae_rules(case.tokenizer))
  tensors = {f"var.{k}": v for k, v in state.items()}
  tensors |= {f"vae.{k}": v for k, v in vae.items()}
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
  safetensors.numpy.save_file(tensors, folder / WEIGHTS)
  np.savez(folder / INPUTS, **inputs_of(case))


class Ours:
  """One case, compiled; calling `run` does it once and waits.

  Attributes:
    params: {"star", "tokenizer"}.
    program, arguments: the jitted function that `run` calls, and what with; of
      training, the arguments of the first step.
  """

  def __init__(self, case: Case, folder: Path):
    self.case, self.folder = case, folder
    self.star, self.vqvae = Star(case.star), VQVAE(case.tokenizer)
    self.params = jax.device_put(weights_of(case))
    self.inputs = inputs_of(case)
    build = {SAMPLE: self._sampler, DECODE: self._decoder}
    self.run: Callable[[], Any] = build.get(case.what, self._training)()

  def _sampler(self, **config):
    sampler = build_sampler(self.star, self.vqvae, SamplerConfig(**config))
    args = (
      jnp.asarray(self.inputs["classes_B"], jnp.int32),
      jnp.full((1,), self.case.star.num_classes, jnp.int32),
      sample_keys(0, np.arange(self.case.batch)),
      Knobs(cfg_scale=CFG_SCALE, top_k=TOP_K, top_p=TOP_P),
    )
    return self._of(sampler, self.params, *args)

  def _decoder(self):
    decode = build_scale_decoder(self.vqvae)
    f_hats = jnp.asarray(self.inputs["f_hat_BhwCv"])[None]
    return self._of(lambda *args: decode(*args)[0], self.params, f_hats)

  def _of(self, program, *arguments):
    self.program, self.arguments = program, arguments
    return lambda: jax.block_until_ready(program(*arguments))

  def _training(self):
    optimizer = build_optimizer(common.optimizer(), num_steps=100_000)
    # A step gives its state away; the next one takes what it returned.
    params = jax.tree.map(jnp.copy, self.params["star"])
    self.state = TrainState(
      step=jnp.zeros((), jnp.int32),
      skipped=Skipped.none(),
      params=params,
      ema_params=None,
      opt_state=optimizer.tx.init(params),
      extra={},
    )
    batch = {
      "idx": jnp.asarray(self.inputs["idx_BL"], jnp.int32),
      "classes": jnp.asarray(self.inputs["classes_B"], jnp.int32),
    }
    frozen = {"params": self.params["tokenizer"]}
    key = jax.random.key(0)

    program = functools.partial(
      train_step, loss_fn=self._loss, optimizer=optimizer
    )
    self.program = program
    self.arguments = jax.eval_shape(lambda: (self.state, frozen, batch, key))

    def step():
      self.state, metrics = program(self.state, frozen, batch, key)
      return jax.block_until_ready(metrics["loss"])

    return step

  def _loss(self, params, extra, frozen, batch, key, step):
    del key, step
    x_BLCv = self.vqvae.apply(
      frozen, batch["idx"], method="teacher_forcing_input"
    )
    logits_BLV = self.star.apply({"params": params}, x_BLCv, batch["classes"])
    loss, metrics = next_scale_loss(
      logits_BLV, batch["idx"], self.case.star.schedule.lengths
    )
    return loss, (metrics, extra)

  def check(self) -> dict[str, Any]:
    """Writes what the other side compares itself with."""
    if self.case.what == DECODE:
      arrays = {"image_BHW3": np.asarray(self.run())}
    elif self.case.what == SAMPLE:
      out = self._sampler(return_logits=True)()
      arrays = {
        "idx_BL": np.asarray(out.idx_BL),
        "logits_BLV": np.asarray(out.logits_BLV),
        "noise_BLV": self._noise(),
        "image_BHW3": np.asarray(out.image_BHW3),
      }
    else:
      arrays = {"loss": np.asarray(self.run())}
    np.savez(self.folder / CHECK, **arrays)
    return {}

  def _noise(self) -> np.ndarray:
    """[B, L, V]: the Gumbel noise of the sampler's draws."""
    keys_B = sample_keys(0, np.arange(self.case.batch))
    out = []
    for k, length in enumerate(self.case.star.schedule.lengths):
      keys = jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(keys_B)
      shape = (length, self.case.star.vocab_size)
      out.append(np.asarray(logit_ops.gumbel_noise(keys, shape)))
    return np.concatenate(out, axis=1)
