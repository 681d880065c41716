"""Products that put every head on its own at once, against flat ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import testing
from star_jax.model import blocks
from star_jax.model.rope import apply_rope, apply_rope_by_product
from star_jax.model.star import Star
from star_jax.shapes import example_inputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotation_as_a_product_is_the_rotation(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 5, 8)), dtype)
  angles = rng.uniform(-3, 3, (5, 4)).astype(np.float32)
  tables = np.cos(angles), np.sin(angles)
  found = apply_rope_by_product(x, *tables)
  expected = apply_rope(x, *tables)
  assert found.dtype == expected.dtype == x.dtype
  tolerance = 1e-6 if dtype == "float32" else 0.02
  np.testing.assert_allclose(
    *(np.asarray(y, np.float32) for y in (found, expected)), atol=tolerance
  )


@pytest.mark.long
def test_training_by_heads_is_training_by_flat_channels(monkeypatch):
  """Same parameters, same logits, same gradients, whatever is kept."""
  tokenizer = testing.tiny_tokenizer_config()
  config = testing.tiny_star_config(tokenizer)
  star = Star(config)
  params = testing.random_params(star)
  inputs = example_inputs(star)
  x_BLCv = np.random.default_rng(0).normal(size=inputs[0].shape)

  def value_and_grads(remat):
    model = Star(dataclasses.replace(config, remat=remat))

    def loss(params):
      given = jnp.asarray(x_BLCv, jnp.float32), *inputs[1:]
      logits_BLV = model.apply({"params": params}, *given)
      return jnp.square(logits_BLV).mean()

    return jax.jit(jax.value_and_grad(loss))(params)

  flat = value_and_grads("none")
  monkeypatch.setattr(
    blocks,
    "_is_direct",
    lambda config, context, cache: cache is None and context.begin is None,
  )
  for remat in ("none", "dots"):
    direct = value_and_grads(remat)
    for one, other in zip(
      jax.tree.leaves(direct), jax.tree.leaves(flat), strict=True
    ):
      np.testing.assert_allclose(
        one, other, atol=1e-5 * np.abs(other).max(), rtol=1e-5
      )
