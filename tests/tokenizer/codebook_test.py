"""Data-dependent start and revival of dead codes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer import codebook
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import Quantizer

CONFIG = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, 2, 4]),
  vocab_size=32,
  code_dim=4,
  ch=8,
  ch_mult=(1,),
  num_res_blocks=1,
)


@functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
def _start(params, f_BhwCv):
  return codebook.init_codebook_from_features(
    params, f_BhwCv, jax.random.key(2), CONFIG
  )


def _setup():
  quantizer = Quantizer(CONFIG)
  f_BhwCv = 5 + jax.random.normal(jax.random.key(0), (16, 4, 4, 4))
  params = quantizer.init(jax.random.key(1), f_BhwCv)["params"]
  return quantizer, {"quantizer": params, "decoder": {"w": 1}}, f_BhwCv


@pytest.mark.long
def test_start_from_features_uses_the_codebook_and_lowers_the_loss():
  quantizer, params, f = _setup()
  started = _start(params, f)

  @jax.jit
  def forward(params):
    return quantizer.apply({"params": params["quantizer"]}, f)

  def run(params):
    out = forward(params)
    return float(out.vq_loss), float(np.mean(np.any(out.usage_KV, axis=0)))

  loss_before, used_before = run(params)
  loss, used = run(started)
  assert used >= 0.9 > used_before
  assert loss < 0.2 * loss_before
  codes = started["quantizer"]["codebook_VCv"]
  assert len(np.unique(codes, axis=0)) == CONFIG.vocab_size
  # Nothing else changes, and the input is left alone.
  assert started["decoder"] == params["decoder"]
  assert float(jnp.abs(params["quantizer"]["codebook_VCv"]).max()) < 0.1


@pytest.mark.long
def test_start_from_few_images_fills_the_codebook():
  _, params, f = _setup()
  started = _start(params, f[:1])
  codes = started["quantizer"]["codebook_VCv"]
  assert codes.shape == (32, 4)
  assert len(np.unique(codes, axis=0)) == 32


def test_only_dead_codes_are_revived_and_by_distinct_candidates():
  codes = jnp.zeros((6, 2))
  usage = jnp.array([1.0, 0.0, 0.5, 0.05, 2.0, 0.1])
  candidates = 10 + jnp.arange(20.0).reshape(10, 2)
  new, dead = jax.jit(codebook.revive_codes, static_argnums=4)(
    codes, usage, candidates, jax.random.key(0), 0.1
  )
  np.testing.assert_array_equal(dead, [0, 1, 0, 1, 0, 0])
  np.testing.assert_array_equal(new[~dead], 0)
  revived = np.asarray(new[dead])
  distance = np.abs(revived[:, None] - candidates[None]).max(-1)
  assert distance.min(1).max() < 0.5
  assert len(set(distance.argmin(1))) == 2


def test_more_codes_than_candidates():
  drawn = codebook.draw_candidates(
    jnp.array([[1.0], [2.0]]), 5, jax.random.key(0)
  )
  assert drawn.shape == (5, 1)
  assert len(np.unique(drawn)) == 5


@pytest.mark.long
def test_k_means_lowers_the_loss_further():
  quantizer, params, f = _setup()

  @functools.partial(jax.jit, static_argnames="iterations")
  def loss(iterations):
    started = codebook.init_codebook_from_features(
      params, f, jax.random.key(2), CONFIG, iterations
    )
    return quantizer.apply({"params": started["quantizer"]}, f).vq_loss

  assert loss(5) < 0.96 * loss(0)


def test_code_rates_are_weighted_lengths():
  usage_KV = jnp.array([[6.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
  rate_KV = codebook.code_rates(usage_KV, (2.0, 0.5))
  floor = codebook.RATE_FLOOR
  share = (1 - floor) * np.array([0.75, 0.25, 0, 0]) + floor / 4
  np.testing.assert_allclose(rate_KV[0], -2 * np.log(share), rtol=1e-5)
  # Nothing seen: all codes are as long, none impossible.
  assert np.isfinite(rate_KV).all() and len(set(rate_KV[1].tolist())) == 1


def test_rates_lower_the_entropy_of_the_tokens():
  config = dataclasses.replace(CONFIG, rate_weight=(0.0, 0.3, 0.3))
  _, params, f = _setup()
  params = _start(params, f)["quantizer"]
  rates = jnp.zeros((3, CONFIG.vocab_size))

  def run(rate_KV):
    out = Quantizer(config).apply({"params": params | {"rate_KV": rate_KV}}, f)
    share_KV = out.usage_KV / out.usage_KV.sum(-1, keepdims=True)
    entropy_K = -(share_KV * np.log(np.maximum(share_KV, 1e-9))).sum(-1)
    return out.usage_KV, entropy_K, out.idx_BL

  usage_KV, before_K, idx_BL = run(rates)
  _, after_K, changed_BL = run(
    codebook.code_rates(usage_KV, config.rate_weight)
  )
  # A weight of 0 leaves the first scale alone.
  np.testing.assert_array_equal(idx_BL[:, 0], changed_BL[:, 0])
  assert (after_K[1:] < before_K[1:] - 0.05).all()


def test_entropy_loss_prefers_sure_and_even_choices():
  codes = np.eye(4, dtype=np.float32)
  loss = lambda z, cosine=False: float(  # noqa: E731
    codebook.entropy_loss(jnp.asarray(z), codes, 0.05, cosine)
  )
  even = loss(codes)
  assert even == pytest.approx(-np.log(4), abs=1e-3)
  # All vectors choose one code; no vector knows which.
  assert loss(np.repeat(codes[:1], 4, 0)) == pytest.approx(0, abs=1e-3)
  assert loss(np.full((4, 4), 0.5)) == pytest.approx(0, abs=1e-3)
  assert loss(7 * codes, cosine=True) == pytest.approx(-np.log(4), abs=1e-3)


def test_codes_of_a_cosine_codebook_have_directions_of_their_own():
  """k-means by distance spends codes on lengths, which a choice by cosine
  cannot tell apart."""
  rng = np.random.default_rng(0)
  angles = np.repeat(np.linspace(0, 2 * np.pi, 8, endpoint=False), 40)
  length = rng.uniform(0.2, 5.0, angles.shape)
  z = np.stack([np.cos(angles), np.sin(angles)], -1) * length[:, None]
  z = jnp.asarray(z, jnp.float32)
  used = {}
  for cosine in (False, True):
    codes = codebook.draw_candidates(z, 24, jax.random.key(0))
    for _ in range(10):
      codes = codebook._lloyd(codes, z, cosine)
    chosen = np.argmax(codebook._unit(z) @ codebook._unit(codes).T, axis=1)
    used[cosine] = len(set(chosen.tolist()))
  assert used[True] >= used[False]
