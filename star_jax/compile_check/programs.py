"""The programs that are compiled: sampler, training step, one layer.

They are those that `api` and `train.loop` run, lowered from shapes alone: no
weight is drawn. L: tokens of all scales, T: text tokens, D: text width, C:
width, N: heads, d: head channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from star_jax import sharding
from star_jax.compilation import step_options
from star_jax.model.attention import scale_causal_attention
from star_jax.model.attention_backends import backend_of
from star_jax.model.blocks import Block, BlockContext, LayerInputs
from star_jax.model.cache import init_cache
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
from star_jax.train.flops import TracedProduct, traced_products
from star_jax.train.loop import build_task
from star_jax.train.optimizer import run_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import split_average, train_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Program:
  """What a chip is asked to compile.

  Attributes:
    lowered: before the chip's own compiler has seen it.
    resident: abstract arrays that lie on the devices while it runs, its
      arguments among them. A parameter that it does not read is no argument of
      it.
    products: of the traced program, over all devices.
    options: that it is compiled with where it is run, besides the target's.
  """

  lowered: jax.stages.Lowered
  resident: PyTree
  products: Sequence[TracedProduct] = ()
  options: Mapping[str, bool | int] = dataclasses.field(default_factory=dict)

  @property
  def resident_bytes(self) -> int:
    return bytes_of(self.resident)

  @property
  def flops(self) -> int:
    return sum(p.flops * p.times for p in self.products)


def bytes_of(tree: PyTree) -> int:
  """Of all arrays in a tree, abstract or not, on one device; a typed key is its
  data."""

  def size(leaf) -> int:
    placed = getattr(leaf, "sharding", None)
    shape = placed.shard_shape(leaf.shape) if placed else leaf.shape
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.eval_shape(
        jax.random.key_data, jax.ShapeDtypeStruct(shape, leaf.dtype)
      )
      shape = leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(map(size, jax.tree.leaves(tree)))


def cache_bytes(config: StarConfig, rows: int) -> int:
  """Keys and values that so many rows of the model's batch keep."""
  return bytes_of(jax.eval_shape(lambda: init_cache(config, rows)))


def sampler_program(
  star: StarConfig,
  tokenizer: VQVAEConfig,
  config: SamplerConfig,
  batch: int,
  *,
  text_tokens: int,
  refine: RefineConfig | None = None,
  storage: str = "float32",
  mesh: Mesh | None = None,
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
    mesh: of the devices; None: the one at hand.

  Raises:
    ValueError: see `build_sampler`.
  """
  modules = {"star": Star(star), "tokenizer": VQVAE(tokenizer)}
  head = None
  if config.refine is not None:
    head = modules["refine"] = RefineHead(star, refine)
  sampler = build_sampler(
    modules["star"], modules["tokenizer"], config, head, mesh
  )
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
  keys = jax.eval_shape(lambda: sample_keys(0, np.arange(batch)))
  knobs = Knobs(scalar, temperature=scalar, top_k=whole, top_p=scalar)
  arguments = (
    _by_rules(params, mesh),
    _cut(given(batch), mesh),
    _whole(given(1), mesh),
    _cut(keys, mesh),
    _whole(knobs, mesh),
  )
  return _program(sampler, *arguments)


def training_program(config, mesh: Mesh | None = None) -> Program:
  """One training step with all its parts, as `train.loop` runs it.

  Args:
    config: of a run with data = "synthetic", whose batches have the shapes of
      any other. Of a tokenizer the step is one with its discriminator, if it
      has one.
    mesh: of the devices; None: the one at hand.

  Raises:
    ValueError: the mesh does not divide the batch, the heads or an array.
  """
  task = build_task(config)
  if mesh is not None:
    sharding.check_batch(mesh, config.batch_size)
    if config.stage == "transformer":
      sharding.check_heads(mesh, task.star_config.num_heads)
  optimizer = run_optimizer(config, task.width_ratio)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(lambda k: create_state(task, optimizer, k), key)
  state, _ = split_average(state, optimizer)
  program = _program(
    train_step,
    _by_rules(state, mesh),
    _by_rules(task.frozen, mesh),
    _cut(next(task.train_batches()), mesh),
    _whole(key, mesh),
    loss_fn=task.loss_at(config.num_steps),
    optimizer=optimizer,
    mesh=mesh,
    accumulate=config.accumulate,
  )
  return dataclasses.replace(program, options=step_options(mesh))


def attention_program(
  config: StarConfig, batch: int, mesh: Mesh | None = None
) -> Program:
  """Forward and backward of one layer's self-attention over all L tokens.

  From q, k and v to their gradients, which are its arguments and outputs.
  """
  lengths = config.schedule.lengths

  def loss(q_BNLd, k_BNLd, v_BNLd):
    out_BNLd = scale_causal_attention(
      q_BNLd,
      k_BNLd,
      v_BNLd,
      lengths,
      query_block=config.query_block,
      backend=backend_of(config),
    )
    return jnp.sum(jnp.square(out_BNLd.astype(jnp.float32)))

  shape = (batch, config.num_heads, sum(lengths), config.head_dim)
  arguments = _whole((_array(shape, config.dtype),) * 3, mesh)
  return _program(jax.jit(jax.grad(loss, (0, 1, 2))), *arguments)


def layer_program(
  config: StarConfig,
  batch: int,
  *,
  text_tokens: int,
  mesh: Mesh | None = None,
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
  arguments = _whole(({"params": params}, *inputs), mesh)
  return _program(jax.jit(jax.grad(loss, (0, 1, 2, 3))), *arguments)


def _array(shape, dtype="float32") -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def _stored(params: PyTree, storage: str) -> PyTree:
  """The parameters as they lie on the chip."""

  def leaf(path, x):
    exact = any(key.key == "quantizer" for key in path)
    return _array(x.shape, x.dtype if exact else storage)

  return jax.tree_util.tree_map_with_path(leaf, params)


def _program(fn, *arguments, **static) -> Program:
  """Traced, counted and lowered."""
  traced = fn.trace(*arguments, **static)
  products = traced_products(traced.jaxpr.jaxpr)
  return Program(traced.lower(), arguments, products)


def _by_rules(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """Shapes and dtypes alone, where parameters lie."""
  return _placed(tree, mesh, lambda x: sharding.shardings_of(x, mesh))


def _cut(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """The same, along the batch."""
  return _placed(tree, mesh, lambda x: _all(x, sharding.batch_sharding(mesh)))


def _whole(tree: PyTree, mesh: Mesh | None) -> PyTree:
  """The same, all of it on every device."""
  return _placed(tree, mesh, lambda x: _all(x, sharding.replicated(mesh)))


def _all(tree: PyTree, placed: NamedSharding) -> PyTree:
  return jax.tree.map(lambda _: placed, tree)


def _placed(
  tree: PyTree, mesh: Mesh | None, place: Callable[[PyTree], PyTree]
) -> PyTree:
  def shape(x, placed: NamedSharding | None = None):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

  if mesh is None:
    return jax.tree.map(shape, tree)
  return jax.tree.map(shape, tree, place(tree))
