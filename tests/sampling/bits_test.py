"""A head of bits: loss, likelihood, draws, filters, from bundle to picture."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import star_jax
from star_jax import bits, testing
from star_jax.model.refine import RefineConfig
from star_jax.model.star import Star
from star_jax.sampling import logits as logit_ops
from star_jax.sampling import sampler as S
from star_jax.sampling.likelihood import build_log_prob
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train import losses

QUICK = {"xla_backend_optimization_level": 0}
TOKENIZER = dataclasses.replace(
  testing.tiny_tokenizer_config(vocab_size=16), quantizer="bsq"
)
STAR = testing.tiny_star_config(TOKENIZER, head="bits")


def test_losses_are_those_of_all_codes():
  rng = np.random.default_rng(0)
  logits_BLn = 2 * rng.standard_normal((2, 5, 3)).astype(np.float32)
  idx_BL = rng.integers(0, 8, (2, 5))
  codes = np.asarray(bits.unpack(np.arange(8), 3))
  p_BLn = 1 / (1 + np.exp(-logits_BLn))
  p_BLV = np.prod(
    np.where(codes, p_BLn[..., None, :], 1 - p_BLn[..., None, :]), axis=-1
  )
  np.testing.assert_allclose(p_BLV.sum(-1), 1, rtol=1e-6)
  run = jax.jit(losses.bit_losses, compiler_options=QUICK)
  loss_BL, hit_BL = run(logits_BLn, idx_BL)
  picked = np.take_along_axis(p_BLV, idx_BL[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss_BL, -np.log(picked), rtol=1e-5)
  np.testing.assert_array_equal(hit_BL, p_BLV.argmax(-1) == idx_BL)


def test_bits_are_drawn_with_their_probabilities():
  logits_Bln = np.tile(np.float32([[-1.0, 0.3, 2.0]]), (1, 4000, 1))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def draw(top_k, top_p):
    pairs = logit_ops.bit_pairs(logits_Bln)
    pairs = logit_ops.filter_top_k(pairs, top_k)
    pairs = logit_ops.filter_top_p(pairs, top_p)
    keys = jax.random.split(jax.random.key(0), 1)
    noise = logit_ops.gumbel_noise(keys, pairs.shape[1:])
    return logit_ops.draw(pairs, noise)[0]

  p = 1 / (1 + np.exp(-logits_Bln[0, 0]))
  np.testing.assert_allclose(draw(0, 1.0).mean(0), p, atol=0.03)
  np.testing.assert_array_equal(draw(0, 1.0), draw(2, 1.0))
  np.testing.assert_array_equal(draw(1, 1.0).mean(0), [0, 1, 1])
  # 12% and 27% of the rarer value: the first is removed at 0.8.
  nucleus = draw(0, 0.8).mean(0)
  assert nucleus[2] == 1 and 0.2 < nucleus[0] < 0.35


@pytest.fixture(scope="module")
def tiny():
  star, vqvae = Star(STAR), VQVAE(TOKENIZER)
  params = {
    "star": testing.random_params(star, seed=1),
    "tokenizer": testing.random_params(vqvae, seed=2),
  }
  return star, vqvae, params


def test_likelihoods_of_the_first_token_sum_to_one(tiny):
  """All 16 tokens of the first scale, the others being what they are."""
  star, vqvae, params = tiny
  idx_BL = np.zeros((16, STAR.schedule.num_tokens), np.int32)
  idx_BL[:, 0] = np.arange(16)
  text = testing.random_text(1, 5, STAR.text_dim)[np.zeros(16, int)]
  log_p_BK = build_log_prob(star, vqvae)(params, idx_BL, text)
  assert log_p_BK.shape == (16, 3)
  np.testing.assert_allclose(np.exp(log_p_BK[:, 0]).sum(), 1, rtol=1e-5)


@pytest.mark.long
def test_draws_follow_the_guided_logits_and_a_sample_is_its_own(tiny):
  star, vqvae, params = tiny
  run = S.build_sampler(star, vqvae, S.SamplerConfig(return_logits=True))
  text = testing.random_text(4, 5, STAR.text_dim, seed=3)
  null = testing.random_text(1, 5, STAR.text_dim, seed=4)
  keys = S.sample_keys(7, np.arange(4))
  knobs = S.Knobs(cfg_scale=2.0, top_k=1)
  out = run(params, text, null, keys, knobs)
  assert out.logits_BLV.shape == (4, 14, 4)
  np.testing.assert_array_equal(out.idx_BL, bits.pack(out.logits_BLV > 0))
  # The same scale by scale: the picture is that of the tokens.
  image = jax.jit(
    lambda p, idx: vqvae.apply({"params": p}, idx, method="tokens_to_image")
  )(params["tokenizer"], out.idx_BL)
  np.testing.assert_allclose(out.image_BHW3, image, atol=1e-4)
  free = S.Knobs(cfg_scale=2.0)
  drawn = run(params, text, null, keys, free).idx_BL
  order = np.array([2, 0, 3, 1])
  again = run(params, text[order], null, keys[order], free).idx_BL
  np.testing.assert_array_equal(again, drawn[order])
  assert len(np.unique(drawn, axis=0)) == 4


@pytest.mark.long
@pytest.mark.parametrize("name", ["bsq", "fsq", "lfq"])
def test_a_bundle_draws_and_scores(tmp_path, name):
  """From disk to pictures; codes of levels with a softmax."""
  levels = {"levels": (4, 4), "code_dim": 2} if name == "fsq" else {}
  config = dataclasses.replace(
    testing.tiny_tokenizer_config(vocab_size=16),
    quantizer=name,
    learned_gains=True,
    **levels,
  )
  head = "softmax" if name == "fsq" else "bits"
  testing.save_tiny_class_bundle(tmp_path, tokenizer_config=config, head=head)
  star = star_jax.load(tmp_path)
  assert star.bundle.tokenizer_config == config
  assert star.bundle.star_config.head == head
  drawn = star.sample(["aa", "cc"], seed=1, return_tokens=True)
  assert [image.size for image in drawn.images] == [(12, 12)] * 2
  score = star.log_prob(drawn.tokens_BL[0], "aa", per_scale=True)
  assert score.shape == (3,) and np.all(score < 0)
  tokens = star.encode(drawn.images[0])
  assert tokens.shape == (14,) and tokens.max() < 16
  if name == "bsq":
    again = star.redraw(drawn.recipes[1]).tokens_BL
    np.testing.assert_array_equal(again[0], drawn.tokens_BL[1])
    with pytest.raises(ValueError, match="gumbel_smooth mixes codes"):
      star.sample("aa", gumbel_smooth=True)


@pytest.mark.long
def test_token_by_token():
  star = Star(dataclasses.replace(STAR, prediction="token"))
  vqvae = VQVAE(TOKENIZER)
  params = {
    "star": testing.random_params(star, seed=1),
    "tokenizer": testing.random_params(vqvae, seed=2),
  }
  run = S.build_sampler(star, vqvae, S.SamplerConfig(return_logits=True))
  text = testing.random_text(2, 5, STAR.text_dim, seed=3)
  keys = S.sample_keys(7, np.arange(2))
  knobs = S.Knobs(cfg_scale=1.0, top_k=1)
  out = run(params, text, text[:1], keys, knobs)
  np.testing.assert_array_equal(out.idx_BL, bits.pack(out.logits_BLV > 0))


def test_refusals():
  with pytest.raises(ValueError, match="code_dim = 4 vocab_size is 16, got 24"):
    dataclasses.replace(STAR, vocab_size=24)
  with pytest.raises(ValueError, match="head"):
    dataclasses.replace(STAR, head="bit")
  vq = dataclasses.replace(TOKENIZER, quantizer="vq")
  with pytest.raises(ValueError, match="'lfq' or 'bsq', got 'vq'"):
    S.check_pair(Star(STAR), VQVAE(vq))
  with pytest.raises(ValueError, match="refinement head predicts whole tokens"):
    RefineConfig(first_scale=1).check(STAR)


def test_head_survives_json_and_softmax_is_left_out():
  again = type(STAR).from_dict(STAR.to_dict())
  assert again == STAR and again.num_logits == 4
  assert "head" not in dataclasses.replace(STAR, head="softmax").to_dict()
  shapes = [
    testing.random_params(Star(dataclasses.replace(STAR, head=head)))["head"][
      "kernel"
    ].shape
    for head in ("softmax", "bits")
  ]
  assert shapes == [(16, 16), (16, 4)]
