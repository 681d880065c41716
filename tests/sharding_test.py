"""Meshes, rules, and that a sharded model is the unsharded one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS
from configs.star_scenes64 import get_config
from star_jax import sharding
from star_jax.model import attention
from star_jax.model.config import StarConfig
from star_jax.model.kept_tokens import KeptTokens
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from star_jax.shapes import example_inputs, parameter_tree
from star_jax.testing import (
  SAMPLING,
  tiny_star_config,
  tiny_tokenizer_config,
)
from star_jax.text import bert, clip, t5
from star_jax.text.states import TextStates
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.global_arrays import fetch, place_by_rules
from star_jax.train.logging import read_metrics
from star_jax.train.loop import train_and_evaluate
from tests.cases import long_but

BATCH, TEXT_TOKENS = 8, 5
MESHES = {
  "data": dict(data=8),
  "fsdp": dict(fsdp=8),
  "tensor": dict(tensor=2, data=4),
  "fsdp and tensor": dict(data=2, fsdp=2, tensor=2),
  "sequence": dict(sequence=4, fsdp=2),
  "all": dict(fsdp=2, sequence=2, tensor=2),
}
QUICK = {"xla_backend_optimization_level": 0}


def make_mesh(**axes):
  return sharding.make_mesh({"data": 1, **axes})


# --- meshes and rules


def test_minus_one_takes_the_devices_that_are_left():
  mesh = make_mesh(data=-1, tensor=2)
  assert mesh.shape == {"data": 4, "fsdp": 1, "sequence": 1, "tensor": 2}
  assert make_mesh(fsdp=4).size == 4  # the first four of eight


@pytest.mark.parametrize(
  "axes,sentence",
  [
    (dict(data=3), "needs a multiple of 3 devices, here are 8"),
    (dict(data=-1, fsdp=-1), "at most is -1"),
    (dict(tensor=0), "whole number from 1 on, or -1"),
  ],
)
def test_meshes_that_do_not_fit_the_devices(axes, sentence):
  with pytest.raises(ValueError, match=sentence):
    make_mesh(**axes)


def test_the_platform_is_that_of_the_mesh_and_not_of_this_machine():
  assert sharding.platform() == ""
  with sharding.use_mesh(make_mesh(data=2)):
    assert sharding.platform() == "cpu"


def test_what_a_mesh_does_not_divide():
  mesh = make_mesh(fsdp=2, tensor=4)
  with pytest.raises(ValueError, match=r"batch_size = 3 .* 2 parts"):
    sharding.check_batch(mesh, 3)
  with pytest.raises(ValueError, match=r"accumulate = 3 times the 2 parts"):
    sharding.check_batch(mesh, 8, 3)
  with pytest.raises(ValueError, match=r"tensor = 4 .* 30 heads"):
    sharding.check_heads(mesh, 30)
  with pytest.raises(ValueError, match=r"fsdp = 2 does not divide head/kernel"):
    sharding.spec_of("head/kernel", (5, 8), mesh)


def test_a_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match=r"No sharding rule .* blocks/attn/new"):
    sharding.spec_of("blocks/attn/new", (4, 4), make_mesh(fsdp=2))


@pytest.mark.parametrize(
  "axes,sentence",
  [(("fsdp", ("data", "fsdp")), "twice"), (("model",), "names .'model'.")],
)
def test_rules_name_each_mesh_axis_once(axes, sentence):
  with pytest.raises(ValueError, match=sentence):
    sharding.check_rules(((".*", axes),))


def test_first_rule_wins_and_optional_axes_give_way():
  mesh = make_mesh(fsdp=2, tensor=2)
  rules = ((r"^a", ("fsdp", "tensor?")), (r"a", ("tensor", None)))
  spec = sharding.PartitionSpec
  assert sharding.spec_of("ab", (4, 4), mesh, rules) == spec("fsdp", "tensor")
  assert sharding.spec_of("ab", (4, 3), mesh, rules) == spec("fsdp")
  assert sharding.spec_of("ba", (4, 3), mesh, rules) == spec("tensor")
  # One axis more than the rule: a stack.
  assert sharding.spec_of("ab", (7, 4, 4), mesh, rules) == spec(
    None, "fsdp", "tensor"
  )


def text_encoders():
  ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
  for network in (
    bert.Bert(bert.BertConfig(100, 16, 2, 2, 64, 8, 2, 1e-6, 0)),
    clip.Clip(clip.ClipConfig()),
    t5.T5(t5.T5Config()),
  ):
    yield jax.eval_shape(network.init, jax.random.key(0), ids, mask)["params"]


@functools.cache
def every_tree():
  level = {**PRESETS["test"], "adaptive_norm": "level"}
  modules = [
    Star(StarConfig.from_dict(dict(preset)))
    for preset in (*PRESETS.values(), level)
  ]
  for name, head in REFINE_HEADS.items():
    config = StarConfig.from_dict(dict(PRESETS[name]))
    modules.append(RefineHead(config, RefineConfig(**head)))
  modules += [VQVAE(VQVAEConfig.from_dict(t)) for t in TOKENIZERS.values()]
  texts = [{"text": params} for params in text_encoders()]
  return [*map(parameter_tree, modules), *texts]


def test_every_parameter_of_every_preset_has_a_rule_that_divides_it():
  mesh = make_mesh(fsdp=4, tensor=2)
  cut = 0
  for tree in every_tree():
    for leaf in jax.tree.leaves(sharding.shardings_of(tree, mesh)):
      cut += any(leaf.spec)
  assert cut > 100


def test_no_rule_is_left_without_a_parameter():
  needed = set()
  for tree in every_tree():
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
      name = sharding.path_name(path)
      needed.add(next(p for p, _ in sharding.RULES if re.search(p, name)))
  rest = {p for p, _ in sharding.RULES if "activations/" not in p} - needed
  # Discriminators and frozen networks, which
  # tests/adversarial/discriminator_test.py looks at, and what a state or a
  # batch holds beside parameters.
  assert rest == {
    r"(^|/)(discriminator|adversary)/(.*/)?kernel$",
    r"(^|/)adversary/",
    r"(^|/)(vgg16|efficientnet|dino)/(.*/)?kernel$",
    r"(^|/)dino/(cls_token|pos_embed)$",
    r"^networks/",
    r"(^|/)usage_KV$",
    r"(^|/)null(/|$)",
    r"(^|/)(step|count|ns_coeffs)$",
  }


# --- the same numbers


def make_config(**changes) -> StarConfig:
  schedule = (1, 2, 3, 4, 6, 8)
  return StarConfig.from_dict(
    {**PRESETS["test"], "schedule": schedule, "depth": 2, **changes}
  )


def inputs_of(config: StarConfig):
  keys = jax.random.split(jax.random.key(1), 3)
  num_tokens = config.schedule.num_tokens
  x = jax.random.normal(keys[0], (BATCH, num_tokens - 1, config.code_dim))
  shape = (BATCH, TEXT_TOKENS, config.text_dim)
  lengths = jnp.arange(BATCH)[:, None] % TEXT_TOKENS
  given = TextStates(
    jax.random.normal(keys[1], shape),
    jnp.arange(TEXT_TOKENS) <= lengths,
    jax.random.normal(keys[2], (BATCH, config.text_dim)),
  )
  return x, given


@functools.cache
def initial_params(config: StarConfig):
  star = Star(config)
  init = jax.jit(star.init)
  return init({"params": jax.random.key(0)}, *example_inputs(star))["params"]


def loss_and_grads(config, mesh=None, kept=None):
  """Of a loss that every logit counts in differently."""
  star, params = Star(config), initial_params(config)
  x, given = inputs_of(config)
  if mesh is not None:
    params = place_by_rules(params, mesh)
    x, given = jax.device_put((x, given), sharding.batch_sharding(mesh))

  def loss(params):
    with sharding.use_mesh(mesh):
      logits = star.apply({"params": params}, x, given, kept=kept)
    weight = jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
    return jnp.sum(logits * weight) + jnp.sum(jnp.square(logits)) / 100

  def both(params):
    value, grads = jax.value_and_grad(loss)(params)
    with sharding.use_mesh(mesh):
      return value, sharding.constrain_tree(grads)

  return jax.jit(both, compiler_options=QUICK)(params)


def assert_same(found, expected):
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  for ours, theirs in zip(
    jax.tree.leaves(fetch(found[1])), jax.tree.leaves(expected[1])
  ):
    atol = 2e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)


def test_a_mesh_that_cuts_an_axis_of_a_torus_is_made(monkeypatch):
  """jax.make_mesh refuses such sizes, 2 of the 4 of a TPU's axis."""

  def refuse(*args, **kwargs):
    raise NotImplementedError("Failed to find assignment")

  expected = make_mesh(data=2, fsdp=2, tensor=2)
  monkeypatch.setattr(jax, "make_mesh", refuse)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  assert mesh.shape == expected.shape
  assert mesh.axis_types == expected.axis_types
  assert {*mesh.devices.flat} == {*jax.devices()}


