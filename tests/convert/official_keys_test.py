"""Nothing unmatched in either direction, for every published model.

Lists of names and shapes stand for the weights: views of one number.
"""

import jax
import numpy as np
import pytest
from safetensors import safe_open

from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS
from star_jax.convert.block import transformer_template
from star_jax.convert.refine import converted_refine, refine_rules
from star_jax.convert.star import converted_star, refine_keys, star_rules
from star_jax.convert.state_dict import Restored
from star_jax.convert.var import converted_var, var_rules
from star_jax.convert.vqvae import converted_vqvae, template, vqvae_rules
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.scales import OFFICIAL_PATCH_NUMS
from star_jax.shapes import expected_shapes, parameter_tree
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from tests.cases import long_but
from tests.convert import official_keys as keys
from tests.golden.conftest import GOLDEN_DIR, cases_of

TRANSFORMERS = [name for name in PRESETS if name.startswith(("var_", "star_"))]


def shapes_of(filename):
  """Names and shapes of a golden file."""
  with safe_open(GOLDEN_DIR / filename, "np") as file:
    return {
      key: tuple(file.get_slice(key).get_shape())
      for key in file.keys()  # noqa: SIM118
    }


def views(shapes):
  """Arrays without memory."""
  return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}


def common(values):
  """The arguments that a case states for both transformers."""
  return dict(
    depth=values["depth"],
    width=values["embed_dim"],
    heads=values["num_heads"],
    patch_nums=values["patch_nums"],
    vocab=values["vocab_size"],
    code_dim=values["Cvae"],
    mlp_ratio=values["mlp_ratio"],
    l2_norm=values["attn_l2_norm"],
    shared_aln=values["shared_aln"],
  )


@pytest.mark.parametrize(("name", "case"), cases_of("var_class_conditional"))
def test_the_list_of_a_var_is_the_authors(name, case):
  values = case["config"]
  found = shapes_of(case["weights"])
  assert found == keys.official_var_keys(
    num_classes=values["num_classes"], **common(values)
  )


@pytest.mark.parametrize(("name", "case"), cases_of("star_transformer"))
def test_the_list_of_a_star_is_the_authors(name, case):
  values = case["config"]
  found = shapes_of(case["weights"])
  assert found == keys.official_star_keys(
    text_dim=values["in_dim_cross"],
    rotary=values["rotary_pos_emb"],
    cross=values["enable_cross"],
    class_rows=found["class_emb.weight"][0],
    **common(values),
  )


SAMPLER_CASES = cases_of("star_causal_driven_stable_sampler")


@pytest.mark.parametrize(("name", "case"), SAMPLER_CASES)
def test_the_refinement_head_is_told_from_the_rest(name, case):
  values, found = case["config"], shapes_of(case["weights"])
  facts = common(values)
  scales = found["lvl_embed.weight"][0]
  del facts["shared_aln"], facts["depth"], facts["patch_nums"]
  head = keys.official_refinement_keys(
    text_dim=values["in_dim_cross"], scales=scales, **facts
  )
  assert refine_keys(found) == tuple(sorted(head))
  assert {key: found[key] for key in head} == head
  # What is left is a whole STAR.
  rest = {key: shape for key, shape in found.items() if key not in head}
  assert rest == keys.official_star_keys(
    text_dim=values["in_dim_cross"],
    class_rows=found["class_emb.weight"][0],
    **{**common(values), "patch_nums": [1] * scales},
  )


@pytest.mark.parametrize(("name", "case"), cases_of("vqvae"))
def test_the_list_of_a_tokenizer_is_the_authors(name, case):
  values = case["config"]
  assert shapes_of(case["weights"]) == keys.official_vae_keys(
    patch_nums=values["v_patch_nums"],
    vocab=values["vocab_size"],
    code_dim=values["z_channels"],
    ch=values["ch"],
    ch_mult=values["ch_mult"],
    num_res_blocks=values["num_res_blocks"],
    share_phi=values["share_quant_resi"],
    phi=values["share_quant_resi"],
  )


