"""Mask-free attention against a dense masked softmax, and its plan."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.presets import PRESETS
from star_jax.compile_check.devices import find_target
from star_jax.compile_check.memory import compile_program
from star_jax.compile_check.programs import attention_program
from star_jax.model import attention
from star_jax.model.attention import (
  attend,
  attention_plan,
  scale_causal_attention,
)
from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule

SCHEDULES = {
  "squares": ScaleSchedule.from_patch_nums([1, 2, 3, 4]),
  "rectangles": ScaleSchedule(((1, 1), (1, 2), (3, 5), (5, 7))),
  "one scale": ScaleSchedule(((1, 1),)),
  "repeated": ScaleSchedule.from_patch_nums([1, 1, 1, 4, 4, 5]),
}


def dense_attention(q, k, v, allowed, scale=1.0):
  """Float64, with the L x L mask that the code under test never makes."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  logits = np.einsum("bnqd,bnmd->bnqm", q, k) * scale
  logits = np.where(allowed, logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bnqm,bnmd->bnqd", weights, v)


def draw(length, batch=2, heads=2, head_dim=4, seed=0):
  rng = np.random.default_rng(seed)
  shape = (3, batch, heads, length, head_dim)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("query_block", [4, 10, 256])
@pytest.mark.parametrize("name", SCHEDULES)
def test_plan_is_the_scale_causal_mask(name, query_block):
  schedule = SCHEDULES[name]
  seen = np.zeros((schedule.num_tokens,) * 2, bool)
  covered = np.zeros(schedule.num_tokens, int)
  for rect in attention_plan(schedule.lengths, query_block):
    mask = rect.mask()
    seen[rect.begin : rect.end, : rect.end] = True if mask is None else mask
    covered[rect.begin : rect.end] += 1
    assert (rect.end - rect.begin) <= rect.blocks * query_block
    assert mask is None or rect.blocks == 1
  np.testing.assert_array_equal(covered, 1)
  np.testing.assert_array_equal(seen, schedule.scale_mask())


@pytest.mark.parametrize("query_block", [4, 10, 256])
@pytest.mark.parametrize("name", ["squares", "rectangles"])
def test_equals_dense_masked_attention(name, query_block):
  schedule = SCHEDULES[name]
  q, k, v = draw(schedule.num_tokens)
  out = jax.jit(
    lambda q, k, v: scale_causal_attention(
      q, k, v, schedule.lengths, scale=0.5, query_block=query_block
    )
  )(q, k, v)
  expected = dense_attention(q, k, v, schedule.scale_mask(), 0.5)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_gradients_do_not_depend_on_the_blocks():
  schedule = SCHEDULES["rectangles"]
  q, k, v = draw(schedule.num_tokens)

  def loss(q, k, v, query_block):
    out = scale_causal_attention(
      q, k, v, schedule.lengths, query_block=query_block
    )
    return jnp.sum(jnp.sin(out))

  grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
  # 256 keeps the probabilities, 8 recomputes and pads (15 = 2 x 8 - 1).
  for whole, blocked in zip(grad(q, k, v, 256), grad(q, k, v, 8)):
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(whole, blocked, atol=1e-6)


def test_no_array_of_l_by_l_in_the_training_program():
  schedule = ScaleSchedule.from_patch_nums([1, 2, 3, 4, 6])
  q, k, v = draw(schedule.num_tokens)

  def loss(q, k, v):
    return scale_causal_attention(
      q, k, v, schedule.lengths, query_block=16
    ).sum()

  program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).as_text()
  length = schedule.num_tokens
  assert f"x{length}x" in program
  assert f"{length}x{length}x" not in program
  # The only masks are those of scales packed together.
  masks = {
    line.split("tensor<")[-1].split("xi1>")[0]
    for line in program.splitlines()
    if "stablehlo.constant" in line and "xi1>" in line
  }
  assert masks <= {"14x14"}, masks


def test_unknown_backend_is_refused():
  q, k, v = draw(1)
  with pytest.raises(ValueError, match=r"one of .*xla.*, got 'magic'"):
    scale_causal_attention(q, k, v, (1,), backend="magic")


