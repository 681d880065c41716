"""FSQ, LFQ and BSQ: codes by hand, bijection, gradients, entropies."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import bits
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer import codebook
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.growth import grow_tokenizer
from star_jax.tokenizer.quantizer import Quantizer
from star_jax.tokenizer.scale_quantizers import entropy_loss

VQ = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, (2, 3), (3, 5)]),
  vocab_size=16,
  code_dim=4,
  ch=8,
  ch_mult=(1,),
  num_res_blocks=1,
  share_quant_resi=2,
)
CONFIGS = {
  "fsq": dataclasses.replace(
    VQ, quantizer="fsq", levels=(3, 4, 5), code_dim=3, vocab_size=60
  ),
  "lfq": dataclasses.replace(VQ, quantizer="lfq"),
  "bsq": dataclasses.replace(VQ, quantizer="bsq"),
}
CONFIGS |= {
  f"{name}-gains": dataclasses.replace(config, learned_gains=True)
  for name, config in CONFIGS.items()
}
EACH = pytest.mark.parametrize("name", CONFIGS)
BATCH = 3
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def setup(config):
  """A quantizer, random parameters, features."""
  quantizer, rng = Quantizer(config), np.random.default_rng(0)
  shape = (BATCH, *config.schedule.final_grid, config.code_dim)
  f_BhwCv = 0.8 * rng.standard_normal(shape).astype(np.float32)
  shapes = jax.eval_shape(quantizer.init, jax.random.key(1), f_BhwCv)
  params = jax.tree.map(
    lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32),
    dict(shapes).get("params", {}),
  )
  return quantizer, params, f_BhwCv


@functools.partial(
  jax.jit, static_argnames=("quantizer", "method", "k"), compiler_options=QUICK
)
def run(quantizer, params, *args, method=None, **options):
  return quantizer.apply({"params": params}, *args, method=method, **options)


@EACH
def test_every_token_is_the_nearest_one_of_its_own_code(name):
  quantizer, params, _ = setup(CONFIGS[name])
  idx = np.arange(quantizer.config.vocab_size)
  for k in (0, 2):
    codes = np.asarray(run(quantizer, params, idx, method="codes", k=k))
    assert len(np.unique(codes, axis=0)) == len(idx)
    again = run(quantizer, params, codes, method="nearest", k=k)
    np.testing.assert_array_equal(again, idx)


@EACH
def test_chosen_codes_are_the_nearest(name):
  """Of bsq: the nearest on the sphere, which is the nearest all the same."""
  quantizer, params, _ = setup(CONFIGS[name])
  c = quantizer.config
  z_NCv = np.random.default_rng(3).standard_normal((200, c.code_dim))
  idx = np.arange(c.vocab_size)
  codes = np.asarray(run(quantizer, params, idx, method="codes", k=1))
  distance = np.square(z_NCv[:, None] - codes).sum(-1)
  got = run(quantizer, params, z_NCv.astype(np.float32), method="nearest", k=1)
  np.testing.assert_allclose(
    distance[np.arange(200), got], distance.min(1), rtol=1e-5
  )


def test_sizes_of_codes():
  for name, size in (("lfq", 2.0), ("bsq", 1.0)):
    quantizer, params, _ = setup(CONFIGS[name])
    codes = run(quantizer, params, np.arange(16), method="codes")
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), size, rtol=1e-6)
    assert np.all(np.sign(codes[5]) == [1, -1, 1, -1])


@pytest.mark.parametrize("levels", [(5, 5), (4, 8), (3, 6)])
def test_a_single_scale_is_the_fsq_of_the_paper(levels):
  """arXiv 2309.15505, appendix A.1, in numpy."""
  config = dataclasses.replace(
    CONFIGS["fsq"],
    schedule=ScaleSchedule.from_patch_nums([(3, 5)]),
    levels=levels,
    code_dim=2,
    vocab_size=levels[0] * levels[1],
    quant_resi=0.0,
  )
  quantizer, params, f = setup(config)
  f = 2 * f
  half = (np.asarray(levels) - 1) / 2
  offset = np.where(np.asarray(levels) % 2 == 1, 0.0, 0.5)
  bounded = np.tanh(f + np.arctanh(offset / half)) * half - offset
  want = np.round(bounded) / (np.asarray(levels) // 2)
  weight = np.random.default_rng(1).standard_normal(f.shape)

  @functools.partial(jax.jit, compiler_options=QUICK)
  @functools.partial(jax.value_and_grad, has_aux=True)
  def both(f):
    out = quantizer.apply({"params": params}, f)
    return jnp.sum(out.f_hat_BhwCv * weight), out

  (_, out), gradient = both(f)
  np.testing.assert_allclose(out.f_hat_BhwCv, want, atol=1e-6)
  slope = half / (np.asarray(levels) // 2)
  slope = slope * (1 - np.tanh(f + np.arctanh(offset / half)) ** 2)
  np.testing.assert_allclose(gradient, weight * slope, rtol=1e-4, atol=1e-6)


@EACH
def test_training_encoding_and_decoding_agree(name):
  quantizer, params, f = setup(CONFIGS[name])

  @functools.partial(jax.jit, compiler_options=QUICK)
  def everything(params, f):
    def apply(x, method=None):
      return quantizer.apply({"params": params}, x, method=method)

    idx_BL = apply(f, "encode")
    weights = jax.nn.one_hot(idx_BL[:, 1:7], quantizer.config.vocab_size)
    contributions = [
      quantizer.apply({"params": params}, 1, x, method="contribution")
      for x in (idx_BL[:, 1:7], weights)
    ]
    return apply(f), idx_BL, apply(idx_BL, "tokens_to_f_hat"), contributions

  out, idx_BL, f_hat, (hard, soft) = everything(params, f)
  np.testing.assert_array_equal(out.idx_BL, idx_BL)
  np.testing.assert_allclose(f_hat, out.f_hat_BhwCv, atol=1e-5)
  np.testing.assert_allclose(hard, soft, atol=1e-5)
  assert np.unique(idx_BL).size > 3
  np.testing.assert_array_equal(out.usage_KV.sum(1), [3, 18, 45])


@EACH
def test_gradients_pass_straight_through_and_the_loss_trains_the_rest(name):
  quantizer, params, f = setup(CONFIGS[name])
  weight = np.random.default_rng(5).standard_normal(f.shape)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def gradients(params, f):
    def picture(params, f):
      out = quantizer.apply({"params": params}, f)
      return jnp.sum(out.f_hat_BhwCv * weight)

    def loss(params):
      return quantizer.apply({"params": params}, f).vq_loss

    return jax.grad(picture, argnums=(0, 1))(params, f), jax.grad(loss)(params)

  (by_params, by_f), of_loss = gradients(params, f)
  if name != "fsq":  # which squeezes features first
    np.testing.assert_allclose(by_f, weight, rtol=1e-5, atol=1e-6)
  assert not any(np.any(x) for x in jax.tree.leaves(by_params))
  assert all(np.any(x) for x in jax.tree.leaves(of_loss))
  assert ("log_gain_KCv" in of_loss) == name.endswith("gains")


def soft_codes(logits_Nn):
  """Every code's probability by brute force, [N, 2^n]."""
  codes = np.array(list(itertools.product([0, 1], repeat=logits_Nn.shape[1])))
  p = 1 / (1 + np.exp(-logits_Nn))[:, None]
  return np.prod(np.where(codes, p, 1 - p), axis=-1)


