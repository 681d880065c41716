"""Cheaper late scales: neutral settings, references, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import testing
from star_jax.model.cache import KVCache
from star_jax.model.cache_budget import shrink_cache
from star_jax.model.condition import batch_of
from star_jax.model.int8 import dequantize, quantize
from star_jax.model.kept_tokens import KeptTokens
from star_jax.model.late_scales import (
  LateScale,
  pivotal_tokens,
  probe_places,
  restore_tokens,
)
from star_jax.model.star import Star
from star_jax.sampling import sampler as S
from star_jax.sampling.accelerate import Accelerate, plan_scales
from star_jax.sampling.logits import guide
from star_jax.sampling.passes import Models, decode_scale, start_passes
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.vqvae import VQVAE
from tests.cases import long_but
from tests.model.star_test import QUICK

BATCH, TEXT_TOKENS, TEXT_DIM = 3, 4, 12
PATCH_NUMS, VOCAB = (1, 2, 3), 24
BEFORE = 5  # tokens before the last scale
CFG_SCALE = 3.0
FLAGS = {
  "unguided": Accelerate(unguided_scales=1),
  "pruned": Accelerate(keep_shares=(0.4,)),
  "budget": Accelerate(cache_budget=3),
  "int8": Accelerate(int8_cache=True),
  "small": Accelerate(small_scales=1),
  "all": Accelerate(1, (0.5, 0.4), 2, True, 2),
}

TOKENIZER = testing.tiny_tokenizer_config(PATCH_NUMS, VOCAB)
SCHEDULE = TOKENIZER.schedule
VAE = VQVAE(TOKENIZER)
STAR = Star(
  testing.tiny_star_config(TOKENIZER, TEXT_DIM, position="rope+absolute")
)
SMALL = Star(testing.tiny_star_config(TOKENIZER, TEXT_DIM, depth=1, width=8))
PARAMS = jax.device_put(
  {
    "star": testing.random_params(STAR, seed=1),
    "tokenizer": testing.random_params(VAE, seed=2),
    "small": testing.random_params(SMALL, seed=3),
  }
)
TEXT = testing.random_text(BATCH, TEXT_TOKENS, TEXT_DIM, seed=4)
NULL = testing.random_text(1, TEXT_TOKENS, TEXT_DIM, seed=5)
# What the scales from the second on see: of no tokens in particular.
INPUT_BLCv = np.random.default_rng(6).standard_normal(
  (BATCH, SCHEDULE.num_tokens - 1, TOKENIZER.code_dim), np.float32
)


@functools.cache
def passes_of(accelerate, guided, same_small):
  """fn(params, text) -> logits [B, L, V], guided where the plan says so."""
  config = S.SamplerConfig(guided=guided, accelerate=accelerate)
  models = Models(STAR, VAE, None, STAR if same_small else SMALL)

  def run(params, text):
    out, args = [], (models, config, params, text, NULL)
    passes = start_passes(*args)
    for k, (begin, end) in enumerate(SCHEDULE.begin_ends):
      x_BlCv = INPUT_BLCv[:, begin - 1 : end - 1] if k else None
      logits, _, passes = decode_scale(*args, k, x_BlCv, passes)
      if passes.plan[k].guided:
        t = CFG_SCALE * SCHEDULE.cfg_ratio(k)
        logits = guide(*jnp.split(logits, 2), t)
      out.append(logits)
    return jnp.concatenate(out, axis=1)

  return jax.jit(run, compiler_options=QUICK)


def decode(accelerate=None, *, text=TEXT, guided=True, same_small=False):
  """Logits of all scales, the same inputs for all."""
  params = PARAMS | ({"small": PARAMS["star"]} if same_small else {})
  return np.asarray(passes_of(accelerate, guided, same_small)(params, text))


@functools.cache
def default():
  return decode()


@functools.cache
def decoded(name):
  return decode(FLAGS[name], guided=name != "pruned")


@functools.cache
def conditional():
  """The conditional half alone."""
  return decode(guided=False)


def training_logits(star, params, text, kept=None):
  """Of the training pass, without guidance."""

  def run(params, text):
    x_BLCv = jnp.tile(INPUT_BLCv, (batch_of(text) // BATCH, 1, 1))
    return star.apply({"params": params}, x_BLCv, text, kept=kept)

  return np.asarray(jax.jit(run, compiler_options=QUICK)(params, text))


def assert_close(a, b, atol=2e-5):
  np.testing.assert_allclose(a, b, atol=atol)


def test_neutral_settings_change_nothing():
  neutral = Accelerate(keep_shares=(1, 1), cache_budget=BEFORE)
  assert_close(decode(neutral), default())
  plans = [
    plan_scales(accelerate, SCHEDULE, True)
    for accelerate in (neutral, Accelerate(), None)
  ]
  assert plans[0] == plans[1] == plans[2]
  assert [p.begin for p in plans[0]] == [0, 1, BEFORE]
  assert {p.length for p in plans[0]} == {BEFORE}
  assert [p.keep for p in plans[0]] == list(SCHEDULE.lengths)
  assert all(p.guided and not p.small and p.source is None for p in plans[0])


def test_no_guidance_on_any_scale_is_guidance_off():
  assert_close(decode(Accelerate(unguided_scales=3)), conditional())
  assert np.abs(conditional() - default()).max() > 0.1


def test_unguided_scales_draw_from_the_conditional_half():
  out = decoded("unguided")
  assert_close(out[:, :BEFORE], default()[:, :BEFORE])
  assert_close(out[:, BEFORE:], conditional()[:, BEFORE:])


@pytest.mark.parametrize("scales", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_second_model_that_is_the_same_one_goes_on_as_the_first(scales):
  same = Accelerate(small_scales=scales)
  assert_close(decode(same, same_small=True), default())


def test_the_second_model_draws_the_last_scales():
  out, last = decoded("small"), slice(BEFORE, None)
  assert_close(out[:, :BEFORE], default()[:, :BEFORE])
  both = jax.tree.map(
    lambda a, b: np.concatenate([a, np.repeat(b, BATCH, axis=0)]), TEXT, NULL
  )
  logits = training_logits(SMALL, PARAMS["small"], both)
  cond, null = np.split(logits[:, last], 2)
  assert_close(out[:, last], (1 + CFG_SCALE) * cond - CFG_SCALE * null, 1e-4)


def test_pruned_tokens_neither_see_nor_are_seen():
  """Those that go through get the logits of a training pass that looks at them
  and at the scales before alone."""
  out = decoded("pruned")
  assert_close(out[:, :BEFORE], conditional()[:, :BEFORE])
  kernel = PARAMS["star"]["word_embed"]["kernel"]
  index_Bn = pivotal_tokens(INPUT_BLCv[:, BEFORE - 1 :] @ kernel, 4)
  first_BL = np.broadcast_to(np.arange(BEFORE), (BATCH, BEFORE))
  index_BL = np.concatenate([first_BL, BEFORE + np.asarray(index_Bn)], 1)
  weight_BL = jnp.ones(index_BL.shape)
  kept = KeptTokens(jnp.asarray(index_BL), weight_BL, (1, 4, 4))
  expected = training_logits(STAR, PARAMS["star"], TEXT, kept)
  ours = np.take_along_axis(out, index_BL[..., None], axis=1)
  assert_close(ours[:, BEFORE:], expected[:, BEFORE:])


def test_a_token_that_stays_out_gets_the_update_of_the_scale_before():
  rng = np.random.default_rng(0)
  update, x_BlC = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 9, 3))
  late = LateScale(0, 2, (), jnp.asarray(update, jnp.float32), (2, 2))
  index, new = np.array([[0, 4], [3, 8]]), rng.normal(size=(2, 2, 3))
  out = restore_tokens(
    jnp.asarray(new), jnp.asarray(index), jnp.asarray(x_BlC), late, (3, 3)
  )
  for b in range(2):
    for i in range(9):
      if i in index[b]:
        expected = new[b, list(index[b]).index(i)]
      else:
        # The cells of 2 x 2 that place i of 3 x 3 overlaps.
        cells = [{0: [0], 1: [0, 1], 2: [1]}[j] for j in divmod(i, 3)]
        places = [2 * r + c for r in cells[0] for c in cells[1]]
        expected = x_BlC[b, i] + update[b, places].mean(0)
      np.testing.assert_allclose(out[b, i], expected, atol=1e-5)


def test_pivotal_tokens_are_the_farthest_from_the_mean():
  x = np.array([[0.0, 9.0, 5.0, 1.0]])[..., None]  # mean 3.75
  assert pivotal_tokens(jnp.asarray(x), 2).tolist() == [[0, 1]]
  assert pivotal_tokens(jnp.asarray(x), 4).tolist() == [[0, 1, 2, 3]]


def test_probe_places_are_spread_over_the_scale():
  assert probe_places((4, 4), 16, 4) == (5, 7, 13, 15)
  assert (
    probe_places((2, 8), 16, 16) == tuple(range(0, 16))
    or len(probe_places((2, 8), 16, 16)) <= 16
  )
  assert probe_places((4, 4), 7, 3) == (1, 3, 5)
  assert probe_places((1, 1), 1, 1) == (0,)


@pytest.mark.parametrize("name", long_but([[*FLAGS].index("all")], [*FLAGS]))
def test_a_sample_does_not_see_its_neighbours(name):
  guided, other = name != "pruned", TEXT[np.array([0, 0, 1])]
  out, other = decoded(name), decode(FLAGS[name], text=other, guided=guided)
  np.testing.assert_array_equal(other[0], out[0])
  assert np.all(np.any(other[1:] != out[1:], axis=(1, 2)))


def test_int8_cache_moves_logits_a_little():
  """By less than 2% of their spread, and not at all where none is read."""
  out, expected = decoded("int8"), default()
  np.testing.assert_array_equal(out[:, 0], expected[:, 0])
  for begin, end in SCHEDULE.begin_ends[1:]:
    error = np.abs(out - expected)[:, begin:end].max()
    assert 0 < error < 0.02 * expected[:, begin:end].std()


def test_int8_rounds_by_half_a_factor():
  x_BlC = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
  x_BlC[0, 0, :4] = 0
  q_BlC, factor_BlN = quantize(jnp.asarray(x_BlC), heads=2)
  assert q_BlC.dtype == jnp.int8 and factor_BlN.shape == (2, 3, 2)
  error = np.abs(dequantize(q_BlC, factor_BlN) - x_BlC)
  largest = np.abs(x_BlC).reshape(2, 3, 2, 4).max(-1)
  bound = np.repeat(largest, 4, axis=-1) / 254 + 1e-6
  assert np.all(error <= bound) and error.max() > 0


def test_the_cache_keeps_a_budget():
  out = decoded("budget")
  assert_close(out[:, :BEFORE], default()[:, :BEFORE])
  assert np.abs(out - default())[:, BEFORE:].max() > 0.01
  plan = plan_scales(FLAGS["budget"], SCHEDULE, True)
  assert [p.begin for p in plan] == [0, 1, 3]
  assert [p.length for p in plan] == [5, 5, 3]
  assert [bool(p.probe) for p in plan] == [False, True, False]


def test_the_plan_of_a_longer_schedule():
  """A budget before and after a second model takes over, with pruned scales."""
  schedule = ScaleSchedule.from_patch_nums((1, 2, 4, 6, 8))
  plan = plan_scales(Accelerate(3, (0.5, 0.25), 10, False, 2), schedule, True)
  assert [p.guided for p in plan] == [True, True, False, False, False]
  assert [p.small for p in plan] == [False, False, False, True, True]
  assert [p.keep for p in plan] == [1, 4, 16, 18, 16]
  assert [p.source for p in plan] == [None, None, None, 2, 2]
  # The first model stores 5 tokens; the second has read 21, of which 10 stay.
  assert [p.begin for p in plan] == [0, 1, 5, 10, 10]
  assert [p.length for p in plan] == [5, 5, 5, 28, 10]
  assert [len(p.probe) for p in plan] == [0, 0, 0, 10, 0]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_shrunk_cache_has_what_the_window_looks_at(dtype):
  rng, config = np.random.default_rng(0), STAR.config
  shape, window, budget = (2, 1, 9, 16), (5, 7), 4
  k, v = rng.normal(size=(2, *shape)).astype(np.float32)
  probe = 5 * rng.normal(size=(2, 1, 2, 16)).astype(np.float32)
  cache = KVCache(jnp.asarray(k), jnp.asarray(v))
  if dtype == "int8":
    slabs = [quantize(x.reshape(2, 9, 16), 2) for x in (k, v)]
    (kq, kf), (vq, vf) = [
      (q.reshape(shape), f.reshape(2, 1, 9, 2)) for q, f in slabs
    ]
    cache = KVCache(kq, vq, kf, vf)
    k, v = np.asarray(dequantize(kq, kf)), np.asarray(dequantize(vq, vf))
  cache = cache.replace(probe=jnp.asarray(probe))
  out = shrink_cache(config, cache, 8, window, budget, length=6)
  assert out.k.shape == (2, 1, 6, 16) and out.probe is None
  if dtype == "int8":
    out = KVCache(
      dequantize(out.k, out.k_scale), dequantize(out.v, out.v_scale)
    )
  for layer in range(2):
    for head in (slice(0, 8), slice(8, 16)):
      logits = probe[layer, 0][:, head] @ k[layer, 0, :8, head].T
      weights = np.exp(logits - logits.max(-1, keepdims=True))
      weights = (weights / weights.sum(-1, keepdims=True)).sum(0)
      weights[list(window)] = np.inf
      index = np.sort(np.argsort(-weights)[:budget])
      for ours, theirs in ((out.k, k), (out.v, v)):
        assert_close(ours[layer, 0, :4, head], theirs[layer, 0, index, head])


@pytest.mark.long
def test_the_sampler_draws_with_all_of_them():
  """Tokens and pictures come out, and nothing that is no number."""
  run = S.build_sampler(
    STAR,
    VAE,
    S.SamplerConfig(return_logits=True, accelerate=FLAGS["all"]),
    small=SMALL,
  )
  keys, knobs = S.sample_keys(7, np.arange(BATCH)), S.Knobs(CFG_SCALE)
  out = run(PARAMS, TEXT, NULL, keys, knobs)
  assert out.idx_BL.shape == (BATCH, 14)
  assert np.all(np.isfinite(out.image_BHW3))
  assert np.all(np.isfinite(out.logits_BLV))
  # The first scale is that of the plain sampler.
  assert_close(out.logits_BLV[:, 0], default()[:, 0])


@pytest.mark.parametrize(
  "settings, sentence",
  [
    (
      {"unguided_scales": -1},
      "unguided_scales is an integer 0 or more, got -1",
    ),
    ({"unguided_scales": 5}, r"from 0 to 3 \(the model has 3 scales\), got 5"),
    ({"cache_budget": 2.5}, "cache_budget is an integer 0 or more, got 2.5"),
    ({"keep_shares": (0.5, 0)}, r"shares in \(0, 1\] of the last scales"),
    ({"keep_shares": 0.5}, r"shares in \(0, 1\] of the last scales"),
    ({"keep_shares": (1,) * 3}, "the first one stays whole; got 3"),
    ({"int8_cache": 1}, "int8_cache is True or False, got 1"),
    ({"small_scales": 1}, "needs a second model of the same tokenizer"),
    ({"fast": True}, "Unknown setting of accelerate fast; known are unguided"),
  ],
)
def test_bad_settings_are_refused(settings, sentence):
  with pytest.raises(ValueError, match=sentence):
    config = S.SamplerConfig(accelerate=Accelerate.of(settings))
    S.build_sampler(STAR, VAE, config)


def test_a_second_model_of_another_tokenizer_is_refused():
  other = Star(
    testing.tiny_star_config(testing.tiny_tokenizer_config((1, 2)), TEXT_DIM)
  )
  config = S.SamplerConfig(accelerate=Accelerate(small_scales=1))
  with pytest.raises(ValueError, match="does not go with this one: its sched"):
    S.build_sampler(STAR, VAE, config, small=other)


def test_settings_come_back_from_what_is_recorded():
  everything = Accelerate(1, (0.5, 0.25), 6, True, 2, "abc")
  recorded = everything.to_dict()
  assert recorded["keep_shares"] == [0.5, 0.25]
  assert Accelerate.of(recorded) == everything
  assert Accelerate().to_dict() == {} and Accelerate.of(None) == Accelerate()
