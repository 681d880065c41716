"""The linear path: principal components, and a start without the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.linear_path import fold, init_linear_path
from star_jax.tokenizer.vqvae import VQVAE

CONFIG = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, 3]),
  vocab_size=8,
  code_dim=12,
  ch=8,
  ch_mult=(1,),
  num_res_blocks=1,
  patch_size=2,
  attention=False,
  linear_path=True,
)
QUICK = {"xla_backend_optimization_level": 0}


def _images(count):
  return jax.random.uniform(
    jax.random.key(0), (count, *CONFIG.image_size, 3), minval=-1.0
  )


def _params(config, images):
  init = jax.jit(VQVAE(config).init, compiler_options=QUICK)
  return init(jax.random.key(1), images[:1])["params"]


def test_fold_keeps_each_patch_together():
  image = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(1, 2, 4, 3)
  patches = fold(image, 2)
  assert patches.shape == (1, 1, 2, 12)
  np.testing.assert_array_equal(
    patches[0, 0, 1].reshape(2, 2, 3), image[0, :, 2:]
  )


@pytest.mark.long
@pytest.mark.parametrize("deep", [True, False])
def test_a_full_code_loses_nothing_at_the_start(deep):
  """12 numbers a patch of 12 values, and convolutions that begin at 0."""
  config = dataclasses.replace(CONFIG, deep_encoder=deep)
  images = _images(8)
  params = init_linear_path(_params(config, images), images, 2)
  vqvae = VQVAE(config)
  run = jax.jit(
    lambda p, x: vqvae.apply(
      {"params": p},
      vqvae.apply({"params": p}, x, method="features"),
      method="decode",
    )
  )
  np.testing.assert_allclose(run(params, images), images, atol=1e-4)
  assert ("encoder" in params) == deep


@pytest.mark.long
def test_fewer_components_are_the_best_ones():
  """Of patches that vary along two directions, two components keep all."""
  rng = np.random.default_rng(0)
  basis = rng.normal(size=(2, 12)) * 0.2
  patches = rng.normal(size=(40, 3, 3, 2)) @ basis + 0.1
  images = patches.reshape(40, 3, 3, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
  images = jnp.asarray(images.reshape(40, 6, 6, 3), jnp.float32)
  config = dataclasses.replace(CONFIG, code_dim=2)
  params = init_linear_path(_params(config, images), images, 2)
  vqvae = VQVAE(config)
  features = vqvae.apply({"params": params}, images, method="features")
  decoded = vqvae.apply({"params": params}, features, method="decode")
  np.testing.assert_allclose(decoded, jnp.clip(images, -1, 1), atol=1e-4)


def test_features_without_the_deep_encoder_are_local():
  config = dataclasses.replace(CONFIG, deep_encoder=False)
  images = _images(1)
  params = _params(config, images)
  features = lambda x: VQVAE(config).apply(  # noqa: E731
    {"params": params}, x, method="features"
  )
  changed = features(images.at[0, 0, 0].add(1.0)) != features(images)
  assert changed[0, 0, 0].any()
  assert not changed[0].at[0, 0].set(False).any()


def test_a_tokenizer_needs_some_encoder():
  with pytest.raises(ValueError, match="deep_encoder = False needs"):
    dataclasses.replace(CONFIG, linear_path=False, deep_encoder=False)