def entropy(p):
  return -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1)


def test_entropies_are_those_of_all_codes_or_of_the_bits():
  logits = np.random.default_rng(0).standard_normal((30, 4)) * 3
  q = soft_codes(logits)
  each = entropy(q).mean()
  loss = jax.jit(entropy_loss, static_argnums=1, compiler_options=QUICK)
  got = loss(logits.astype(np.float32), 4, 0.7)
  np.testing.assert_allclose(got, each - 0.7 * entropy(q.mean(0)), rtol=1e-5)
  p = (1 / (1 + np.exp(-logits))).mean(0)
  bound = entropy(np.stack([p, 1 - p], -1)).sum()
  got = loss(logits.astype(np.float32), 1, 0.7)
  np.testing.assert_allclose(got, each - 0.7 * bound, rtol=1e-5)
  assert bound >= entropy(q.mean(0))


def test_entropy_loss_stays_finite_far_away():
  """Logits of the default temperature are in the hundreds."""
  loss = jax.value_and_grad(lambda logits: entropy_loss(logits, 2, 1.0))
  value, gradient = jax.jit(loss, compiler_options=QUICK)(
    np.float32([[900, -900], [-900, 0.1]])
  )
  assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_entropy_weight_adds_its_term_and_reaches_the_features(name):
  config = dataclasses.replace(CONFIGS[name], beta=0.0, entropy_temperature=1.0)
  weighted = dataclasses.replace(config, entropy_weight=0.5, entropy_group=2)
  plain, params, f = setup(config)
  quantizer = Quantizer(weighted)

  @functools.partial(jax.jit, compiler_options=QUICK)
  @jax.value_and_grad
  def loss(f):
    return quantizer.apply({"params": params}, f).vq_loss

  value, gradient = loss(f)
  without = run(plain, params, f)
  terms = run(quantizer, params, f).terms
  assert set(terms) == {"codebook", "commitment", "entropy"}
  np.testing.assert_allclose(
    value, without.vq_loss + 0.5 * terms["entropy"], rtol=1e-5
  )
  assert np.any(gradient) and np.all(np.isfinite(gradient))


