"""muP: which rates it scales, and that activations do not grow with width."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import common
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.shapes import example_inputs, parameter_tree
from star_jax.testing import (
  random_text,
  tiny_star_config,
  tiny_tokenizer_config,
)
from star_jax.train import mup, optimizer

BASE, STEPS, BATCH = 16, 5, 4


def star(width, base_width=BASE, **overrides):
  config = tiny_star_config(
    tiny_tokenizer_config(),
    width=width,
    num_heads=width // 8,
    base_width=base_width,
    **overrides,
  )
  return Star(config)


def factors(module, name):
  labels = None if name == "adamw" else optimizer.muon_labels
  found = mup.rate_factors(
    parameter_tree(module), module.config.width_ratio, labels
  )
  return traverse_util.flatten_dict(found, sep="/")


@pytest.mark.parametrize("name, inner", [("adamw", 0.25), ("muon", 0.5)])
def test_what_reads_the_width_learns_slower(name, inner):
  found = factors(star(64, adaptive_norm="level"), name)
  layers = {"attn/qkv", "attn/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel"}
  layers |= {"cross_attn/q/kernel", "cross_attn/proj/kernel"}
  slower = {f"blocks/{layer}": inner for layer in layers}
  for path in ("head", "lvl_embed_proj", "lvl_embed_adaln"):
    slower[f"{path}/kernel"] = 0.25
  assert {path: f for path, f in found.items() if f != 1.0} == slower
  assert found["cross/kv"] == found["word_embed/kernel"] == 1.0


def test_classes_condition_layers_of_their_own():
  module = star(
    64, text_dim=0, num_classes=3, adaptive_norm="block", cross_attention=False
  )
  found = factors(module, "adamw")
  assert found["adaptive_norm/kernel"] == found["head_norm/kernel"] == 0.25
  assert found["class_embed/embedding"] == 1.0


def test_the_base_is_the_model_as_it_was():
  """Same initial weights, same updates, same file."""
  base, plain = star(BASE), star(BASE, base_width=0)
  assert set(factors(base, "muon").values()) == {1.0}
  std = ("weight_std", "input_std", "head_std")
  for name in std[:2]:
    assert getattr(base.config, name) == plain.config.weight_std
  assert base.config.head_std == plain.config.weight_std * 0.02
  assert "base_width" not in plain.config.to_dict()
  assert StarConfig.from_dict(base.config.to_dict()) == base.config
  config = common.optimizer()
  state = [
    jax.eval_shape(
      optimizer.build_optimizer(config, 10, *ratio).tx.init, {"a": np.ones(3)}
    )
    for ratio in ((), (1.0,))
  ]
  assert jax.tree.structure(state[0]) == jax.tree.structure(state[1])


def test_decay_is_the_same_at_every_width():
  config = common.optimizer()
  config.update(learning_rate=1.0, schedule="constant", warmup_steps=0)
  params = {"head": {"kernel": jnp.ones((4, 3))}}
  built = optimizer.build_optimizer(config, 10, 8.0)
  grads = jax.tree.map(jnp.zeros_like, params)
  updates, _ = built.tx.update(grads, built.tx.init(params), params)
  np.testing.assert_allclose(
    updates["head"]["kernel"], -config.weight_decay, rtol=1e-6
  )


@pytest.mark.parametrize(
  "changes", [{"base_width": -1}, {"base_width": 8, "init_std": 0.02}]
)
def test_a_base_that_makes_no_sense_is_refused(changes):
  with pytest.raises(ValueError, match="base_width is a width, with init_std"):
    dataclasses.replace(star(BASE).config, **changes)


@functools.cache
def change(width, base_width, name):
  """Root mean square of what a few steps change: (features, logits)."""
  module = star(width, base_width)
  config = common.optimizer()
  config.update(
    name=name,
    learning_rate=0.02,
    schedule="constant",
    warmup_steps=0,
    weight_decay=0.0,
    weight_decay_end=0.0,
    clip_norm=0.0,
  )
  tx = optimizer.build_optimizer(config, 10, module.config.width_ratio).tx
  schedule, rng = module.config.schedule, np.random.default_rng(0)
  text = random_text(BATCH, 4, module.config.text_dim)
  shape = (BATCH, schedule.num_tokens - 1, module.config.code_dim)
  x_BLCv = rng.standard_normal(shape).astype(np.float32)
  idx_BL = rng.integers(0, module.config.vocab_size, (BATCH, shape[1] + 1))

  def forward(params):
    return module.apply({"params": params}, x_BLCv, text, return_features=True)

  def loss(params):
    logits_BLV, _ = forward(params)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits_BLV, idx_BL
    ).mean()

  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def run(key):
    first = module.init(key, *example_inputs(module))["params"]

    def step(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    (last, _), _ = jax.lax.scan(step, (first, tx.init(first)), length=STEPS)
    before, after = forward(first), forward(last)
    return [jnp.sqrt(jnp.square(a - b).mean()) for a, b in zip(after, before)]

  logits, features = (float(x) for x in run(jax.random.key(0)))
  return features, logits


@pytest.mark.long
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_coordinates_do_not_grow_with_the_width(name):
  """8 times the width: features and logits move as far as before."""
  narrow, wide = change(BASE, BASE, name), change(8 * BASE, BASE, name)
  for before, after in zip(narrow, wide):
    assert 0.5 < after / before < 1.6


@pytest.mark.long
def test_they_do_without_it():
  narrow, wide = change(BASE, 0, "adamw"), change(8 * BASE, 0, "adamw")
  assert wide[1] / narrow[1] > 2
