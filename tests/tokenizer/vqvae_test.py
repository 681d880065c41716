"""The whole tokenizer at a tiny size, on rectangles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

CONFIG = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, (2, 1), (2, 3)]),
  vocab_size=13,
  code_dim=4,
  ch=8,
  ch_mult=(1, 2),
  num_res_blocks=1,
  dropout=0.5,
  patch_size=2,
)
BATCH = 2
# Compiling takes longer than running here.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def setup():
  """A tokenizer, its parameters with a codebook in use, and images."""
  image_BHW3 = jax.random.uniform(
    jax.random.key(0), (BATCH, *CONFIG.image_size, 3), minval=-1.0
  )
  vqvae = VQVAE(CONFIG)
  init = jax.jit(vqvae.init, compiler_options=QUICK)
  params = init(jax.random.key(1), image_BHW3)["params"]
  codebook = params["quantizer"]["codebook_VCv"]
  noise = jax.random.normal(jax.random.key(2), codebook.shape)
  params["quantizer"]["codebook_VCv"] = noise
  return vqvae, params, image_BHW3


@functools.partial(jax.jit, static_argnames=("method",), compiler_options=QUICK)
def _run(params, *args, method):
  return VQVAE(CONFIG).apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnames=("train",), compiler_options=QUICK)
def _forward(params, image_BHW3, key, train):
  return VQVAE(CONFIG).apply(
    {"params": params}, image_BHW3, train=train, rngs={"dropout": key}
  )


def test_sizes_and_types_of_every_method(setup):
  vqvae, params, image_BHW3 = setup
  out = jax.eval_shape(
    lambda p, x: vqvae.apply({"params": p}, x), params, image_BHW3
  )
  assert out.recon_BHW3.shape == (BATCH, 8, 12, 3)
  assert out.vq_loss.shape == ()
  assert out.idx_BL.shape == (BATCH, 9) and out.idx_BL.dtype == jnp.int32
  assert out.f_BhwCv.shape == out.f_hat_BhwCv.shape == (BATCH, 2, 3, 4)
  assert out.usage_KV.shape == (3, 13)
  floats = (out.recon_BHW3, out.vq_loss, out.f_BhwCv, out.usage_KV)
  assert all(x.dtype == jnp.float32 for x in floats)


def test_half_precision_stays_inside_encoder_and_decoder(setup):
  _, params, image_BHW3 = setup
  vqvae = VQVAE(dataclasses.replace(CONFIG, dtype="bfloat16"))
  out = jax.eval_shape(
    lambda p, x: vqvae.apply({"params": p}, x), params, image_BHW3
  )
  for x in (out.recon_BHW3, out.f_BhwCv, out.f_hat_BhwCv, out.vq_loss):
    assert x.dtype == jnp.float32
  shapes = jax.eval_shape(vqvae.init, jax.random.key(0), image_BHW3)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))
  text = str(
    jax.make_jaxpr(lambda p, x: vqvae.apply({"params": p}, x))(
      params, image_BHW3
    )
  )
  assert "bf16[2,4,6,8]" in text


@pytest.mark.long
def test_pictures_of_every_scale_end_in_the_reconstruction(setup):
  vqvae, params, image_BHW3 = setup

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, image_BHW3):
    def apply(x, method):
      return vqvae.apply({"params": params}, x, method=method)

    scales_KBHW3 = apply(image_BHW3, "reconstruct_scales")
    idx_BL = apply(image_BHW3, "encode")
    f_hats = apply(idx_BL, "tokens_to_f_hats")
    image = apply(idx_BL, "tokens_to_image")
    return scales_KBHW3, f_hats, image

  scales_KBHW3, f_hats, image = run(params, image_BHW3)
  assert scales_KBHW3.shape == (3, *image_BHW3.shape)
  np.testing.assert_allclose(scales_KBHW3[-1], image, atol=1e-5)
  first = _run(params, f_hats[0], method="decode")
  np.testing.assert_allclose(scales_KBHW3[0], first, atol=1e-5)
  assert np.abs(scales_KBHW3[0] - scales_KBHW3[-1]).max() > 0.01


def _with_conv_out(params, **changes):
  """The same parameters with another last layer of the decoder."""
  conv_out = {**params["decoder"]["conv_out"], **changes}
  return {**params, "decoder": {**params["decoder"], "conv_out": conv_out}}


def test_images_are_clamped_but_training_reconstructions_are_not(setup):
  _, params, image_BHW3 = setup
  params = _with_conv_out(params, bias=jnp.full(12, 5.0))
  out = _forward(params, image_BHW3, jax.random.key(0), train=False)
  assert float(out.recon_BHW3.max()) > 2
  image = _run(params, out.f_hat_BhwCv, method="decode")
  assert float(image.max()) == 1.0 and float(image.min()) >= -1.0


@pytest.mark.long
def test_dropout_acts_in_training_only(setup):
  _, params, image_BHW3 = setup

  def run(train, seed):
    return _forward(params, image_BHW3, jax.random.key(seed), train).recon_BHW3

  np.testing.assert_array_equal(run(False, 0), run(False, 1))
  assert np.any(run(True, 0) != run(True, 1))


def test_gradient_reaches_encoder_and_decoder(setup):
  vqvae, params, image_BHW3 = setup

  @functools.partial(jax.jit, compiler_options=QUICK)
  @jax.grad
  def gradient(params):
    out = vqvae.apply({"params": params}, image_BHW3)
    return jnp.mean(jnp.square(out.recon_BHW3 - image_BHW3))

  grads = gradient(params)
  for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
    assert np.any(jax.tree.leaves(grads[part])[0] != 0), part
  # The quantizer learns from vq_loss alone.
  for leaf in jax.tree.leaves(grads["quantizer"]):
    np.testing.assert_array_equal(leaf, 0)


def test_patches_are_unfolded_row_by_row(setup):
  _, params, _ = setup
  f_hat = jnp.zeros((BATCH, 2, 3, 4))
  kernel = jnp.zeros_like(params["decoder"]["conv_out"]["kernel"])
  for channel in range(12):
    bias = jnp.zeros(12).at[channel].set(1.0)
    changed = _with_conv_out(params, kernel=kernel, bias=bias)
    image = _run(changed, f_hat, method="decode")
    row, col, colour = channel // 6, channel // 3 % 2, channel % 3
    want = np.zeros((BATCH, 8, 12, 3))
    want[:, row::2, col::2, colour] = 1
    np.testing.assert_allclose(image, want, atol=1e-6)


@pytest.mark.long
def test_patches_are_folded_as_they_are_unfolded(setup):
  _, params, image_BHW3 = setup
  _, state = VQVAE(CONFIG).apply(
    {"params": params},
    image_BHW3,
    method="features",
    capture_intermediates=lambda module, _: module.name == "conv_in",
  )
  got = state["intermediates"]["encoder"]["conv_in"]["__call__"][0]
  # The convolution of the folded patches is a strided one of the pixels.
  kernel = np.asarray(params["encoder"]["conv_in"]["kernel"])
  kernel = kernel.reshape(3, 3, 2, 2, 3, CONFIG.ch).transpose(0, 2, 1, 3, 4, 5)
  want = jax.lax.conv_general_dilated(
    image_BHW3,
    kernel.reshape(6, 6, 3, CONFIG.ch),
    window_strides=(2, 2),
    padding=((2, 2), (2, 2)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 12, 8, 3), (2, 8, 12, 4), (8, 12, 3)])
def test_other_image_sizes_are_refused(setup, shape):
  vqvae, params, _ = setup
  with pytest.raises(ValueError, match=r"\(batch, 8, 12, 3\)") as error:
    vqvae.apply({"params": params}, jnp.zeros(shape), method="encode")
  assert str(shape) in str(error.value)


def test_attention_can_be_left_out():
  vqvae = VQVAE(dataclasses.replace(CONFIG, attention=False))
  image = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
  params = jax.eval_shape(vqvae.init, jax.random.key(0), image)["params"]
  assert "attn" not in str(jax.tree_util.tree_structure(params))
