"""Agreement of two precisions."""

import jax
import numpy as np
import pytest

from star_jax.metrics.precision import (
  Agreement,
  compare_dtypes,
  compare_logits,
)
from star_jax.model.star import Star
from star_jax.testing import (
  random_params,
  random_text,
  tiny_star_config,
  tiny_tokenizer_config,
)
from star_jax.tokenizer.vqvae import VQVAE


def test_kl_and_top1_by_hand():
  p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
  kl, same = compare_logits(
    np.log(np.stack([p, p]))[None], np.log(np.stack([q, p]))[None] + 3.0
  )
  np.testing.assert_allclose(kl[0], [0.25 * np.log(2), 0], atol=1e-6)
  assert same[0].tolist() == [False, True]


def test_per_scale_means():
  agreement = Agreement(
    np.array([[1.0, 2, 4], [3, 2, 0]]), np.array([[1, 1, 0], [1, 0, 0]])
  )
  first, second = agreement.per_scale([(0, 1), (1, 3)])
  assert first == {"kl": 2.0, "top1": 1.0}
  assert second == {"kl": 2.0, "top1": 0.25}


@pytest.mark.long
def test_bfloat16_is_near_but_not_equal():
  vqvae = VQVAE(tiny_tokenizer_config())
  star = Star(tiny_star_config(vqvae.config, text_dim=8))
  params = {"star": random_params(star), "tokenizer": random_params(vqvae)}
  rng = np.random.default_rng(0)
  tokens = (4, star.config.schedule.num_tokens)
  idx_BL = rng.integers(0, star.config.vocab_size, tokens).astype(np.int32)
  args = (star, vqvae, jax.device_put(params), idx_BL, random_text(4, 5, 8))
  rough = compare_dtypes(*args, dtype="bfloat16", batch_size=2)
  assert rough.kl_BL.shape == rough.same_BL.shape == tokens
  assert rough.same_BL.mean() > 0.8
  assert 1e-7 < rough.kl_BL.mean() < 0.05
  with pytest.raises(ValueError, match="multiple of the batch 3"):
    compare_dtypes(*args, dtype="bfloat16", batch_size=3)
