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
from star_jax.shapes import parameter_tree
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.optimizer import build_optimizer
from star_jax.train.report import parameter_table

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