@pytest.mark.long
def test_gains_from_the_data_are_the_best_ones():
  """Of signs: the mean size of each channel; on the sphere one for all."""
  rng = np.random.default_rng(0)
  for name in ("lfq-gains", "bsq-gains", "fsq-gains"):
    config = dataclasses.replace(CONFIGS[name], quant_resi=0.0)
    quantizer, params, _ = setup(config)
    width = config.code_dim
    f = rng.standard_normal((40, 3, 5, width)) * np.geomspace(0.1, 3, width)
    f = f.astype(np.float32)
    started = codebook.init_codes_from_features(
      {"quantizer": params}, f, jax.random.key(0), config
    )["quantizer"]
    gains = np.exp(started["log_gain_KCv"])
    assert gains.shape == (3, 1 if name == "bsq-gains" else width)
    if name == "lfq-gains":
      want = np.abs(f.mean((1, 2))).mean(0)
      np.testing.assert_allclose(gains[0], want, rtol=0.1)
    before, after = (
      np.square(f - run(quantizer, p, f).f_hat_BhwCv).mean()
      for p in (params, started)
    )
    # One gain for channels of such different sizes cannot do much.
    assert after < (1 if name == "bsq-gains" else 0.8) * before


@pytest.mark.parametrize("name", ["lfq", "bsq-gains"])
def test_self_correction_without_flips_is_the_plain_path(name):
  quantizer, params, f = setup(CONFIGS[name])
  keys = jax.random.split(jax.random.key(0), BATCH)
  idx_BL, x_BLCv = run(quantizer, params, f, keys, 0.0, method="self_correct")
  plain = run(quantizer, params, f, method="encode")
  np.testing.assert_array_equal(idx_BL, plain)
  want = run(quantizer, params, plain, method="teacher_forcing_input")
  np.testing.assert_allclose(x_BLCv, want, atol=1e-5)


@pytest.mark.parametrize("name", ["lfq", "bsq-gains"])
def test_targets_correct_what_was_flipped(name):
  """Scale by scale by hand: what is left of f after the flipped tokens."""
  quantizer, params, f = setup(CONFIGS[name])
  schedule = quantizer.config.schedule
  keys = jax.random.split(jax.random.key(0), BATCH)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def by_hand(params, f):
    def apply(*args, method):
      return quantizer.apply({"params": params}, *args, method=method)

    f_hat, idx, read, flipped = jnp.zeros_like(f), [], [], []
    for k in range(schedule.num_scales):
      z_BlCv = apply(k, f - f_hat, method="scale_input")
      z_NCv = z_BlCv.reshape(-1, z_BlCv.shape[-1])
      idx.append(apply(z_NCv, k, method="nearest").reshape(BATCH, -1))
      fold = functools.partial(jax.random.fold_in, data=k)
      scale_keys = jax.vmap(fold)(keys)
      flipped.append(bits.flip(idx[-1], scale_keys, 0.5, 4))
      f_hat, x = apply(k, f_hat, flipped[-1], method="next_scale_input")
      read += [] if x is None else [x]
    return [jnp.concatenate(x, 1) for x in (idx, flipped, read)]

  want, flipped, read = by_hand(params, f)
  assert np.any(want != flipped)
  idx_BL, x_BLCv = run(quantizer, params, f, keys, 0.5, method="self_correct")
  np.testing.assert_array_equal(idx_BL, want)
  np.testing.assert_allclose(x_BLCv, read, atol=1e-5)
  plain = run(quantizer, params, f, method="encode")
  np.testing.assert_array_equal(idx_BL[:, 0], plain[:, 0])
  assert np.any(idx_BL != plain)
  # Each sample by its own key.
  alone = run(quantizer, params, f[1:2], keys[1:2], 0.5, method="self_correct")
  np.testing.assert_array_equal(alone[0], idx_BL[1:2])


