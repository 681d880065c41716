"""Encoder, decoder and the whole tokenizer against the official code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.convert import vqvae as convert
from star_jax.tokenizer.vqvae import VQVAE
from tests.golden.conftest import GOLDEN_DIR, cases_of, load
from tests.golden.quantizer_test import nhwc, tokenizer_config

CASES = cases_of("vqvae")
USAGE = "quantize.ema_vocab_hit_SV"
IMAGE_ATOL = 1e-3
GRAD_TOL = 1e-4
# Compiling takes longer than running here.
QUICK = {"xla_backend_optimization_level": 0}


def _setup(case):
  config = tokenizer_config(case["config"])
  state = load(GOLDEN_DIR, case["weights"])
  params = convert.vqvae_from_torch(state, config)
  return config, VQVAE(config), params, load(GOLDEN_DIR, case["tensors"])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_encode_and_decode(name, case):
  config, vqvae, params, tensors = _setup(case)
  image_BHW3 = nhwc(tensors["img"])

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, image_BHW3):
    variables = {"params": params}
    return (
      vqvae.apply(variables, image_BHW3, method="features"),
      vqvae.apply(variables, image_BHW3, method="encode"),
      vqvae.apply(variables, image_BHW3, method="reconstruct_scales"),
    )

  f_BhwCv, idx_BL, recon_KBHW3 = run(params, image_BHW3)
  np.testing.assert_allclose(f_BhwCv, nhwc(tensors["f"]), atol=1e-4, rtol=1e-4)
  num_scales = config.schedule.num_scales
  want_BL = [tensors[f"idx_{k}"] for k in range(num_scales)]
  np.testing.assert_array_equal(idx_BL, np.concatenate(want_BL, axis=1))
  for k in range(num_scales - 1):
    want = nhwc(tensors[f"recon_b0_{k}"])
    np.testing.assert_allclose(recon_KBHW3[k, :1], want, atol=IMAGE_ATOL)
  want = nhwc(tensors["recon_final"])
  np.testing.assert_allclose(recon_KBHW3[-1], want, atol=IMAGE_ATOL)


@pytest.mark.long
@pytest.mark.parametrize(("name", "case"), CASES)
def test_training_loss_and_gradients(name, case):
  config, vqvae, params, tensors = _setup(case)
  image_BHW3 = nhwc(tensors["img"])

  def loss_fn(params):
    out = vqvae.apply({"params": params}, image_BHW3)
    mse = jnp.mean(jnp.square(out.recon_BHW3 - image_BHW3))
    return mse + out.vq_loss, (mse, out)

  gradient = jax.grad(loss_fn, has_aux=True)
  grads, (mse, out) = jax.jit(gradient, compiler_options=QUICK)(params)
  np.testing.assert_allclose(mse, tensors["train_rec_mse"][0], rtol=1e-5)
  np.testing.assert_allclose(
    out.vq_loss, tensors["train_vq_loss"][0], rtol=1e-5
  )
  want = nhwc(tensors["train_recon_b0"])
  np.testing.assert_allclose(out.recon_BHW3[:1], want, atol=IMAGE_ATOL)

  named = convert.vqvae_to_torch(grads, config)
  for key, want in tensors.items():
    if key.startswith("grad."):
      got = named[key.removeprefix("grad.")]
      np.testing.assert_allclose(
        got, want, atol=GRAD_TOL, rtol=GRAD_TOL, err_msg=key
      )
  norms = case["train"]["grad_norms"]
  unused = case["train"].get("params_without_grad", [])
  assert set(norms) | set(unused) == set(named) - {USAGE}
  for key in unused:  # e.g. a phi that no scale is nearest to
    np.testing.assert_array_equal(named[key], 0, err_msg=key)
  for key, want in norms.items():
    # A bias in front of a normalisation has no gradient but rounding.
    got = np.linalg.norm(named[key])
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_key_survives_both_directions(name, case):
  config, _, params, _ = _setup(case)
  state = load(GOLDEN_DIR, case["weights"])
  back = convert.vqvae_to_torch(params, config)
  assert set(back) == set(state)
  for key, value in state.items():
    # Weights may be stored with the usage statistic of another schedule.
    if key != USAGE:
      np.testing.assert_array_equal(back[key], value, err_msg=key)
