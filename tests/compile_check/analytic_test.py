"""FLOPs by formula against those counted on what is run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs.presets import PRESETS
from star_jax import testing
from star_jax.chips import CHIPS
from star_jax.compile_check.analytic import sampling_flops, training_flops
from star_jax.compile_check.programs import sampler_program
from star_jax.compile_check.traced import traced_roofline
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig
from star_jax.model.star import Star
from star_jax.sampling.rounds import RefineSampling
from star_jax.sampling.sampler import SamplerConfig
from star_jax.shapes import example_inputs, parameter_tree
from star_jax.text.states import TextStates
from star_jax.train.flops import count_flops

BATCH, TEXT_TOKENS = 2, 5


@pytest.mark.parametrize("remat", ["none", "dots", "attention", "layer"])
@pytest.mark.parametrize("query_block", [16, 512])
def test_the_formula_counts_what_a_gradient_computes(remat, query_block):
  config = StarConfig.from_dict(
    {**PRESETS["test"], "schedule": (1, 2, 4, 8, 16), "depth": 3, "width": 64}
  )
  config = dataclasses.replace(
    config, remat=remat, query_block=query_block, vocab_size=64
  )
  star = Star(config)
  params = parameter_tree(star)
  x, _ = example_inputs(star)
  given = TextStates(
    jnp.zeros((BATCH, TEXT_TOKENS, config.text_dim)),
    jnp.ones((BATCH, TEXT_TOKENS), bool),
    jnp.zeros((BATCH, config.text_dim)),
  )
  x = jnp.zeros((BATCH, *x.shape[1:]))

  def loss(params):
    return jnp.sum(jnp.square(star.apply({"params": params}, x, given)))

  counted = count_flops(jax.grad(loss), params)
  found = training_flops(config, BATCH, text_tokens=TEXT_TOKENS)
  # Early scales are packed into one masked product, which is counted whole.
  assert found.executed == pytest.approx(counted, rel=0.05)
  assert found.model <= found.executed


@pytest.mark.long
@pytest.mark.parametrize("guided", [True, False])
def test_the_formula_counts_the_parts_of_a_sampler(guided):
  tokenizer = testing.tiny_tokenizer_config((1, 2, 4, 8))
  star = testing.tiny_star_config(tokenizer, width=64, text_dim=24)
  # Rounds of the transformer alone, and of the head alone at the last scale.
  refined = RefineSampling(6, 7, fine_from=3, transformer_first=True)
  config = SamplerConfig(guided=guided, refine=refined)
  head = RefineConfig(first_scale=2, depth=2)
  program = sampler_program(
    star, tokenizer, config, BATCH, text_tokens=TEXT_TOKENS, refine=head
  )
  found = sampling_flops(
    star, tokenizer, config, BATCH, text_tokens=TEXT_TOKENS, refine=head
  )
  card = traced_roofline(program.products, CHIPS["a100"], 0)
  assert set(found.parts) == {"backbone", "refinement", "decoder"}
  for part, flops in found.parts.items():
    # A null prompt is not asked for, nor are some of its weights.
    assert flops == pytest.approx(card.parts[part][0], rel=0.02), part
  assert card.flops == program.flops
  assert "other" not in card.parts
