"""Attention by kernels against plain products, and which one is chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs.presets import PRESETS
from star_jax import sharding
from star_jax.model import attention, attention_backends, splash
from star_jax.model.attention import (
  attend,
  cached_attention,
  scale_causal_attention,
  within_scale_attention,
)
from star_jax.model.attention_backends import check_here, choose
from star_jax.model.cache import init_cache
from star_jax.model.config import StarConfig
from star_jax.model.kernel_blocks import KernelBlocks
from star_jax.scales import ScaleSchedule
from star_jax.train.flops import count_flops

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (5, 7), (9, 12), (9, 13)))
LENGTHS = tuple(SCHEDULE.lengths)  # 265 tokens: three blocks of 128
# Of the largest element, a few roundings of each dtype.
TOLERANCE = {"float32": 2e-6, "bfloat16": 0.02}


@pytest.fixture
def interpreted(monkeypatch):
  """The kernel on this machine, in blocks of 128."""
  monkeypatch.setattr(splash, "SHORT_BLOCK", 128)
  for name in ("scale_causal", "full"):
    run = functools.partial(getattr(splash, name), interpret=True)
    monkeypatch.setattr(splash, name, run)


def model(**changes) -> StarConfig:
  return StarConfig.from_dict({**PRESETS["test"], **changes})


def draw(length, batch=2, heads=2, head_dim=8, dtype="float32"):
  rng = np.random.default_rng(0)
  shape = (3, batch, heads, length, head_dim)
  return tuple(jnp.asarray(rng.normal(size=shape), dtype))


def value_and_gradients(backend, qkv, **options):
  """Float32: the output, and gradients of q, k and v."""

  def loss(q, k, v):
    out = scale_causal_attention(
      q, k, v, LENGTHS, backend=backend, query_block=512, **options
    )
    return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
  return [np.asarray(x, np.float32) for x in (out, *grads)]


@functools.cache
def plain_products(dtype):
  qkv = draw(sum(LENGTHS), batch=1, dtype=dtype)
  return value_and_gradients("xla", qkv, scale=0.3)


def assert_same(found, expected, tolerance):
  for one, other in zip(found, expected, strict=True):
    largest = np.abs(other).max()
    assert largest > 0.1
    np.testing.assert_allclose(one, other, atol=tolerance * largest)


@pytest.mark.parametrize(
  "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)]
)
def test_splash_is_plain_products_to_rounding(interpreted, dtype):
  qkv = draw(sum(LENGTHS), batch=1, dtype=dtype)
  assert_same(
    value_and_gradients("splash", qkv, scale=0.3),
    plain_products(dtype),
    TOLERANCE[dtype],
  )


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_splash_with_tokens_that_stand_for_several(interpreted, dtype):
  qkv = draw(sum(LENGTHS), dtype=dtype)
  rng = np.random.default_rng(1)
  weight_BL = jnp.asarray(rng.uniform(1, 9, (2, sum(LENGTHS))), jnp.float32)
  assert_same(
    value_and_gradients("splash", qkv, weight_BL=weight_BL),
    value_and_gradients("xla", qkv, weight_BL=weight_BL),
    TOLERANCE[dtype],
  )


def test_the_mask_is_scale_causal_and_skips_blocks(monkeypatch):
  monkeypatch.setattr(splash, "SHORT_BLOCK", 128)
  mask = splash.scale_causal_mask(LENGTHS)
  assert mask.shape == (384, 384)
  dense = mask[0:384, 0:384]
  np.testing.assert_array_equal(dense[:265, :265], SCHEDULE.scale_mask())
  assert not dense[:, 265:].any()
  tiles = dense.reshape(3, 128, 3, 128).any((1, 3))
  assert not tiles.all()
  assert mask.blocks == KernelBlocks(int(tiles.sum()), 9, 128, 128)
  assert KernelBlocks.named(f"jit(f)/{mask.blocks.name}/x") == mask.blocks
  assert KernelBlocks.named("jit(f)/attn") is None


def test_flops_of_the_kernel_are_those_of_the_blocks_that_it_runs(interpreted):
  q, k, v = draw(sum(LENGTHS))

  def loss(q, k, v):
    return scale_causal_attention(q, k, v, LENGTHS, backend="splash").sum()

  square = 2 * q.shape[0] * q.shape[1] * q.shape[3]
  square *= splash.scale_causal_mask(LENGTHS).blocks.pairs
  assert count_flops(loss, q, k, v) == 2 * square
  # Three products for the gradient of q, four for those of k and v; and the
  # product of the output with its gradient.
  rest = 2 * q.shape[0] * q.shape[1] * 384 * q.shape[3]
  assert count_flops(jax.grad(loss, (0, 1, 2)), q, k, v) == 9 * square + rest


@pytest.mark.parametrize("last", [False, True])
def test_sampling_a_scale_by_the_kernel(interpreted, monkeypatch, last):
  monkeypatch.setattr(attention, "FEWEST_QUERIES", 36)
  config = model(schedule=[1, 2, 6] if last else [1, 2, 6, 6])
  cache = init_cache(config, 2)
  rng = np.random.default_rng(0)
  cache = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), cache
  )
  q = jnp.asarray(rng.normal(size=(2, 2, 36, 16)), jnp.float32)
  k, v = jnp.asarray(rng.normal(size=(2, 2, 36, 32)), jnp.float32)

  def run(backend):
    return cached_attention(
      q, k, v, cache, 1, 5, scale=0.5, query_block=256, backend=backend
    )

  for one, other in zip(
    jax.tree.leaves(run("splash")), jax.tree.leaves(run("xla")), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=2e-6)


def test_the_kernel_on_a_mesh(interpreted):
  """Forward with weights that differ, on eight devices."""
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  qkv = jax.device_put(draw(sum(LENGTHS), batch=4), sharding.replicated(mesh))
  rng = np.random.default_rng(1)
  weight_BL = jnp.asarray(rng.uniform(1, 9, (4, sum(LENGTHS))), jnp.float32)

  @jax.jit
  def run(*qkv):
    with sharding.use_mesh(mesh):
      return scale_causal_attention(
        *qkv, LENGTHS, backend="splash", weight_BL=weight_BL
      )

  compiled = run.lower(*qkv).compile()
  # Pictures and heads of a device are its own.
  assert "f32[1,1,384,16]" in compiled.as_text()
  assert "all-gather" not in compiled.as_text()
  expected = scale_causal_attention(
    *draw(sum(LENGTHS), batch=4), LENGTHS, weight_BL=weight_BL
  )
  assert_same([compiled(*qkv)], [expected], TOLERANCE["float32"])


@pytest.mark.long
def test_gradients_of_the_kernel_on_a_mesh(interpreted):
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  qkv = draw(sum(LENGTHS), batch=4)
  expected = value_and_gradients("xla", qkv)
  with sharding.use_mesh(mesh):
    found = value_and_gradients(
      "splash", jax.device_put(qkv, sharding.replicated(mesh))
    )
  assert_same(found, expected, TOLERANCE["float32"])


@pytest.fixture
def with_cudnn(monkeypatch):
  """As if cuDNN were installed; jax asks for its version when it lowers."""
  monkeypatch.setattr(
    fused_attention_stablehlo, "check_cudnn_version", lambda: 91000
  )


def test_the_program_of_a_card_calls_cudnn_for_every_large_scale(with_cudnn):
  qkv = draw(sum(LENGTHS), dtype="bfloat16")

  def loss(*qkv):
    return scale_causal_attention(*qkv, LENGTHS, backend="cudnn").sum()

  traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*qkv)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  # Scales of 35, 108 and 117 tokens; the first two share a masked product.
  assert text.count("@__cudnn$fmhaSoftmax(") == 3
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 3


def test_what_cudnn_is_asked_is_scale_causal_attention(monkeypatch):
  real = jax.nn.dot_product_attention

  def plain(*qkv, implementation, **options):
    assert implementation == "cudnn"
    # A gradient of other lengths is refused.
    assert all(x.shape[1] % 2 == 0 for x in qkv)
    return real(*qkv, **options, implementation="xla")

  monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
  qkv = draw(sum(LENGTHS), batch=1)
  assert_same(
    value_and_gradients("cudnn", qkv, scale=0.3),
    plain_products("float32"),
    TOLERANCE["float32"],
  )
  q, k, v = qkv
  found = attention_backends.full_attention(
    q[:, :, :7], k, v, scale=0.3, backend="cudnn"
  )
  np.testing.assert_allclose(found, attend(q[:, :, :7], k, v, 0.3), atol=2e-6)


@pytest.mark.parametrize(
  ("platform", "changes", "backend"),
  [
    ("cpu", {}, "xla"),
    ("gpu", {"dtype": "bfloat16"}, "xla"),
    ("tpu", {}, "splash"),
    ("cuda", {"dtype": "bfloat16"}, "cudnn"),
    ("cuda", {"dtype": "float32"}, "xla"),
    ("cuda", {"dtype": "float16", "num_heads": 8}, "xla"),
  ],
)
def test_auto_is_the_best_that_fits(platform, changes, backend):
  assert choose("auto", platform, model(**changes)) == backend


@pytest.mark.parametrize(
  ("name", "platform", "changes", "message"),
  [
    ("splash", "cpu", {}, "'splash' is not available on cpu, .* offers 'xla';"),
    ("cudnn", "tpu", {}, "not available on tpu, .* offers 'xla' and 'splash'"),
    ("cudnn", "cuda", {}, "takes dtype bfloat16 or float16, got 'float32'"),
    (
      "cudnn",
      "cuda",
      {"dtype": "bfloat16", "num_heads": 8},
      "a multiple of 8 channels up to 128, got 4",
    ),
  ],
)
def test_what_a_device_does_not_offer_is_said(name, platform, changes, message):
  with pytest.raises(ValueError, match=message):
    choose(name, platform, model(**changes))


def test_a_run_says_what_it_uses_and_files_do_not():
  config = model()
  assert check_here(config) == "Attention: xla, chosen for cpu"
  named = dataclasses.replace(config, attention="xla")
  assert check_here(named) == "Attention: xla"
  assert check_here(config, sequence=2).endswith("share a picture's tokens")
  with pytest.raises(ValueError, match="not available on cpu"):
    check_here(dataclasses.replace(config, attention="splash"))
  with pytest.raises(ValueError, match=r"attention is one of .* got 'flash'"):
    dataclasses.replace(config, attention="flash")
  # A model that was trained on a TPU is sampled anywhere.
  assert named.to_dict() == config.to_dict()
  assert "attention" not in config.to_dict()


def test_the_refinement_head_by_the_kernel(interpreted, monkeypatch):
  """Large scales; the first token and small ones are plain products."""
  monkeypatch.setattr(attention, "FEWEST_QUERIES", 36)
  q, k, v = draw(1 + 9 + 36)

  @functools.partial(jax.jit, static_argnums=0)
  def run(backend):
    return within_scale_attention(
      q, k, v, (1, 9, 36), scale=0.5, query_block=16, backend=backend
    )

  np.testing.assert_allclose(run("splash"), run("xla"), atol=2e-6)
