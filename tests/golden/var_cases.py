"""What the tests of VAR's golden cases share."""

from star_jax.convert.var import var_from_torch
from star_jax.model.config import StarConfig
from star_jax.scales import ScaleSchedule
from tests.golden.conftest import cases_of
from tests.golden.star_cases import arrays


def var_cases():
  """Every class-conditional transformer case."""
  return cases_of("var_class_conditional")


def var_config(values: dict) -> StarConfig:
  """`StarConfig` from the configuration of a case."""
  return StarConfig(
    schedule=ScaleSchedule.from_patch_nums(values["patch_nums"]),
    vocab_size=values["vocab_size"],
    code_dim=values["Cvae"],
    depth=values["depth"],
    width=values["embed_dim"],
    num_heads=values["num_heads"],
    num_classes=values["num_classes"],
    mlp_ratio=values["mlp_ratio"],
    norm_eps=values["norm_eps"],
    attn_l2_norm=values["attn_l2_norm"],
    adaptive_norm="shared" if values["shared_aln"] else "block",
    position="absolute",
    rope_norm=-1.0,
    cross_attention=False,
    drop_path_rate=0.0,
  )


def var_params(case: dict, config: StarConfig):
  """Our parameters from the official weights of a case."""
  return var_from_torch(arrays(case["weights"]), config)
