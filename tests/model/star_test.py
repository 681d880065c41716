"""The transformer: cache, causality, batch independence, precision, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.presets import PRESETS
from star_jax.model.blocks import drop_path
from star_jax.model.cache import init_cache
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.scales import ScaleSchedule
from star_jax.shapes import parameter_tree
from star_jax.text.states import TextStates
from star_jax.train.flops import count_flops
from tests.cases import long_but

BATCH, TEXT_TOKENS = 3, 5
# These programs run once: compiling them is all the time there is.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}

CLASSES = {"num_classes": 5, "text_dim": 0, "cross_attention": False}

# Every switch of the model at least once away from its default.
VARIANTS = {
  "blocked": {
    "schedule": [1, [1, 2], [3, 4]],
    "query_block": 4,
    "remat": "layer",
  },
  "absolute": {"position": "absolute", "attn_l2_norm": False},
  "both positions": {"position": "rope+absolute"},
  "sinusoidal": {"position": "sinusoidal"},
  "level_norm": {
    "adaptive_norm": "level",
    "rope_coords": "paper",
    "legacy_batch0_cross_attention": True,
  },
  "block_norm_of_a_text": {"adaptive_norm": "block"},
  "classes": {**CLASSES, "adaptive_norm": "block", "position": "absolute"},
  "shared_norm": {
    **CLASSES,
    "adaptive_norm": "shared",
    "position": "absolute",
    "attn_l2_norm": False,
  },
  "bare": {
    "cross_attention": False,
    "lvl_embed": False,
    "logit_norm": False,
    "rope_norm": -1,
  },
}


def make_config(**changes) -> StarConfig:
  small = {**PRESETS["test"], "schedule": [1, 2, 3]}
  return StarConfig.from_dict({**small, **changes})


def make_inputs(config: StarConfig, batch: int = BATCH, seed: int = 0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(batch, config.schedule.num_tokens - 1, config.code_dim))
  if config.num_classes:
    label = rng.permutation(config.num_classes + 1)[:batch]
    return jnp.asarray(x, jnp.float32), jnp.asarray(label, jnp.int32)
  text = rng.normal(size=(batch, TEXT_TOKENS, config.text_dim))
  kept = rng.integers(1, TEXT_TOKENS + 1, size=(batch, 1))
  pooled = rng.normal(size=(batch, config.text_dim))
  return jnp.asarray(x, jnp.float32), TextStates(
    text_BTD=jnp.asarray(text, jnp.float32),
    text_mask_BT=jnp.asarray(np.arange(TEXT_TOKENS) < kept),
    pooled_BD=jnp.asarray(pooled, jnp.float32),
  )


@functools.cache
def make_params(config: StarConfig):
  """Random values in every parameter: nothing is hidden by a zero."""
  shapes = jax.eval_shape(
    Star(config).init, jax.random.key(0), *make_inputs(config)
  )
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
    shapes["params"],
  )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def forward(config, params, x, text):
  return Star(config).apply({"params": params}, x, text)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def decode(config, params, x, text):
  """Logits of all scales, decoded one after the other."""
  star, logits = Star(config), []
  condition = star.apply({"params": params}, text, method="condition")
  cache = init_cache(config, x.shape[0])
  for k, (begin, end) in enumerate(config.schedule.begin_ends):
    logits_BlV, cache = star.apply(
      {"params": params},
      k,
      x[:, begin - 1 : end - 1] if k else None,
      condition,
      cache,
      method="decode_scale",
    )
    logits.append(logits_BlV)
  return jnp.concatenate(logits, axis=1)


@pytest.mark.parametrize("variant", long_but(4, list(VARIANTS)))
def test_cached_decoding_equals_teacher_forcing(variant):
  config = make_config(**VARIANTS[variant])
  x, text = make_inputs(config)
  params = make_params(config)
  teacher = forward(config, params, x, text)
  assert teacher.shape == (BATCH, config.schedule.num_tokens, 32)
  np.testing.assert_allclose(
    decode(config, params, x, text), teacher, atol=1e-4
  )


@pytest.mark.parametrize("variant", ["blocked", "level_norm"])
def test_no_gradient_from_later_scales(variant):
  config = make_config(**VARIANTS[variant])
  x, text = make_inputs(config)
  params = make_params(config)

  def scale_sums(x):
    logits = Star(config).apply({"params": params}, x, text)
    return jnp.stack(
      [
        jnp.sum(jnp.sin(logits[:, begin:end]))
        for begin, end in config.schedule.begin_ends
      ]
    )

  grad_KBLCv = jax.jit(jax.jacrev(scale_sums), compiler_options=QUICK)(x)
  for k, (_, end) in enumerate(config.schedule.begin_ends):
    # Token i of x is what token i + 1 of the sequence sees.
    np.testing.assert_array_equal(grad_KBLCv[k, :, end - 1 :], 0.0)
    if k:
      assert (np.abs(grad_KBLCv[k, :, : end - 1]).max(-1) > 0).all()


@pytest.mark.parametrize("run", [forward, decode])
def test_a_sample_does_not_see_its_neighbours(run):
  config = make_config()
  params = make_params(config)
  x, text = make_inputs(config)
  other_x, other_text = make_inputs(config, seed=5)
  together = run(config, params, x, text)
  mixed = run(
    config,
    params,
    jnp.concatenate([other_x[:1], x[1:2], other_x[2:]]),
    jax.tree.map(
      lambda a, b: jnp.concatenate([a[:1], b[1:2], a[2:]]), other_text, text
    ),
  )
  np.testing.assert_allclose(mixed[1], together[1], atol=1e-5)
  alone = run(config, params, x[1:2], text[1:2])
  np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
  assert np.abs(mixed[0] - together[0]).max() > 0.1


def test_legacy_switch_gives_everybody_the_first_cross_attention():
  config = make_config(legacy_batch0_cross_attention=True)
  params = make_params(config)
  x, text = make_inputs(config)
  spoiled = text.replace(text_BTD=text.text_BTD.at[1:].add(1.0))
  np.testing.assert_array_equal(
    forward(config, params, x, text), forward(config, params, x, spoiled)
  )
  correct = dataclasses.replace(config, legacy_batch0_cross_attention=False)
  legacy, right = (forward(c, params, x, text) for c in (config, correct))
  np.testing.assert_allclose(legacy[0], right[0], atol=1e-5)
  assert np.abs(legacy[1] - right[1]).max() > 0.1


def test_text_reaches_every_scale_and_padding_none():
  config = make_config()
  params = make_params(config)
  x, text = make_inputs(config)
  mask_BT1 = text.text_mask_BT[..., None]
  logits = forward(config, params, x, text)
  padding = text.replace(text_BTD=jnp.where(mask_BT1, text.text_BTD, 9.0))
  np.testing.assert_array_equal(forward(config, params, x, padding), logits)
  words = text.replace(text_BTD=text.text_BTD.at[:, 0].add(1.0))
  moved = np.abs(forward(config, params, x, words) - logits).max(-1)
  assert (moved > 1e-3).all()
  start = text.replace(pooled_BD=text.pooled_BD + 1.0)
  moved = np.abs(forward(config, params, x, start) - logits).max(-1)
  assert (moved > 1e-3).all()


def test_text_without_any_token_gives_finite_logits():
  config = make_config()
  x, text = make_inputs(config)
  empty = text.replace(text_mask_BT=jnp.zeros_like(text.text_mask_BT))
  assert np.isfinite(forward(config, make_params(config), x, empty)).all()


@pytest.mark.parametrize("remat", long_but(1, ["dots", "layer", "attention"]))
def test_remat_and_blocks_change_no_gradient(remat):
  config = make_config()
  x, text = make_inputs(config)
  params = make_params(config)

  def grads(config):
    def loss(params):
      return jnp.mean(Star(config).apply({"params": params}, x, text) ** 2)

    return jax.jit(jax.grad(loss), compiler_options=QUICK)(params)

  other = make_config(remat=remat, query_block=5)
  for one, two in zip(
    jax.tree.leaves(grads(config)), jax.tree.leaves(grads(other))
  ):
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_remat_computes_again_what_it_says():
  def flops(remat):
    config = make_config(remat=remat)
    x, text = make_inputs(config)

    def loss(params):
      return jnp.mean(Star(config).apply({"params": params}, x, text) ** 2)

    return count_flops(jax.grad(loss), parameter_tree(Star(config)))

  config = make_config()
  tokens = BATCH * config.schedule.num_tokens
  # C x C of q, k, v and the output, both of cross-attention and four of the
  # first half of the MLP; nothing needs the output of the second half again.
  weights = (3 + 1 + 2 + 4) * config.width**2 * config.depth
  assert flops("layer") - flops("dots") == 2 * tokens * weights
  # Attention itself, which is no product with weights.
  assert flops("dots") > flops("none")


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 3))
  out = np.asarray(drop_path(x, jnp.float32(0.25), jax.random.key(0)))
  assert set(np.unique(out.reshape(4000, -1).std(1))) == {0.0}
  np.testing.assert_allclose(np.unique(out), [0.0, 1 / 0.75], rtol=1e-6)
  assert abs(out.mean() - 1.0) < 0.03


def test_drop_path_grows_from_zero_at_the_first_layer():
  def train(config):
    params, (x, text) = make_params(config), make_inputs(config)

    def run(seed):
      rngs = {"drop_path": jax.random.key(seed)}
      return Star(config).apply(
        {"params": params}, x, text, deterministic=False, rngs=rngs
      )

    run = jax.jit(run, compiler_options=QUICK)
    return np.stack([run(seed) for seed in range(4)])

  # The only layer of a one-layer model has rate 0, the last of two has 0.5.
  one = train(make_config(depth=1, drop_path_rate=0.5))
  np.testing.assert_array_equal(one[1:], one[:-1])
  two = train(make_config(depth=2, drop_path_rate=0.5))
  assert np.abs(two - two[0]).max() > 0.1


def test_the_program_does_not_grow_with_depth():
  sizes = []
  for depth in (2, 6):
    config = make_config(depth=depth)
    lowered = forward.lower(config, make_params(config), *make_inputs(config))
    sizes.append(len(lowered.as_text().splitlines()))
  assert sizes[0] == sizes[1]


def test_cache_is_updated_in_place():
  """Decoding a middle scale holds the cache once, not once per use."""
  config = make_config(depth=4, width=64, schedule=[1, 2, 12, 2, 12])
  _, text = make_inputs(config)
  params = make_params(config)
  cache = init_cache(config, BATCH)
  star, x_BlCv = Star(config), jnp.zeros((BATCH, 4, config.code_dim))

  def step(params, x_BlCv, text, cache):
    condition = star.apply({"params": params}, text, method="condition")
    return star.apply(
      {"params": params}, 3, x_BlCv, condition, cache,
      method="decode_scale",
    )  # fmt: skip

  compiled = (
    jax.jit(step, donate_argnums=3).lower(params, x_BlCv, text, cache).compile()
  )
  shape = ",".join(map(str, cache.k.shape))
  copies = [
    line
    for line in compiled.as_text().splitlines()
    if f"= f32[{shape}]" in line and " copy(" in line
  ]
  assert not copies, copies
  memory = compiled.memory_analysis()
  cache_bytes = 2 * cache.k.size * 4
  assert memory.alias_size_in_bytes >= cache_bytes
  assert memory.temp_size_in_bytes < cache_bytes


def test_the_last_scale_leaves_the_cache_alone():
  config = make_config()
  x, text = make_inputs(config)
  params, star = make_params(config), Star(config)

  def step(k, cache):
    condition = star.apply({"params": params}, text, method="condition")
    return star.apply(
      {"params": params}, k, x[:, -9:], condition, cache,
      method="decode_scale",
    )  # fmt: skip

  cache = jax.tree.map(lambda z: z + 1.0, init_cache(config, BATCH))
  assert cache.k.shape == (2, BATCH, 1 + 4, 32)
  last = jax.jit(functools.partial(step, 2), compiler_options=QUICK)
  _, after = last(cache)
  np.testing.assert_array_equal(after.k, cache.k)
  np.testing.assert_array_equal(after.v, cache.v)
  with pytest.raises(ValueError, match=r"in \[0, 3\), got 3"):
    step(3, cache)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_precision_in_the_lowered_program(platform):
  """bfloat16 model: head and embeddings at HIGHEST, rotation in float32."""
  config = make_config(dtype="bfloat16", vocab_size=77)
  x, text = make_inputs(config)
  lowered = forward.trace(config, make_params(config), x, text).lower(
    lowering_platforms=(platform,)
  )
  lines = lowered.as_text().splitlines()
  dots = [line for line in lines if "dot_general" in line]
  float32_dots = [d for d in dots if "bf16" not in d]
  assert len(float32_dots) == 3  # start token, code vectors, head
  assert all("precision = [HIGHEST, HIGHEST]" in d for d in float32_dots)
  assert any("77xf32>" in d.split("->")[-1] for d in float32_dots)
  # Softmax, rotation and its tables: no bf16 exponential, nothing computed
  # from angles on the device.
  assert not any("exponential" in s and "bf16" in s for s in lines)
  assert not any("stablehlo.cosine" in s or ".sine" in s for s in lines)
  planes = f"x{config.head_dim // 2}xbf16>"
  assert not any(planes in s and "multiply" in s for s in lines)


def test_bfloat16_stays_close_to_float32():
  config = make_config(width=64)
  x, text = make_inputs(config)
  params = make_params(config)
  exact = forward(config, params, x, text)
  rough = forward(make_config(width=64, dtype="bfloat16"), params, x, text)
  assert rough.dtype == jnp.float32
  error = np.abs(rough - exact)
  assert 0 < error.mean() < 0.03 * np.std(exact), error.mean()


# Published parameter counts, rounded as published.
SIZES = {
  "star_d16": (274, 0.5),
  "star_d30": (1680, 5),
  "var_d16": (310, 0.5),
  "var_d20": (600, 1),
  "var_d24": (1000, 50),
  "var_d30": (2000, 50),
  "var_d36": (2300, 60),
}


@pytest.mark.parametrize("preset", SIZES)
def test_published_sizes(preset):
  config = StarConfig.from_dict(PRESETS[preset])
  tokens = config.schedule.num_tokens
  x = jax.ShapeDtypeStruct((2, tokens - 1, config.code_dim), jnp.float32)
  given = jax.ShapeDtypeStruct((2,), jnp.int32)
  if config.text_dim:
    given = TextStates(
      text_BTD=jax.ShapeDtypeStruct((2, 77, config.text_dim), jnp.float32),
      text_mask_BT=jax.ShapeDtypeStruct((2, 77), bool),
      pooled_BD=jax.ShapeDtypeStruct((2, config.text_dim), jnp.float32),
    )
  star = Star(config)
  variables = jax.eval_shape(star.init, jax.random.key(0), x, given)
  logits = jax.eval_shape(star.apply, variables, x, given)
  assert (logits.shape, logits.dtype) == ((2, tokens, 4096), jnp.float32)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables)) / 1e6
  millions, rounding = SIZES[preset]
  assert abs(count - millions) <= rounding, count
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_a_single_scale_is_a_start_token_only():
  config = make_config(schedule=[1])
  _, text = make_inputs(config)
  x = jnp.zeros((BATCH, 0, config.code_dim))
  params = make_params(config)
  logits = forward(config, params, x, text)
  assert logits.shape == (BATCH, 1, config.vocab_size)
  np.testing.assert_allclose(decode(config, params, x, text), logits, atol=1e-5)


def test_scale_schedule_is_the_only_source_of_lengths():
  config = make_config(schedule=ScaleSchedule(((1, 1), (2, 5))))
  assert init_cache(config, 2, jnp.bfloat16).v.shape == (2, 2, 1, 32)
