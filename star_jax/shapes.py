"""Shapes of the parameters of every module, without allocating any."""

from __future__ import annotations

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from star_jax.model.refine import RefineHead
from star_jax.model.star import Star
from star_jax.text.states import TextStates
from star_jax.tokenizer.vqvae import VQVAE

Module = VQVAE | Star | RefineHead


def parameter_tree(module: Module) -> dict[str, Any]:
  """The parameters as `ShapeDtypeStruct`s."""
  inputs = example_inputs(module)
  key = jax.random.key(0)
  return jax.eval_shape(lambda key: module.init(key, *inputs), key)["params"]


def expected_shapes(module: Module) -> dict[str, tuple[int, ...]]:
  """'/'-joined path -> shape of every parameter of the module."""
  flat = flax.traverse_util.flatten_dict(parameter_tree(module), sep="/")
  return {key: tuple(x.shape) for key, x in flat.items()}


def example_inputs(module: Module) -> tuple[Any, ...]:
  """Zeros for a batch of one, as `module.init` takes them after the key."""
  config = module.config
  if isinstance(module, VQVAE):
    return (jnp.zeros((1, *config.image_size, 3)),)
  if isinstance(module, RefineHead):
    last = config.schedule.num_scales - 1
    tokens = config.schedule.lengths[last]
    return (
      jnp.zeros((1, tokens, config.code_dim)),
      jnp.zeros((1, tokens, config.width)),
      jnp.zeros((1, config.text_dim)),
      (last,),
    )
  x_BLCv = jnp.zeros((1, config.schedule.num_tokens - 1, config.code_dim))
  if config.num_classes:
    return x_BLCv, jnp.zeros((1,), jnp.int32)
  text = TextStates(
    text_BTD=jnp.zeros((1, 1, config.text_dim)),
    text_mask_BT=jnp.ones((1, 1), bool),
    pooled_BD=jnp.zeros((1, config.text_dim)),
  )
  return x_BLCv, text


def check_shapes(name, shapes, expected: dict[str, tuple[int, ...]]) -> None:
  """ValueError naming the first parameter that is missing or does not fit."""
  for key, shape in expected.items():
    if key not in shapes:
      raise ValueError(f"The {name} parameters lack {key}.")
    if tuple(shapes[key]) != shape:
      raise ValueError(
        f"Parameter {key} of the {name} has the shape {tuple(shapes[key])}, its"
        f" settings ask for {shape}."
      )
  for key in shapes:
    if key not in expected:
      raise ValueError(f"The {name} has no parameter {key}.")
