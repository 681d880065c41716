"""What the tests of golden transformers share: configs, weights, text."""

import dataclasses
import functools

import numpy as np
import pytest

from star_jax.convert.star import star_from_torch
from star_jax.convert.vqvae import vqvae_from_torch
from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule
from star_jax.text.states import TextStates
from star_jax.tokenizer.vqvae import VQVAE
from tests.golden.conftest import GOLDEN_DIR, cases_of, load
from tests.golden.quantizer_test import tokenizer_config

# These programs run once or twice: compiling them is most of the time.
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def with_modes(params):
  """(name, case) parameters -> (name, case, mode), one for every mode."""
  out = []
  for param in params:
    name, case = param.values
    for mode in case.get("modes", ["none"]):
      out.append(
        pytest.param(name, case, mode, id=f"{name}-{mode}", marks=param.marks)
      )
  return out


def model_cases():
  """Every STAR transformer case, once per cross-attention mode."""
  return with_modes(cases_of("star_transformer"))


def star_config(values: dict, mode: str) -> StarConfig:
  """`StarConfig` from the configuration of a case.

  `mode` "official" is the published cross-attention (batch row 0 for all).
  """
  rotary = values["rotary_pos_emb"]
  return StarConfig(
    schedule=ScaleSchedule.from_patch_nums(values["patch_nums"]),
    vocab_size=values["vocab_size"],
    code_dim=values["Cvae"],
    depth=values["depth"],
    width=values["embed_dim"],
    num_heads=values["num_heads"],
    text_dim=values["in_dim_cross"],
    mlp_ratio=values["mlp_ratio"],
    norm_eps=values["norm_eps"],
    attn_l2_norm=values["attn_l2_norm"],
    position="rope" if rotary else "absolute",
    rope_theta=values.get("rope_theta", 100.0),
    rope_norm=float(values.get("rope_norm", -1)),
    lvl_embed=values["absolute_lvl_emb"],
    adaptive_norm="level" if values["shared_aln"] else "none",
    cross_attention=values["enable_cross"],
    logit_norm=values["enable_logit_norm"],
    legacy_batch0_cross_attention=mode == "official",
    drop_path_rate=0.0,
  )


@functools.cache
def arrays(filename: str) -> dict[str, np.ndarray]:
  """One file of the golden folder."""
  return load(GOLDEN_DIR, filename)


def star_params(case: dict, config: StarConfig):
  """Our parameters from the official weights of a case."""
  return star_from_torch(arrays(case["weights"]), config)


def text_states(case: dict) -> tuple[TextStates, TextStates]:
  """Prompts and null prompts, B each."""
  tensors, batch = arrays(case["tensors"]), case["batch"]
  both = TextStates(
    text_BTD=tensors["encoder_hidden_states"],
    text_mask_BT=tensors["encoder_attention_mask"] > 0,
    pooled_BD=tensors["encoder_pool_feat"],
  )
  return both[:batch], both[batch:]


def tokenizer_of(case, config):
  """The tokenizer whose weights the case names, with the model's schedule."""
  for param in cases_of("vqvae"):
    tokenizer_case = param.values[1]
    if tokenizer_case["weights"] == case["vae_weights"]:
      tokenizer = dataclasses.replace(
        tokenizer_config(tokenizer_case["config"]), schedule=config.schedule
      )
      state = arrays(case["vae_weights"])
      return VQVAE(tokenizer), vqvae_from_torch(state, tokenizer)
  pytest.skip("the folder does not say how its tokenizer is configured")