@pytest.fixture(scope="module")
def whole():
  return loss_and_grads(make_config())


@pytest.mark.parametrize(
  "axes", long_but([3, 5], [*MESHES.values()], [*MESHES])
)
def test_loss_and_gradients_are_those_of_one_device(axes, whole):
  mesh = make_mesh(**axes)
  found = loss_and_grads(make_config(), mesh)
  assert_same(found, whole)
  qkv = found[1]["blocks"]["attn"]["qkv"]
  size = qkv.size // (mesh.shape["fsdp"] * mesh.shape["tensor"])
  assert qkv.addressable_shards[0].data.size == size


@pytest.mark.long
@pytest.mark.parametrize(
  "changes",
  [
    {"adaptive_norm": "level", "remat": "layer"},
    {"position": "absolute", "attn_l2_norm": False},
  ],
  ids=str,
)
def test_other_models_share_the_tokens_of_a_picture(changes):
  config = make_config(**changes)
  mesh = make_mesh(sequence=4, tensor=2)
  assert_same(loss_and_grads(config, mesh), loss_and_grads(config))


@pytest.mark.long
def test_tokens_left_out_share_the_rest_of_a_picture():
  config = make_config()
  lengths = (1, 4, 9, 16, 20, 24)
  rng = np.random.default_rng(0)
  index = [
    np.concatenate(
      [
        np.sort(rng.permutation(np.arange(*span))[:count])
        for span, count in zip(config.schedule.begin_ends, lengths)
      ]
    )
    for _ in range(BATCH)
  ]
  weight_L = np.repeat(np.divide(config.schedule.lengths, lengths), lengths)
  weight_BL = np.broadcast_to(weight_L.astype(np.float32), (BATCH, 74))
  kept = KeptTokens(jnp.asarray(index), jnp.asarray(weight_BL), lengths)
  mesh = make_mesh(fsdp=2, sequence=4)
  found = loss_and_grads(config, mesh, kept)
  assert_same(found, loss_and_grads(config, kept=kept))


