"""The sampler: per sample, equal to teacher forcing, without recompiling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import testing
from star_jax.model.star import Star
from star_jax.sampling import sampler as S
from star_jax.tokenizer.vqvae import VQVAE

T, D = 5, 12


class Tiny:
  """A random model with its tokenizer and some text."""

  def __init__(self, patch_nums, vocab_size, batch, **star_overrides):
    tokenizer = testing.tiny_tokenizer_config(patch_nums, vocab_size)
    self.vqvae = VQVAE(tokenizer)
    self.star = Star(testing.tiny_star_config(tokenizer, D, **star_overrides))
    self.schedule = tokenizer.schedule
    self.params = jax.device_put(
      {
        "star": testing.random_params(self.star, seed=1),
        "tokenizer": testing.random_params(self.vqvae, seed=2),
      }
    )
    self.text = testing.random_text(batch, T, D, seed=3)
    self.null = testing.random_text(1, T, D, seed=4)
    self._teacher_forced = jax.jit(self._both_passes)

  def sampler(self, **options):
    return S.build_sampler(self.star, self.vqvae, S.SamplerConfig(**options))

  def guided_logits(self, idx_BL, text, cfg_scale):
    """Logits of the plain training pass, mixed here, float64 [B, L, V]."""
    cond, null = self._teacher_forced(jnp.asarray(idx_BL), text)
    ratio_L = self.schedule.level_ids / (self.schedule.num_scales - 1)
    t_L = cfg_scale * ratio_L[:, None]
    return (1 + t_L) * np.asarray(cond, np.float64) - t_L * np.asarray(null)

  def _both_passes(self, idx_BL, text):
    x_BLCv = self.vqvae.apply(
      {"params": self.params["tokenizer"]},
      idx_BL,
      method="teacher_forcing_input",
    )
    variables = {"params": self.params["star"]}
    null = jax.tree.map(lambda x: jnp.repeat(x, len(idx_BL), axis=0), self.null)
    return tuple(self.star.apply(variables, x_BLCv, t) for t in (text, null))


@pytest.fixture(scope="module")
def tiny():
  return Tiny((1, 2, 3), 24, batch=8)


@pytest.fixture(scope="module")
def guided_run(tiny):
  run = tiny.sampler(return_logits=True)
  knobs = S.Knobs(cfg_scale=3.0, temperature=0.9, top_k=20, top_p=0.95)
  keys = S.sample_keys(7, np.arange(8))
  return run, knobs, keys, run(tiny.params, tiny.text, tiny.null, keys, knobs)


def test_a_sample_is_the_same_at_batch_1_3_and_8(tiny, guided_run):
  run, knobs, keys, full = guided_run
  for size in (1, 3):
    rows = slice(8 - size, 8)
    part = run(tiny.params, tiny.text[rows], tiny.null, keys[rows], knobs)
    np.testing.assert_array_equal(part.idx_BL, full.idx_BL[rows])
    np.testing.assert_allclose(
      part.image_BHW3, full.image_BHW3[rows], atol=1e-4
    )
  assert len(np.unique(full.idx_BL, axis=0)) == 8


def test_logits_equal_the_teacher_forced_pass_on_the_drawn_tokens(
  tiny, guided_run
):
  _, knobs, _, out = guided_run
  expected = tiny.guided_logits(out.idx_BL, tiny.text, knobs.cfg_scale)
  np.testing.assert_allclose(out.logits_BLV, expected, atol=2e-4)


def test_pictures_are_those_of_the_tokens(tiny, guided_run):
  _, _, _, out = guided_run

  @jax.jit
  def pictures(idx_BL):
    variables = {"params": tiny.params["tokenizer"]}
    f_hats = tiny.vqvae.apply(variables, idx_BL, method="tokens_to_f_hats")
    first_and_last = jnp.concatenate([f_hats[0], f_hats[-1]])
    return tiny.vqvae.apply(variables, first_and_last, method="decode")

  first, last = np.split(pictures(out.idx_BL), 2)
  scales_KBHW3 = S.build_scale_decoder(tiny.vqvae)(
    tiny.params, out.f_hats_KBhwCv
  )
  assert len(scales_KBHW3) == 3
  np.testing.assert_allclose(scales_KBHW3[0], first, atol=1e-5)
  np.testing.assert_allclose(scales_KBHW3[-1], last, atol=1e-5)
  np.testing.assert_allclose(out.image_BHW3, last, atol=1e-5)


@pytest.mark.long
def test_decoding_one_by_one_gives_the_same_pictures(tiny, guided_run):
  run, knobs, keys, out = guided_run
  all_at_once, one_by_one = (
    S.build_scale_decoder(tiny.vqvae, way)(tiny.params, out.f_hats_KBhwCv)
    for way in (False, True)
  )
  np.testing.assert_allclose(one_by_one, all_at_once, atol=1e-5)
  assert len(np.unique(np.asarray(one_by_one[-1]), axis=0)) == 8
  # In bfloat16 the pictures are nearly those, and the tokens are the same.
  run = tiny.sampler(decode_one_by_one=True, decoder_dtype="bfloat16")
  small = run(tiny.params, tiny.text, tiny.null, keys, knobs)
  np.testing.assert_array_equal(small.idx_BL, out.idx_BL)
  error = np.abs(np.asarray(small.image_BHW3) - np.asarray(out.image_BHW3))
  assert 0 < error.mean() < 0.01


def test_changing_knobs_compiles_nothing(tiny, guided_run):
  run, _, keys, _ = guided_run
  args = (tiny.params, tiny.text, tiny.null, keys)
  before = run._cache_size()
  settings = [(0.5, 1.0, 0, 1.0), (7.0, 0.7, 5, 0.8), (7.0, 0.7, 1, 0.8)]
  drawn = [
    np.asarray(run(*args, S.Knobs(*values)).idx_BL) for values in settings
  ]
  assert run._cache_size() == before
  assert not np.array_equal(drawn[0], drawn[1])
  assert not np.array_equal(drawn[1], drawn[2])


def test_top_k_1_takes_the_largest_guided_logit(tiny, guided_run):
  run, _, keys, _ = guided_run
  knobs = S.Knobs(cfg_scale=2.0, temperature=1.0, top_k=1, top_p=1.0)
  out = run(tiny.params, tiny.text, tiny.null, keys, knobs)
  np.testing.assert_array_equal(out.idx_BL, out.logits_BLV.argmax(-1))


@pytest.mark.long
def test_gumbel_smoothing_mixes_codes_between_the_scales(tiny, guided_run):
  _, knobs, keys, plain = guided_run
  run = tiny.sampler(gumbel_smooth=True, return_image=False)
  smooth = run(tiny.params, tiny.text, tiny.null, keys, knobs)
  # The first draw does not know of the smoothing, the picture does.
  np.testing.assert_array_equal(smooth.idx_BL[:, 0], plain.idx_BL[:, 0])
  f_hat = tiny.vqvae.apply(
    {"params": tiny.params["tokenizer"]},
    smooth.idx_BL,
    method="tokens_to_f_hat",
  )
  difference = np.abs(f_hat - smooth.f_hat_BhwCv).max((1, 2, 3))
  assert (difference > 1e-2).all()
  assert smooth.image_BHW3 is None and smooth.logits_BLV is None


@pytest.mark.long
@pytest.mark.parametrize("filtered", [False, True])
def test_smoothing_sees_the_logits_after_or_before_the_filters(tiny, filtered):
  run = tiny.sampler(
    gumbel_smooth=True, smooth_filtered=filtered, return_image=False
  )
  keys = S.sample_keys(7, np.arange(8))

  def draw(**knobs):
    knobs = S.Knobs(cfg_scale=3.0, **knobs)
    return run(tiny.params, tiny.text, tiny.null, keys, knobs)

  greedy, free = draw(top_k=1), draw(top_k=0)
  first = np.abs(greedy.f_hats_KBhwCv[0] - free.f_hats_KBhwCv[0]).max()
  tokens_f_hat = tiny.vqvae.apply(
    {"params": tiny.params["tokenizer"]},
    greedy.idx_BL,
    method="tokens_to_f_hat",
  )
  mixed = np.abs(greedy.f_hat_BhwCv - tokens_f_hat).max((1, 2, 3))
  if filtered:
    # VAR: of one token left the mixture is that token.
    assert first > 1e-2 and mixed.max() < 1e-5
  else:
    # STAR: the filters change what is drawn, not what is mixed.
    assert first == 0 and mixed.min() > 1e-2


def test_a_model_of_another_tokenizer_is_refused(tiny):
  other = VQVAE(testing.tiny_tokenizer_config((1, 2, 4)))
  with pytest.raises(ValueError, match="another tokenizer: its schedule"):
    S.build_sampler(tiny.star, other, S.SamplerConfig())
