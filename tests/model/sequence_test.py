"""How devices trade the tokens of a picture for heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from star_jax import sharding
from star_jax.model.attention import scale_causal_attention
from star_jax.model.sequence import (
  TILE,
  padded_tokens,
  sequence_attention,
  trade,
)
from star_jax.train.flops import count_flops
from tests.cases import long_but

LENGTHS = (1, 4, 9, 16, 23)
OPTIONS = {"scale": 0.5, "query_block": 16}


def on_parts(fn, parts):
  """`fn` of arrays, on devices that share the tokens of a picture."""
  axes = {"data": 1, "sequence": parts}
  mesh = sharding.make_mesh(axes, jax.devices()[:parts])

  @functools.partial(jax.jit, in_shardings=sharding.replicated(mesh))
  def run(*args):
    with sharding.use_mesh(mesh):
      return fn(*args)

  return run


def heads(count):
  shape = (2, count, sum(LENGTHS), 8)
  draw = functools.partial(jax.random.normal, shape=shape)
  return tuple(map(draw, jax.random.split(jax.random.key(0), 3)))


def shared(q, k, v, weight_BL=None):
  q, k, v = (padded_tokens(x, 2) for x in (q, k, v))
  out = sequence_attention(q, k, v, LENGTHS, weight_BL=weight_BL, **OPTIONS)
  return out[:, :, : sum(LENGTHS)]


def test_tokens_are_padded_to_whole_tiles_on_every_device():
  x = jnp.ones((2, 53, 3))
  out = on_parts(lambda x: padded_tokens(x, 1), 4)(x)
  assert out.shape == (2, 4 * TILE * 2, 3)
  np.testing.assert_array_equal(out[:, :53], x)
  assert not out[:, 53:].any()
  # 8,800 tokens of a picture of 1024 pixels need none on four devices.
  whole = jax.ShapeDtypeStruct((8800,), jnp.float32)
  padded = jax.eval_shape(on_parts(lambda x: padded_tokens(x, 0), 4), whole)
  assert padded.shape == whole.shape


@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_a_trade_is_an_all_to_all_and_the_gradient_goes_the_way_back(parts):
  x = jax.random.normal(jax.random.key(0), (2, 24, 24))
  spec = PartitionSpec(None, "sequence")
  there = functools.partial(trade, split=2, join=1)
  theirs = functools.partial(
    jax.lax.all_to_all, axis_name="sequence", split_axis=2, concat_axis=1,
    tiled=True,
  )  # fmt: skip

  def both(fn):
    def one(x):
      # Each device has all tokens of a part of the channels.
      out = jax.shard_map(
        lambda x: fn(x) * (1 + jax.lax.axis_index("sequence")),
        in_specs=spec,
        out_specs=PartitionSpec(None, None, "sequence"),
        check_vma=False,
      )(x)
      return jnp.sum(out**2), out

    return jax.value_and_grad(one, has_aux=True)

  ((_, found), grad), ((_, expected), expected_grad) = (
    on_parts(both(fn), parts)(x) for fn in (lambda x: there(x), theirs)
  )
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(grad, expected_grad, rtol=1e-6)


@pytest.mark.parametrize("parts, count", long_but(1, [(4, 3), (2, 8), (8, 5)]))
def test_attention_is_that_of_one_device(parts, count):
  qkv = heads(count)
  weight_BL = jnp.linspace(0.5, 2, 2 * sum(LENGTHS)).reshape(2, -1)

  def grads(fn):
    def loss(*qkv):
      out = fn(*qkv, weight_BL=weight_BL)
      return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    return jax.grad(loss, (0, 1, 2))

  one = functools.partial(scale_causal_attention, lengths=LENGTHS, **OPTIONS)
  expected = jax.jit(grads(one))(*qkv)
  found = on_parts(grads(shared), parts)(*qkv)
  for ours, theirs in zip(found, expected):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_devices_compute_the_heads_once_between_them():
  one = functools.partial(scale_causal_attention, lengths=LENGTHS, **OPTIONS)
  whole = count_flops(one, *heads(8))
  assert count_flops(on_parts(shared, 4), *heads(8)) == whole
  # Three heads on four devices: one is zeros.
  assert count_flops(on_parts(shared, 4), *heads(3)) == whole // 2


def test_what_was_traded_is_kept_for_the_backward_pass():
  def permutations(policy):
    loss = jax.checkpoint(
      lambda *qkv: jnp.sum(shared(*qkv) ** 2), policy=policy
    )
    program = jax.make_jaxpr(on_parts(jax.grad(loss, (0, 1, 2)), 2))(*heads(4))
    return str(program).count("ppermute[")

  policies = jax.checkpoint_policies
  # q, k, v and the output, of two groups; forward, again, and their gradients.
  assert permutations(policies.nothing_saveable) == 3 * 8
  assert permutations(policies.save_only_these_names("attention")) == 2 * 8
