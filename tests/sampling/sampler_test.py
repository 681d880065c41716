"""The sampler: it draws from the model, per sample, without recompiling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

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
    self.params = {
      "star": testing.random_params(self.star, seed=1),
      "tokenizer": testing.random_params(self.vqvae, seed=2),
    }
    self.text = testing.random_text(batch, T, D, seed=3)
    self.null = testing.random_text(1, T, D, seed=4)

  def sampler(self, **options):
    return S.build_sampler(self.star, self.vqvae, S.SamplerConfig(**options))

  def teacher_forced(self, idx_BL, text):
    """Logits of the plain training pass, float32 [B, L, V]."""
    x_BLCv = self.vqvae.apply(
      {"params": self.params["tokenizer"]},
      idx_BL,
      method="teacher_forcing_input",
    )
    return self.star.apply({"params": self.params["star"]}, x_BLCv, text)


@pytest.fixture(scope="module")
def tiny():
  return Tiny((1, 2, 3), 24, batch=8)


@pytest.fixture(scope="module")
def guided_run(tiny):
  run = tiny.sampler(return_scales=True, return_logits=True)
  knobs = S.Knobs(cfg_scale=3.0, temperature=0.9, top_k=20, top_p=0.95)
  keys = S.sample_keys(7, np.arange(8))
  return run, knobs, keys, run(tiny.params, tiny.text, tiny.null, keys, knobs)


@pytest.mark.parametrize("guided", [False, True])
def test_samples_follow_the_exact_joint_distribution(guided):
  """V = 3 on grids 1x1, 1x2: all 27 outcomes are listed with their teacher-
  forced probabilities and compared with 100,000 samples of each slot."""
  slots, rounds, cfg_scale = 3, 100_000, 1.5
  tiny = Tiny(((1, 1), (1, 2)), 3, batch=slots)
  outcomes = np.asarray(list(itertools.product(range(3), repeat=3)))
  run = tiny.sampler(guided=guided, return_image=False)
  draw = jax.jit(
    lambda keys: jax.lax.map(
      lambda keys_B: (
        run(
          tiny.params, tiny.text, tiny.null, keys_B, S.Knobs(cfg_scale)
        ).idx_BL
      ),
      keys,
      batch_size=rounds // 20,
    )
  )
  keys = jax.random.split(jax.random.key(11), (rounds, slots))
  drawn = np.asarray(draw(keys)) @ [9, 3, 1]
  for slot in range(slots):
    log_p = _log_joint(tiny, outcomes, slot, cfg_scale if guided else 0.0)
    expected = rounds * np.exp(log_p)
    assert expected.sum() == pytest.approx(rounds, rel=1e-4)
    counts = np.bincount(drawn[:, slot], minlength=27)
    expected *= rounds / expected.sum()
    assert stats.chisquare(counts, expected).pvalue > 1e-3, slot


def _log_joint(tiny, outcomes, slot, cfg_scale):
  """Log probability of each outcome for the prompt of a slot, float64 [27].

  The guided logits are mixed here, from two teacher-forced passes.
  """
  row = np.full(len(outcomes), slot)
  cond = tiny.teacher_forced(jnp.asarray(outcomes), tiny.text[row])
  null = tiny.teacher_forced(jnp.asarray(outcomes), tiny.null[0 * row])
  t_L = cfg_scale * np.asarray([0.0, 1.0, 1.0])[:, None]
  logits = (1 + t_L) * np.asarray(cond, np.float64) - t_L * np.asarray(null)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.take_along_axis(log_p, outcomes[..., None], -1).sum((1, 2))


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
  cond = tiny.teacher_forced(out.idx_BL, tiny.text)
  null = tiny.teacher_forced(out.idx_BL, tiny.null[np.zeros(8, int)])
  ratio_L = np.repeat(
    [tiny.schedule.cfg_ratio(k) for k in range(3)], tiny.schedule.lengths
  )
  t_L = knobs.cfg_scale * ratio_L[:, None]
  np.testing.assert_allclose(
    out.logits_BLV, (1 + t_L) * cond - t_L * null, atol=2e-4
  )


def test_pictures_are_those_of_the_tokens(tiny, guided_run):
  _, _, _, out = guided_run
  variables = {"params": tiny.params["tokenizer"]}
  image = tiny.vqvae.apply(variables, out.idx_BL, method="tokens_to_image")
  np.testing.assert_allclose(out.image_BHW3, image, atol=1e-5)
  np.testing.assert_array_equal(out.image_KBHW3[-1], out.image_BHW3)
  f_hats = tiny.vqvae.apply(variables, out.idx_BL, method="tokens_to_f_hats")
  first = tiny.vqvae.apply(variables, f_hats[0], method="decode")
  np.testing.assert_allclose(out.image_KBHW3[0], first, atol=1e-5)


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


def test_unguided_equals_guided_with_scale_zero(tiny, guided_run):
  run, _, keys, _ = guided_run
  args = (tiny.params, tiny.text, tiny.null, keys)
  zero = run(*args, S.Knobs(cfg_scale=0.0))
  plain = tiny.sampler(guided=False)(*args, S.Knobs(cfg_scale=5.0))
  np.testing.assert_array_equal(zero.idx_BL, plain.idx_BL)
  assert plain.image_KBHW3 is None and plain.logits_BLV is None


def test_gumbel_smoothing_mixes_codes_between_the_scales(tiny):
  keys = S.sample_keys(7, np.arange(8))
  args = (tiny.params, tiny.text, tiny.null, keys, S.Knobs(cfg_scale=1.0))
  smooth = tiny.sampler(gumbel_smooth=True)(*args)
  plain = tiny.sampler()(*args)
  # The first draw does not know of the smoothing, the picture does.
  np.testing.assert_array_equal(smooth.idx_BL[:, 0], plain.idx_BL[:, 0])
  f_hat = tiny.vqvae.apply(
    {"params": tiny.params["tokenizer"]},
    smooth.idx_BL,
    method="tokens_to_f_hat",
  )
  assert np.abs(f_hat - smooth.f_hat_BhwCv).max() > 1e-2


def test_a_model_of_another_tokenizer_is_refused(tiny):
  other = VQVAE(testing.tiny_tokenizer_config((1, 2, 4)))
  with pytest.raises(ValueError, match="another tokenizer: its schedule"):
    S.build_sampler(tiny.star, other, S.SamplerConfig())