def test_row_without_any_key_is_zero_with_finite_gradients():
  q, k, v = draw(3)
  mask_Bm = jnp.asarray([[True, True, False], [False, False, False]])

  @jax.jit
  def attend_masked(q, k, v):
    return attend(q, k, v, 1.0, mask_Bm[:, None, None, :])

  out = attend_masked(q, k, v)
  np.testing.assert_array_equal(out[1], 0.0)
  expected = dense_attention(q, k, v, np.array([True, True, False]))
  np.testing.assert_allclose(out[0], expected[0], atol=1e-5)
  grads = jax.jit(
    jax.grad(lambda *qkv: jnp.sum(attend_masked(*qkv) ** 2), argnums=(0, 1, 2))
  )(q, k, v)
  for grad in grads:
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[1], 0.0)


def test_padding_values_do_not_matter():
  q, k, v = draw(4)
  mask_Bm = jnp.asarray([[True, True, False, True]] * 2)[:, None, None, :]
  spoiled = [x.at[:, :, 2].set(1e4) for x in (k, v)]
  np.testing.assert_array_equal(
    attend(q, k, v, 1.0, mask_Bm), attend(q, *spoiled, 1.0, mask_Bm)
  )


@pytest.mark.long
def test_temporaries_stay_bounded_at_1024_px_proportions():
  """Forward and backward of one layer at L = 2240, compiled memory.

  Unblocked, the probabilities of all rectangles alone would take
  heads * pairs * 4 bytes; with blocks, a few [heads, block, L] are live.
  """
  schedule = ScaleSchedule.from_name("512")
  heads, head_dim, block = 8, 64, 128
  qkv = jax.ShapeDtypeStruct(
    (1, heads, schedule.num_tokens, head_dim), jnp.float32
  )

  def temporaries(query_block):
    def loss(q, k, v):
      out = scale_causal_attention(
        q, k, v, schedule.lengths, query_block=query_block
      )
      return jnp.sum(out**2)

    compiled = (
      jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(qkv, qkv, qkv).compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  one_array = heads * schedule.num_tokens * head_dim * 4
  tile = heads * block * schedule.num_tokens * 4
  pairs = heads * int(schedule.scale_mask().sum()) * 4
  blocked = temporaries(block)
  assert blocked < 6 * tile + 16 * one_array, (blocked, tile, one_array)
  # All scales at once keep the probabilities for the backward pass.
  whole = temporaries(schedule.num_tokens)
  assert whole > 1.5 * pairs and whole > 2 * blocked, (whole, pairs, blocked)


@pytest.mark.parametrize("query_block", [2, 256])
def test_kept_tail_tokens_stand_for_the_others(query_block):
  """Equal keys and values: some of them, weighted, are as good as all."""
  lengths, kept = (1, 4, 9), (0, 4, 5)
  weight_L = jnp.array([1.0] * 5 + [3.0] * 3)
  q, k, v = draw(14)
  k, v = (x.at[:, :, 5:].set(x[:, :, 5:6]) for x in (k, v))
  full = scale_causal_attention(q, k, v, lengths, query_block=query_block)
  rows = jnp.asarray([*range(5), *(5 + i for i in kept)])
  some = scale_causal_attention(
    *(x[:, :, rows] for x in (q, k, v)),
    (1, 4, 3),
    query_block=query_block,
    weight_BL=jnp.tile(weight_L, (q.shape[0], 1)),
  )
  np.testing.assert_allclose(some, full[:, :, rows], atol=1e-5)


@pytest.mark.long
def test_long_sequences_go_a_few_heads_at_a_time(monkeypatch):
  """The same figures and gradients, with bounded temporaries."""
  lengths = SCHEDULES["squares"].lengths
  q, k, v = draw(sum(lengths), heads=6)

  def loss(q, k, v):
    out = scale_causal_attention(q, k, v, lengths, query_block=10)
    return jnp.sum(jnp.sin(out))

  def run():
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, v)

  whole = run()
  # Two samples of 10 queries and 30 keys: room for two of the heads, or none.
  for elements in (2 * 10 * 30 * 2, 1):
    monkeypatch.setattr(attention, "BLOCK_ELEMENTS", elements)
    chex.assert_trees_all_close(run(), whole, atol=1e-5)


def test_heads_at_once_divide_the_heads():
  assert attention.heads_at_once(6, 100, limit=100) == 1
  assert attention.heads_at_once(6, 20, limit=100) == 3
  assert attention.heads_at_once(6, 1, limit=100) == 6


@pytest.mark.long
def test_a_layer_of_the_1024_px_model_stays_under_a_gigabyte():
  for dtype in ("float32", "bfloat16"):
    config = StarConfig.from_dict({**PRESETS["star_d30_1024"], "dtype": dtype})
    program = attention_program(config, batch=1)
    memory = compile_program(program, find_target("cpu"))
    assert 0 < memory.temporaries < 1e9
