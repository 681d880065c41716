"""Official VQVAE names: every key accounted for in both directions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.convert import vqvae as convert
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

CONFIG = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, 2, 3]),
  vocab_size=7,
  code_dim=4,
  ch=8,
  ch_mult=(1, 2),
  num_res_blocks=1,
)


def _params(config):
  image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
  shapes = jax.eval_shape(VQVAE(config).init, jax.random.key(0), image)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes["params"]
  )


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("share", [0, 1, 3])
def test_round_trip(share, attention):
  config = dataclasses.replace(
    CONFIG, share_quant_resi=share, attention=attention
  )
  params = _params(config)
  state = convert.vqvae_to_torch(params, config)
  again = convert.vqvae_from_torch(state, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert any(".attn" in key for key in state) == attention


@pytest.mark.parametrize(
  ("share", "key"),
  [
    (0, "quantize.quant_resi.2.weight"),
    (1, "quantize.quant_resi.qresi.weight"),
    (3, "quantize.quant_resi.qresi_ls.2.weight"),
  ],
)
def test_names_of_phi(share, key):
  config = dataclasses.replace(CONFIG, share_quant_resi=share)
  state = convert.vqvae_to_torch(_params(config), config)
  assert state[key].shape == (4, 4, 3, 3)


def test_a_phi_that_no_scale_uses_is_written_and_accepted():
  """Four phis for three scales: the middle one is nearest to one of two."""
  config = dataclasses.replace(CONFIG, share_quant_resi=4)
  params = _params(config)
  assert sum(key.startswith("phi_") for key in params["quantizer"]) == 3
  state = convert.vqvae_to_torch(params, config)
  phis = [key for key in state if key.endswith("weight") and "resi_ls" in key]
  assert len(phis) == 4 and all(state[k].shape == (4, 4, 3, 3) for k in phis)
  again = convert.vqvae_from_torch(state, config)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  state["quantize.quant_resi.qresi_ls.4.bias"] = np.zeros(4, np.float32)
  with pytest.raises(ValueError, match=r"1 unknown key.*qresi_ls\.4\.bias"):
    convert.vqvae_from_torch(state, config)


def test_official_names_and_layouts():
  params = _params(CONFIG)
  state = convert.vqvae_to_torch(params, CONFIG)
  shapes = {
    "encoder.conv_in.weight": (8, 3, 3, 3),
    "encoder.down.0.downsample.conv.weight": (8, 8, 3, 3),
    "encoder.down.1.block.0.nin_shortcut.weight": (16, 8, 1, 1),
    "encoder.down.1.attn.0.qkv.weight": (48, 16, 1, 1),
    "encoder.mid.attn_1.proj_out.weight": (16, 16, 1, 1),
    "encoder.mid.block_2.norm1.weight": (16,),
    "encoder.norm_out.bias": (16,),
    "decoder.up.1.attn.1.norm.weight": (16,),
    "decoder.up.1.upsample.conv.bias": (16,),
    "decoder.up.0.block.1.conv2.weight": (8, 8, 3, 3),
    "decoder.conv_out.weight": (3, 8, 3, 3),
    "quantize.embedding.weight": (7, 4),
    "quantize.ema_vocab_hit_SV": (3, 7),
    "quant_conv.weight": (4, 4, 3, 3),
    "post_quant_conv.bias": (4,),
  }
  for key, shape in shapes.items():
    assert state[key].shape == shape, key
  kernel = params["encoder"]["down_1_attn_0"]["qkv"]["kernel"]
  weight = state["encoder.down.1.attn.0.qkv.weight"]
  np.testing.assert_array_equal(weight[:, :, 0, 0], kernel.T)


def test_usage_statistic_of_another_schedule_is_accepted():
  params = _params(CONFIG)
  state = convert.vqvae_to_torch(params, CONFIG)
  state["quantize.ema_vocab_hit_SV"] = np.ones((10, 7), np.float32)
  again = convert.vqvae_from_torch(state, CONFIG)
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_weights_of_another_model_are_refused_by_name():
  state = convert.vqvae_to_torch(_params(CONFIG), CONFIG)
  deeper = dataclasses.replace(CONFIG, ch_mult=(1, 2, 2))
  with pytest.raises(ValueError, match=r"missing key\(s\): decoder\.up\.2"):
    convert.vqvae_from_torch(state, deeper)
  wider = dataclasses.replace(CONFIG, vocab_size=9)
  with pytest.raises(ValueError, match=r"quantize\.embedding\.weight"):
    convert.vqvae_from_torch(state, wider)
