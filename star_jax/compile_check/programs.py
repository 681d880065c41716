"""The programs that are compiled: sampler, training step, one layer.

They are those that `api` and `train.loop` run, lowered from shapes alone: no
weight is drawn. L: tokens of all scales, T: text tokens, D: text width, C:
width, N: heads, d: head channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.attention import scale_causal_attention
from star_jax.model.blocks import Block, BlockContext, LayerInputs
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.rope import rope_tables
from star_jax.model.star import Star
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from star_jax.shapes import parameter_tree
from star_jax.text.states import TextStates
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.optimizer import build_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import split_average, train_step
from star_jax.train.transformer_task import TransformerTask

PyTree = Any
Sharding = jax.sharding.Sharding | None


@dataclasses.dataclass(frozen=True)
class Program:
  """What a chip is asked to compile.

  Attributes:
    lowered: before the chip's own compiler has seen it.
    resident: abstract arrays that lie on the chip while it runs, its arguments
      among them. A parameter that it does not read is no argument of it.
  """

  lowered: jax.stages.Lowered
  resident: PyTree

  @property
  def resident_bytes(self) -> int:
    return bytes_of(self.resident)


def bytes_of(tree: PyTree) -> int:
  """Of all arrays in a tree, abstract or not; a typed key is its data."""

  def data(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.eval_shape(jax.random.key_data, leaf)
    return leaf

  leaves = map(data, jax.tree.leaves(tree))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def sampler_program(
  star: StarConfig,
  tokenizer: VQVAEConfig,
  config: SamplerConfig,
  batch: int,
  *,
  text_tokens: int,
  refine: RefineConfig | None = None,
  storage: str = "float32",
  sharding: Sharding = None,
) -> Program:
  """Conditions to pictures, as `build_sampler` makes it.

  Args:
    star, tokenizer: of the model.
    config: of the sampler.
    batch: pictures at once.
    text_tokens: T; ignored by a model of classes.
    refine: of the head that `config.refine` asks.
    storage: dtype of the parameters on the chip, but for the quantizer, which
      stays float32.
    sharding: of all arrays.

  Raises:
    ValueError: see `build_sampler`.
  """
  modules = {"star": Star(star), "tokenizer": VQVAE(tokenizer)}
  head = None
  if config.refine is not None:
    head = modules["refine"] = RefineHead(star, refine)
  sampler = build_sampler(modules["star"], modules["tokenizer"], config, head)
  params = {
    name: _stored(parameter_tree(module), storage)
    for name, module in modules.items()
  }

  def given(rows: int):
    if star.num_classes:
      return _array((rows,), "int32")
    return TextStates(
      text_BTD=_array((rows, text_tokens, star.text_dim)),
      text_mask_BT=_array((rows, text_tokens), "bool"),
      pooled_BD=_array((rows, star.text_dim)),
    )

  scalar, whole = _array(()), _array((), "int32")
  arguments = _placed(
    (
      params,
      given(batch),
      given(1),
      jax.eval_shape(lambda: sample_keys(0, np.arange(batch))),
      Knobs(scalar, temperature=scalar, top_k=whole, top_p=scalar),
    ),
    sharding,
  )
  return Program(sampler.lower(*arguments), arguments)


def training_program(config, sharding: Sharding = None) -> Program:
  """One training step of stage 2, all scales, as `train.loop` runs it.

  Args:
    config: of a run of the stage "transformer" with data = "synthetic", whose
      batches have the shapes of a token cache.
    sharding: of all arrays.
  """
  task = TransformerTask(config)
  optimizer = build_optimizer(config.optimizer, config.num_steps)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(lambda k: create_state(task, optimizer, k), key)
  state, _ = split_average(state, optimizer)
  arguments = _placed(
    (state, task.frozen, next(task.train_batches()), key), sharding
  )
  lowered = train_step.lower(
    *arguments,
    loss_fn=task.loss_at(config.num_steps),
    optimizer=optimizer,
    accumulate=config.accumulate,
  )
  return Program(lowered, arguments)


def attention_program(
  config: StarConfig, batch: int, sharding: Sharding = None
) -> Program:
  """Forward and backward of one layer's self-attention over all L tokens.

  From q, k and v to their gradients, which are its arguments and outputs.
  """
  lengths = config.schedule.lengths

  def loss(q_BNLd, k_BNLd, v_BNLd):
    out_BNLd = scale_causal_attention(
      q_BNLd, k_BNLd, v_BNLd, lengths, query_block=config.query_block
    )
    return jnp.sum(jnp.square(out_BNLd.astype(jnp.float32)))

  shape = (batch, config.num_heads, sum(lengths), config.head_dim)
  arguments = _placed((_array(shape, config.dtype),) * 3, sharding)
  lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments)
  return Program(lowered, arguments)


def layer_program(
  config: StarConfig,
  batch: int,
  *,
  text_tokens: int,
  sharding: Sharding = None,
) -> Program:
  """Forward and backward of one whole layer over all L tokens, recomputed as
  with remat "layer": self-attention, cross-attention, MLP, and all their
  gradients.

  Raises:
    ValueError: a model whose layers are modulated by a condition.
  """
  if config.adaptive_norm != "none" or not config.cross_attention:
    raise ValueError(
      "One layer is compiled for models of texts with adaptive_norm 'none',"
      f" got {config.adaptive_norm!r}."
    )
  schedule, block = config.schedule, Block(config)
  tables = rope_tables(
    schedule,
    config.head_dim,
    config.rope_theta,
    config.rope_norm,
    config.rope_coords,
  )

  def run(params, x_BLC, k_BTC, v_BTC, mask_BT):
    context = BlockContext(
      cos_Lp=jnp.asarray(tables[0]),
      sin_Lp=jnp.asarray(tables[1]),
      mask_BT=mask_BT,
      cond_L6C=None,
      lengths=schedule.lengths,
      begin=None,
      deterministic=True,
    )
    layer = LayerInputs(
      jnp.int32(0), jnp.float32(0), k_BTC, v_BTC, modulation_B6C=None
    )
    (x_BLC, _), _ = block.apply(params, (x_BLC, None), layer, context)
    return x_BLC

  def loss(params, x_BLC, k_BTC, v_BTC, mask_BT):
    out_BLC = jax.checkpoint(run)(params, x_BLC, k_BTC, v_BTC, mask_BT)
    return jnp.sum(jnp.square(out_BLC.astype(jnp.float32)))

  text_BTC = _array((batch, text_tokens, config.width), config.dtype)
  inputs = (
    _array((batch, schedule.num_tokens, config.width), config.dtype),
    text_BTC,
    text_BTC,
    _array((batch, text_tokens), "bool"),
  )
  stacked = parameter_tree(Star(config))["blocks"]
  params = jax.tree.map(lambda x: _array(x.shape[1:], x.dtype), stacked)
  arguments = _placed(({"params": params}, *inputs), sharding)
  lowered = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arguments)
  return Program(lowered, arguments)


def _array(shape, dtype="float32") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _stored(params: PyTree, storage: str) -> PyTree:
  """The parameters as they lie on the chip."""

  def leaf(path, x):
    exact = any(key.key == "quantizer" for key in path)
    return _array(x.shape, x.dtype if exact else storage)

  return jax.tree_util.tree_map_with_path(leaf, params)


def _placed(tree: PyTree, sharding: Sharding) -> PyTree:
  """Shapes and dtypes alone, on the chip."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