@pytest.mark.long
def test_heads_one_after_the_other_stay_on_their_devices(whole, monkeypatch):
  monkeypatch.setattr(attention, "BLOCK_ELEMENTS", 1)
  config = make_config(num_heads=4, width=32)
  mesh = make_mesh(tensor=2, data=4)
  assert_same(loss_and_grads(config, mesh), loss_and_grads(config))


@pytest.mark.long
@pytest.mark.parametrize(
  "axes", [dict(data=2, fsdp=2, tensor=2), dict(data=8)], ids=str
)
def test_samples_are_those_of_one_device(axes):
  tokenizer = tiny_tokenizer_config()
  config = tiny_star_config(tokenizer)
  star, vqvae = Star(config), VQVAE(tokenizer)
  params = {
    "star": initial_params(config),
    "tokenizer": jax.jit(vqvae.init)(
      jax.random.key(1), jnp.zeros((1, *tokenizer.image_size, 3))
    )["params"],
  }
  _, given = inputs_of(config)
  null = jax.tree.map(lambda x: x[:1] * 0, given).replace(
    text_mask_BT=jnp.ones((1, TEXT_TOKENS), bool)
  )
  args = (null, sample_keys(3, jnp.arange(BATCH)), Knobs.of(SAMPLING))
  one = build_sampler(star, vqvae, SamplerConfig())(params, given, *args)
  assert len(np.unique(one.idx_BL, axis=0)) == BATCH
  mesh = make_mesh(**axes)
  sampler = build_sampler(star, vqvae, SamplerConfig(), mesh=mesh)
  here = jax.device_put(given, sharding.batch_sharding(mesh))
  found = sampler(place_by_rules(params, mesh), here, *args)
  np.testing.assert_array_equal(found.idx_BL, one.idx_BL)
  np.testing.assert_allclose(found.image_BHW3, one.image_BHW3, atol=1e-5)
  assert len(found.image_BHW3.sharding.device_set) == 8


# --- a whole run


def losses_of(workdir, **axes):
  c = get_config("runlocal")
  c.model.update(schedule=(1, 2, 4), depth=2)
  c.update(
    batch_size=8, num_steps=3, log_every=1, eval_every=3, eval_batches=1,
    sample_every=0, checkpoint_every=2,
  )  # fmt: skip
  c.mesh.update(dict(data=1, **axes))
  train_and_evaluate(c, workdir)
  return {
    (row["split"], row["step"]): row["loss"] for row in read_metrics(workdir)
  }


@pytest.mark.long
def test_a_sharded_run_has_the_losses_of_one_device(tmp_path, capsys):
  expected = losses_of(tmp_path / "one")
  found = losses_of(tmp_path / "many", fsdp=2, sequence=2, tensor=2)
  printed = capsys.readouterr().out
  assert "Mesh: data 1, fsdp 2, sequence 2, tensor 2" in printed
  assert "blocks/attn/qkv" in printed
  assert found.keys() == expected.keys() and len(found) == 5
  for key, loss in expected.items():
    assert found[key] == pytest.approx(loss, rel=2e-5), key