def test_only_bits_are_corrected():
  quantizer, params, f = setup(VQ)
  with pytest.raises(ValueError, match="quantizer 'vq' do not have; 'lfq'"):
    run(quantizer, params, f, None, 0.5, method="self_correct")


@pytest.mark.parametrize("name", ["vq", "bsq"])
def test_dropped_scales_end_with_an_earlier_one(name):
  config = dataclasses.replace(
    CONFIGS.get(name, VQ), scale_dropout=0.7, share_quant_resi=1
  )
  _, params, f = setup(config)
  quantizer, f = Quantizer(config), np.tile(f, (8, 1, 1, 1))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def both(params, f):
    rngs = {"dropout": jax.random.key(0)}
    train = quantizer.apply({"params": params}, f, train=True, rngs=rngs)
    plain = quantizer.apply({"params": params}, f)
    f_hats = quantizer.apply(
      {"params": params}, plain.idx_BL, method="tokens_to_f_hats"
    )
    return train, plain, f_hats

  train, plain, f_hats_K = both(params, f)
  np.testing.assert_allclose(plain.f_hat_BhwCv, f_hats_K[-1], atol=1e-5)
  error_KB = np.abs(train.f_hat_BhwCv - f_hats_K).max((2, 3, 4))
  last_B = error_KB.argmin(0)
  assert error_KB.min(0).max() < 1e-5
  assert set(last_B) == {0, 1, 2}
  # Tokens and losses are those of all scales.
  np.testing.assert_array_equal(train.idx_BL, plain.idx_BL)
  np.testing.assert_allclose(train.vq_loss, plain.vq_loss, rtol=1e-6)


def test_gains_go_with_a_scale_that_grows():
  config = CONFIGS["lfq-gains"]
  _, params, _ = setup(config)
  schedule = ScaleSchedule.from_patch_nums([1, (2, 3), (3, 5), (6, 10)])
  grown = grow_tokenizer(config, {"quantizer": params}, schedule, phi="side")
  gains = grown.params["quantizer"]["log_gain_KCv"]
  assert gains.shape == (4, 4)
  np.testing.assert_allclose(gains[:3], params["log_gain_KCv"], rtol=1e-6)


def test_many_bits_are_counted_by_the_first_ones():
  config = dataclasses.replace(
    CONFIGS["bsq"], code_dim=24, vocab_size=2**24, quant_resi=0.0
  )
  quantizer, params, f = setup(config)
  out = run(quantizer, params, f)
  assert out.usage_KV.shape == (3, 2**16)
  np.testing.assert_array_equal(out.usage_KV.sum(1), [3, 18, 45])
  assert out.idx_BL.max() >= 2**16


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("fsq", {"vocab_size": 64}, "make 60 codes, vocab_size is 64"),
    ("fsq", {"code_dim": 4}, "code_dim is 4, got 3 levels"),
    ("fsq", {"levels": (2, 5, 6)}, "integers from 3 on"),
    ("lfq", {"vocab_size": 32}, "code_dim = 4 vocab_size is 16, got 32"),
    ("bsq", {"code_dim": 5}, "code_dim = 5 vocab_size is 32, got 16"),
    ("bsq", {"code_dim": 31, "vocab_size": 2**31}, "at most 30 bits"),
    ("bsq", {"entropy_group": 3}, "divisor of code_dim = 4"),
    ("lfq", {"entropy_temperature": 0.0}, "above 0"),
    ("lfq", {"using_znorm": True}, "using_znorm is for quantizer vq"),
    ("fsq", {"entropy_weight": 0.1}, "is for quantizer lfq, bsq"),
    ("bsq", {"levels": (3,)}, "levels is for quantizer fsq"),
    ("bsq", {"quantizer": "pq"}, "quantizer is one of vq, fsq"),
    ("bsq", {"scale_dropout": 1.0}, r"share in \[0, 1\)"),
    ("bsq", {"kl_weight": 1.0}, "kl_weight is for quantizer none"),
    ("bsq", {"decoder_norm": "batch"}, "one of group, spatial"),
  ],
)
def test_refusals(name, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIGS[name], **changes)


@EACH
def test_settings_survive_json_and_older_ones_stay_as_they_were(name):
  config = CONFIGS[name]
  assert VQVAEConfig.from_dict(config.to_dict()) == config
  assert "quantizer" in config.to_dict()
  assert not {"quantizer", "levels", "scale_dropout"} & set(VQ.to_dict())