@pytest.mark.parametrize(("name", "case"), cases_of("quantizer_only"))
def test_the_names_of_phi_are_the_authors(name, case):
  values = case["config"]
  scales = len(values["v_patch_nums"])
  wanted = keys.official_vae_keys(
    patch_nums=values["v_patch_nums"],
    vocab=values["vocab_size"],
    code_dim=values["Cvae"],
    ch=8,
    share_phi=values["share_quant_resi"],
    phi=values["share_quant_resi"] or scales,
  )
  assert shapes_of(case["weights"]) == {
    key: shape for key, shape in wanted.items() if key.startswith("quantize.")
  }


def published(preset):
  """(config, official names and shapes) of a preset, the numbers as its
  authors' build function derives them from the depth alone."""
  config = StarConfig.from_dict(PRESETS[preset])
  kind, depth, *size = preset.split("_")
  depth = int(depth[1:])
  side = size[0] if size else "512" if preset == "var_d36" else "256"
  facts = dict(
    depth=depth,
    width=64 * depth,
    heads=depth,
    patch_nums=OFFICIAL_PATCH_NUMS[side],
    vocab=4096,
    code_dim=32,
  )
  if kind == "var":
    return config, keys.official_var_keys(
      num_classes=1000, shared_aln=depth == 36, **facts
    )
  return config, keys.official_star_keys(text_dim=1024, **facts)


@pytest.mark.parametrize("preset", TRANSFORMERS)
def test_no_key_of_a_published_transformer_is_unmatched(preset):
  config, official = published(preset)
  convert, rules = converted_star, star_rules
  if config.num_classes:
    convert, rules = converted_var, var_rules
  there = convert(views(official), config)
  assert dict(there.shapes) == expected_shapes(Star(config))
  read = set(official) - set(there.ignored)
  assert all(key.endswith(IGNORED) for key in there.ignored), there.ignored
  back = Restored(transformer_template_views(config), rules(config))
  assert {key: shape for key, (shape, _) in back.facts.items()} == official
  assert read <= set(back)


@pytest.mark.parametrize("preset", REFINE_HEADS)
def test_no_key_of_a_published_head_is_unmatched(preset):
  config, refine = published(preset)[0], RefineConfig(**REFINE_HEADS[preset])
  official = keys.official_refinement_keys(
    width=config.width,
    heads=config.num_heads,
    text_dim=config.text_dim,
    scales=config.schedule.num_scales,
    vocab=config.vocab_size,
    code_dim=config.code_dim,
  )
  there = converted_refine(views(official), config, refine)
  head = RefineHead(config, refine)
  assert dict(there.shapes) == expected_shapes(head)
  assert all(key.endswith("zero_k_bias") for key in there.ignored)
  back = Restored(
    jax.tree.map(
      lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
      parameter_tree(head),
    ),
    refine_rules(config, refine),
  )
  assert {key: shape for key, (shape, _) in back.facts.items()} == official


IGNORED = (
  "zero_k_bias", "class_emb.weight", "lvl_1L", "attn_bias_for_masking",
)  # fmt: skip


def transformer_template_views(config):
  return jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
    transformer_template(config),
  )


@pytest.mark.parametrize("schedule", long_but(1, list(OFFICIAL_PATCH_NUMS)))
def test_no_key_of_the_published_tokenizer_is_unmatched(schedule):
  config = VQVAEConfig.from_dict(
    {**TOKENIZERS["vae_ch160"], "schedule": schedule}
  )
  official = keys.official_vae_keys(
    patch_nums=OFFICIAL_PATCH_NUMS[schedule], vocab=4096, code_dim=32, ch=160
  )
  there = converted_vqvae(views(official), config)
  assert dict(there.shapes) == expected_shapes(VQVAE(config))
  assert there.ignored == ["quantize.ema_vocab_hit_SV"]
  params = jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), template(config)
  )
  back = Restored(params, vqvae_rules(config))
  assert {key: shape for key, (shape, _) in back.facts.items()} == official
