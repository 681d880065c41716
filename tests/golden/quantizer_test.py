"""The multi-scale quantizer against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.convert import vqvae as convert
from star_jax.convert.state_dict import torch_to_jax
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import Quantizer
from tests.golden.conftest import GOLDEN_DIR, cases_of, load

ATOL = 1e-5


def tokenizer_config(values):
  """`VQVAEConfig` from the configuration of a case.

  Quantizer-only cases say nothing about encoder and decoder; any will do.
  """
  return VQVAEConfig(
    schedule=ScaleSchedule.from_patch_nums(values["v_patch_nums"]),
    vocab_size=values["vocab_size"],
    code_dim=values.get("z_channels", values.get("Cvae")),
    ch=values.get("ch", 8),
    ch_mult=tuple(values.get("ch_mult", (1,))),
    num_res_blocks=values.get("num_res_blocks", 1),
    dropout=values.get("dropout", 0.0),
    quant_conv_ks=values.get("quant_conv_ks", 3),
    quant_resi=values["quant_resi"],
    share_quant_resi=values["share_quant_resi"],
    beta=values["beta"],
    using_znorm=values["using_znorm"],
  )


def nhwc(x_BChw):
  return np.asarray(x_BChw).transpose(0, 2, 3, 1)


def _setup(case):
  config = tokenizer_config(case["config"])
  quantizer = Quantizer(config)
  tensors = load(GOLDEN_DIR, case["tensors"])
  f_BhwCv = nhwc(tensors["f"])
  template = jax.eval_shape(quantizer.init, jax.random.key(0), f_BhwCv)
  state = {
    key: value
    for key, value in load(GOLDEN_DIR, case["weights"]).items()
    if key.startswith("quantize.")
  }
  params = torch_to_jax(
    state,
    convert.vqvae_rules(config),
    {"quantizer": template["params"]},
  )["quantizer"]
  return config, quantizer, params, f_BhwCv, tensors


def _close(got, want, name):
  np.testing.assert_allclose(got, want, atol=ATOL, rtol=ATOL, err_msg=name)


CASES = cases_of("quantizer_only", "vqvae")


def _tokens(tensors, config):
  return np.concatenate(
    [tensors[f"idx_{k}"] for k in range(config.schedule.num_scales)], axis=1
  )


@pytest.mark.parametrize(("name", "case"), CASES)
def test_tokens_and_f_hat(name, case):
  config, quantizer, params, f_BhwCv, tensors = _setup(case)
  want_BL = _tokens(tensors, config)

  @jax.jit
  def run(params, f_BhwCv, idx_BL):
    variables = {"params": params}
    return (
      quantizer.apply(variables, f_BhwCv, method="encode"),
      quantizer.apply(variables, idx_BL, method="tokens_to_f_hats"),
      quantizer.apply(variables, idx_BL, method="tokens_to_f_hat"),
      quantizer.apply(variables, idx_BL, method="tokens_to_growing_f_hat"),
      quantizer.apply(variables, idx_BL, method="teacher_forcing_input"),
    )

  idx_BL, f_hats, f_hat, growing, x_BLCv = run(params, f_BhwCv, want_BL)
  np.testing.assert_array_equal(idx_BL, want_BL)
  for k in range(config.schedule.num_scales):
    _close(f_hats[k], nhwc(tensors[f"fhat_{k}"]), f"fhat_{k}")
  _close(f_hat, f_hats[-1], "f_hat")
  if "embed_to_fhat_last" in tensors:
    _close(f_hat, nhwc(tensors["embed_to_fhat_last"]), "embed_to_fhat")
  if "embed_to_fhat_notmaxscale_last" in tensors:
    want = nhwc(tensors["embed_to_fhat_notmaxscale_last"])
    _close(growing, want, "growing")
  _close(x_BLCv, tensors["var_input"], "var_input")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_next_scale_input(name, case):
  config, quantizer, params, _, tensors = _setup(case)
  f_hat = jnp.zeros_like(nhwc(tensors["f"]))
  for k in range(config.schedule.num_scales):
    f_hat, x_BlCv = quantizer.apply(
      {"params": params},
      k,
      f_hat,
      tensors[f"idx_{k}"],
      method="next_scale_input",
    )
    want = tensors.get(f"ar_fhat_{k}", tensors[f"fhat_{k}"])
    _close(f_hat, nhwc(want), f"ar_fhat_{k}")
    if k + 1 < config.schedule.num_scales:
      want = nhwc(tensors[f"ar_next_{k}"]).reshape(x_BlCv.shape)
      _close(x_BlCv, want, f"ar_next_{k}")
    else:
      assert x_BlCv is None


@pytest.mark.parametrize(("name", "case"), cases_of("quantizer_only"))
def test_training_forward_and_gradients(name, case):
  config, quantizer, params, f_BhwCv, tensors = _setup(case)
  cotangent = nhwc(tensors["cotangent"])

  def loss_fn(params, f_BhwCv):
    out = quantizer.apply({"params": params}, f_BhwCv)
    return jnp.mean(out.f_hat_BhwCv * cotangent) + out.vq_loss, out

  grads, out = jax.jit(jax.grad(loss_fn, argnums=(0, 1), has_aux=True))(
    params, f_BhwCv
  )
  _close(out.f_hat_BhwCv, nhwc(tensors["train_fhat"]), "train_fhat")
  _close(out.vq_loss, tensors["train_vq_loss"][0], "train_vq_loss")
  np.testing.assert_array_equal(out.idx_BL, _tokens(tensors, config))
  _close(grads[1], nhwc(tensors["grad.f"]), "grad.f")
  named = convert.vqvae_to_torch({"quantizer": grads[0]}, config)
  assert "grad.quantize.embedding.weight" in tensors
  for key, got in named.items():
    # A phi that no scale is nearest to has no gradient.
    want = tensors.get(f"grad.{key}", np.zeros_like(got))
    _close(got, want, key)


def _vqvae_for(tensors):
  """The VQVAE case whose features STAR's quantizer was run on."""
  shape = tensors["star_vq_forward.fhat"].shape
  for param in cases_of("vqvae"):
    case = param.values[1]
    if load(GOLDEN_DIR, case["tensors"])["f"].shape == shape:
      return case
  return pytest.skip("no VQVAE case with features of this shape")


@pytest.mark.parametrize(("name", "case"), cases_of("misc"))
def test_star_sums_the_loss_over_scales(name, case):
  tensors = load(GOLDEN_DIR, case["tensors"])
  if "star_vq_forward.fhat" not in tensors:
    pytest.skip("no quantizer run in this case")
  vae_case = _vqvae_for(tensors)
  config, _, params, f_BhwCv, _ = _setup(vae_case)
  summed = Quantizer(
    VQVAEConfig.from_dict(config.to_dict() | {"vq_loss_reduction": "sum"})
  )
  out = jax.jit(lambda p, f: summed.apply({"params": p}, f))(params, f_BhwCv)
  _close(out.f_hat_BhwCv, nhwc(tensors["star_vq_forward.fhat"]), "fhat")
  want = tensors["star_vq_forward.loss_sum_over_scales"][0]
  _close(out.vq_loss, want, "loss_sum_over_scales")
