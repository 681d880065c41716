"""Every training config builds its model; shared keys are complete."""

import importlib
import pathlib

import jax
import pytest

from configs import common
from star_jax.bundle import load_bundle
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.sampling.sampler import check_pair
from star_jax.shapes import parameter_tree
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.growth import grow_tokenizer
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.optimizer import build_optimizer
from star_jax.train.report import parameter_table
from star_jax.train.token_drop import TokenDrop

FOLDER = pathlib.Path(common.__file__).parent


def is_training(text):
  """Whether launch/train.py reads a config file, by what it says."""
  return "launch/train.py" in text and "launch/sweep.py --config" not in text


TRAINING = sorted(
  path.stem
  for path in FOLDER.glob("*.py")
  if is_training(path.read_text()) and path.stem != "common"
)


def load(name, arg=None):
  return importlib.import_module(f"configs.{name}").get_config(arg)


def test_the_configs_are_found():
  known = {"tokenizer_scenes64", "tokenizer_ablations", "star_scenes64"}
  assert known | {"star_256", "refine_scenes64", "var_emoji"} <= set(TRAINING)
  assert "ablations" not in TRAINING


@pytest.mark.parametrize("arg", [None, "runlocal"])
@pytest.mark.parametrize("name", TRAINING)
def test_config_describes_a_model(name, arg):
  config = load(name, arg)
  build_optimizer(config.optimizer, config.num_steps)
  if config.stage == "tokenizer":
    module = VQVAE(VQVAEConfig.from_dict(config.tokenizer.to_dict()))
    assert module.config.image_size == tuple(config.data_options.size)
  elif config.stage == "refine":
    refined = load_bundle(FOLDER.parent / config.bundle).star_config
    module = RefineHead(refined, RefineConfig(**config.refine))
  else:
    module = Star(StarConfig.from_dict(config.model.to_dict()))
  assert "total" in parameter_table(parameter_tree(module))


@pytest.mark.parametrize("name", TRAINING)
def test_configs_of_stage_2_have_every_key_that_the_step_reads(name):
  config = load(name)
  if config.stage == "transformer":
    keys = {"cond_drop_rate", "token_drop", "scale_weights", "sampling"}
    keys.add("classes" if config.model.get("num_classes") else "text")
    assert keys <= set(config)


@pytest.mark.parametrize("name", TRAINING)
def test_headers_are_lab_records(name):
  text = importlib.import_module(f"configs.{name}").__doc__
  assert f"--config=configs/{name}.py" in text
  assert "Expected" in text


@pytest.mark.parametrize("name", TRAINING)
def test_unknown_argument_names_the_accepted_ones(name):
  with pytest.raises(ValueError, match=r"'huge'; accepted .*runlocal"):
    load(name, "huge")


@pytest.mark.parametrize("name", TRAINING)
def test_runlocal_needs_no_data_and_few_steps(name):
  config = load(name, "runlocal")
  assert config.data == "synthetic"
  assert config.num_steps <= 20


def test_stage_2_fits_the_tokens_of_its_stage_1():
  model = load("star_scenes64").model
  tokenizer = load("tokenizer_scenes64").tokenizer
  for key in ("schedule", "vocab_size", "code_dim"):
    assert model[key] == tokenizer[key]


@pytest.mark.parametrize("size,millions", [("d16", 274), ("d30", 1680)])
def test_star_256_has_the_published_sizes(size, millions):
  module = Star(StarConfig.from_dict(load("star_256", size).model.to_dict()))
  count = sum(leaf.size for leaf in jax.tree.leaves(parameter_tree(module)))
  assert count / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name, sides", [("star_512", 32), ("star_1024", 64)])
def test_high_resolutions_are_the_published_model(name, sides):
  config = load(name)
  model = StarConfig.from_dict(config.model.to_dict())
  assert model.schedule.final_grid == (sides, sides)
  assert tuple(config.data_options.size) == (16 * sides, 16 * sides)
  assert (model.depth, model.rope_norm, model.rope_theta) == (30, 64.0, 1e4)
  count = sum(
    leaf.size for leaf in jax.tree.leaves(parameter_tree(Star(model)))
  )
  assert count / 1e6 == pytest.approx(1680, rel=0.02)


def test_a_chain_grows_by_levels_alone():
  bundle = load_bundle(FOLDER.parent / load("star_chain").tokenizer_path)
  shapes = {}
  for arg in ("64", "128", "256"):
    config = load("star_chain", arg)
    model = StarConfig.from_dict(config.model.to_dict())
    grown = grow_tokenizer(
      bundle.tokenizer_config, bundle.params["tokenizer"], model.schedule
    )
    check_pair(Star(model), VQVAE(grown.config))
    assert grown.config.image_size == tuple(config.data_options.size)
    assert config.init_from and config.grow == "side"
    assert len(config.scale_weights) == model.schedule.num_scales
    drop = TokenDrop(**config.token_drop)
    for aspect in config.aspects:
      drop.lengths(model.schedule.with_aspect(aspect))
    tree = parameter_tree(Star(model))
    assert tree.pop("lvl_embed").shape[0] == model.schedule.num_scales
    shapes[arg] = jax.tree.map(lambda leaf: leaf.shape, tree)
  assert shapes["64"] == shapes["128"] == shapes["256"]
