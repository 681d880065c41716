"""Layers of encoder and decoder against formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.tokenizer import blocks

DTYPE = "float32"


def _random(*shape):
  return jax.random.normal(jax.random.key(sum(shape)), shape)


@pytest.mark.parametrize(("width", "groups"), [(64, 32), (24, 8), (6, 2)])
def test_group_norm(width, groups):
  x = 3 * _random(2, 4, 5, width) + 7
  norm = blocks.GroupNorm(DTYPE)
  params = {"scale": _random(width), "bias": _random(width)}
  got = norm.apply({"params": params}, x)
  reference = nn.GroupNorm(groups, epsilon=1e-6)
  want = reference.apply({"params": params}, x)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_group_norm_of_a_large_mean_does_not_cancel():
  x = 1e-2 * _random(1, 8, 8, 32) + 100.0
  norm = blocks.GroupNorm(DTYPE)
  got = np.asarray(norm.apply(norm.init(jax.random.key(0), x), x))
  centred = np.asarray(x, np.float64)
  centred -= centred.mean((1, 2), keepdims=True)
  want = centred / np.sqrt(np.square(centred).mean((1, 2)) + 1e-6)
  np.testing.assert_allclose(got, want, atol=0.02)


def _one_tap(row, col):
  """A 3x3 kernel that reads a single position."""
  kernel = jnp.zeros((3, 3, 1, 1)).at[row, col].set(1.0)
  return {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}}


def test_downsampling_pads_bottom_and_right_only():
  x = _random(1, 4, 6, 1)
  down = blocks.Downsample(DTYPE)
  first = down.apply(_one_tap(0, 0), x)
  np.testing.assert_array_equal(first, x[:, ::2, ::2])
  last = down.apply(_one_tap(2, 2), x)
  np.testing.assert_array_equal(last[:, :-1, :-1], x[:, 2::2, 2::2])
  np.testing.assert_array_equal(last[:, -1], 0)
  np.testing.assert_array_equal(last[:, :, -1], 0)


def test_upsampling_repeats_each_position():
  x = _random(1, 2, 3, 1)
  got = blocks.Upsample(DTYPE).apply(_one_tap(1, 1), x)
  np.testing.assert_array_equal(got, np.kron(x[0, :, :, 0], np.ones((2, 2)))[
    None, :, :, None
  ])  # fmt: skip


def test_attention_block():
  x = _random(2, 2, 3, 32)
  block = blocks.AttnBlock(DTYPE)
  params = block.init(jax.random.key(0), x)
  p = params["params"]
  norm = blocks.GroupNorm(DTYPE).apply({"params": p["norm"]}, x)
  qkv = norm.reshape(2, 6, 32) @ p["qkv"]["kernel"] + p["qkv"]["bias"]
  q, k, v = qkv[..., :32], qkv[..., 32:64], qkv[..., 64:]
  weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / np.sqrt(32), axis=-1)
  out = weights @ v @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]
  got = block.apply(params, x)
  np.testing.assert_allclose(got, x + out.reshape(x.shape), atol=1e-5)


def test_shortcut_exists_only_where_the_width_changes():
  x = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.float32)
  for width, expected in ((8, False), (16, True)):
    block = blocks.ResBlock(width, 0.0, DTYPE)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, True)
    assert ("nin_shortcut" in shapes["params"]) == expected
