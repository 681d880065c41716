"""The continuous ceiling, and the spatial normalisation of the decoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import testing
from star_jax.model.star import Star
from star_jax.sampling.sampler import check_pair
from star_jax.tokenizer.blocks import SpatialNorm
from star_jax.tokenizer.continuous import KLBottleneck
from star_jax.tokenizer.vqvae import VQVAE

QUICK = {"xla_backend_optimization_level": 0}
TINY = testing.tiny_tokenizer_config()
KL = dataclasses.replace(TINY, quantizer="none", kl_weight=0.5)


def test_divergence_and_noise_by_hand():
  rng = np.random.default_rng(0)
  shape = (2, 3, 3, 4)
  mean, logvar = rng.standard_normal((2, *shape)).astype(np.float32)
  offset = rng.standard_normal(4).astype(np.float32)
  module, variables = KLBottleneck(KL), {"params": {"logvar_Cv": offset}}

  @functools.partial(jax.jit, static_argnames="train", compiler_options=QUICK)
  def run(train):
    rngs = {"dropout": jax.random.key(0)}
    return module.apply(variables, mean, logvar, train=train, rngs=rngs)

  whole = logvar + offset
  want = 0.5 * np.mean(mean**2 + np.exp(whole) - 1 - whole)
  out = run(False)
  np.testing.assert_allclose(out.terms["kl"], want, rtol=1e-5)
  np.testing.assert_allclose(out.vq_loss, 0.5 * want, rtol=1e-5)
  np.testing.assert_array_equal(out.f_hat_BhwCv, mean)
  assert out.idx_BL.shape == (2, 0)
  noise = (run(True).f_hat_BhwCv - mean) / np.exp(0.5 * whole)
  assert 0.7 < noise.std() < 1.3


@pytest.mark.long
@pytest.mark.parametrize(
  "changes", [{}, {"linear_path": True, "deep_encoder": False}]
)
def test_a_continuous_autoencoder_trains_and_has_no_tokens(changes):
  config = dataclasses.replace(KL, **changes)
  vqvae = VQVAE(config)
  params = testing.random_params(vqvae)
  image = np.random.default_rng(0).uniform(-1, 1, (2, *config.image_size, 3))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, image):
    def loss(params):
      rngs = {"dropout": jax.random.key(0)}
      out = vqvae.apply({"params": params}, image, train=True, rngs=rngs)
      return jnp.mean(jnp.square(out.recon_BHW3 - image)) + out.vq_loss

    pictures = vqvae.apply(
      {"params": params}, image, method="reconstruct_scales"
    )
    return jax.grad(loss)(params), pictures

  gradients, pictures = run(params, image)
  assert pictures.shape == (1, *image.shape)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.any(leaf), path
  with pytest.raises(ValueError, match="it has no tokens"):
    vqvae.apply({"params": params}, image, method="encode")
  with pytest.raises(ValueError, match="continuous autoencoder"):
    check_pair(Star(testing.tiny_star_config(config)), vqvae)


def test_spatial_norm_starts_plain_and_is_modulated_place_by_place():
  rng = np.random.default_rng(0)
  x_BhwC = rng.standard_normal((1, 4, 6, 8)).astype(np.float32)
  code_BhwCv = rng.standard_normal((1, 2, 3, 5)).astype(np.float32)
  module = SpatialNorm("float32")
  init = jax.jit(module.init, compiler_options=QUICK)
  apply = jax.jit(module.apply, compiler_options=QUICK)
  params = init(jax.random.key(0), x_BhwC, code_BhwCv)["params"]
  groups = x_BhwC.reshape(1, 24, 8)
  plain = (groups - groups.mean(1)) / np.sqrt(groups.var(1) + 1e-6)
  plain = plain.reshape(x_BhwC.shape)
  start = apply({"params": params}, x_BhwC, code_BhwCv)
  np.testing.assert_allclose(start, plain, atol=1e-5)
  kernel = rng.standard_normal((5, 16)).astype(np.float32)
  bias = rng.standard_normal(16).astype(np.float32)
  params = {**params, "modulation": {"kernel": kernel, "bias": bias}}
  maps = np.repeat(np.repeat(code_BhwCv @ kernel + bias, 2, 1), 2, 2)
  want = plain * (1 + maps[..., :8]) + maps[..., 8:]
  got = apply({"params": params}, x_BhwC, code_BhwCv)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_whole_decoder_is_modulated_by_the_codes():
  config = dataclasses.replace(
    TINY, decoder_norm="spatial", attention=True, ch_mult=(1, 1), patch_size=2
  )
  tree = {
    "/".join(str(key.key) for key in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(
      testing.random_params(VQVAE(config))
    )
  }
  norms = {path for path in tree if path.endswith("norm/bias")}
  decoder = {path for path in norms if path.startswith("decoder")}
  encoder = {path for path in tree if path.startswith("encoder")}
  # Two a block, one an attention and the last one.
  assert len(decoder) == 6 * 2 + 3 + 1
  assert not any("modulation" in path for path in encoder)
