"""A trained model as the start of one with more scales."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from configs import star_scenes64
from star_jax import testing
from star_jax.bundle import load_bundle, save_bundle
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.scales import ScaleSchedule
from star_jax.train.grow import grow_star, load_grown
from star_jax.train.loop import train_and_evaluate


def config(*sides, **changes) -> StarConfig:
  tokenizer = testing.tiny_tokenizer_config(sides)
  return testing.tiny_star_config(tokenizer, rope_norm=3.0, **changes)


def params_of(config, seed):
  return jax.tree.map(np.asarray, testing.random_params(Star(config), seed))


def grow(old, new, how="index"):
  trained, fresh = params_of(old, 1), params_of(new, 2)
  return trained, fresh, grow_star(trained, old, new, fresh, how)


def test_all_but_the_levels_is_kept():
  trained, fresh, grown = grow(config(1, 2, 3), config(1, 2, 3, 4, 5))
  levels = grown.params.pop("lvl_embed")
  np.testing.assert_array_equal(levels[:3], trained.pop("lvl_embed"))
  np.testing.assert_array_equal(levels[3:], fresh["lvl_embed"][3:])
  jax.tree.map(np.testing.assert_array_equal, grown.params, trained)
  assert grown.grown == {"lvl_embed": "3 levels kept, 2 fresh"}
  assert not grown.dropped
  assert "Grown lvl_embed: 3 levels kept, 2 fresh" in grown.describe()


@pytest.mark.long
def test_the_grown_model_says_the_same_of_the_old_scales():
  """Coarse scales do not see fine ones: their logits are the old ones."""
  old, new = config(1, 2, 3), config(1, 2, 3, 4)
  trained, _, grown = grow(old, new)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, new.schedule.num_tokens - 1, old.code_dim))
  text = testing.random_text(1, 5, old.text_dim)
  before, after = (
    jax.jit(Star(c).apply)({"params": params}, inputs, text)
    for c, params, inputs in ((old, trained, x[:, :13]), (new, grown.params, x))
  )
  np.testing.assert_allclose(after[:, :14], before, atol=1e-5)


def test_levels_by_side_lie_between_their_neighbours():
  old = config(1, 2, 4)
  new = dataclasses.replace(
    old, schedule=ScaleSchedule.from_patch_nums([1, 2, 3, 4, 8])
  )
  trained, _, grown = grow(old, new, "side")
  rows, table = grown.params["lvl_embed"], trained["lvl_embed"]
  np.testing.assert_allclose(rows[[0, 1, 3]], table, atol=1e-6)
  share = np.log(3 / 2) / np.log(2)
  between = (1 - share) * table[1] + share * table[2]
  np.testing.assert_allclose(rows[2], between, atol=1e-6)
  # Beyond the largest known map nothing is known but its row.
  np.testing.assert_allclose(rows[4], table[2], atol=1e-6)


def test_the_second_of_two_equal_sides_comes_from_the_second():
  old = config(1, 2, 4, 4)
  new = dataclasses.replace(
    old, schedule=ScaleSchedule.from_patch_nums([1, 2, 4, 8])
  )
  trained, _, grown = grow(old, new, "side")
  np.testing.assert_allclose(
    grown.params["lvl_embed"], trained["lvl_embed"], atol=1e-6
  )


def test_positions_by_side_are_resized_maps():
  old, new = (
    config(1, 2, position="absolute"),
    config(1, 4, position="absolute"),
  )
  trained, _, grown = grow(old, new, "side")
  rows = grown.params["pos_embed"]
  np.testing.assert_allclose(rows[0], trained["pos_embed"][0], atol=1e-6)
  corners = rows[1:].reshape(4, 4, -1)[[0, 0, 3, 3], [0, 3, 0, 3]]
  np.testing.assert_allclose(corners, trained["pos_embed"][1:], atol=1e-6)


@pytest.mark.parametrize(
  "new, how, match",
  [
    (config(1, 2, 4), "size", "config.grow is one of index, side, got 'size'"),
    (
      config(1, 3, 4, position="absolute"),
      "index",
      "where one schedule begins with the other, got .*'side' maps them",
    ),
    (config(1, 2, 4, lvl_embed=False), "index", None),
    (config(1, 2, 4, cross_attention=False), "index", None),
    (
      config(1, 2, 4, width=32),
      "index",
      r"shape \(2, 16\), the new model's is \(2, 32",
    ),
    (
      config(1, 2, 4, position="rope+absolute"),
      "index",
      "has no parameter pos_embed: its settings differ in more",
    ),
  ],
)
def test_what_cannot_be_mapped(new, how, match):
  position = "absolute" if new.position == "absolute" else "rope"
  old = config(1, 2, 3, position=position)
  if match is None:
    # What the new model lacks is dropped, and said.
    _, _, grown = grow(old, new, how)
    assert grown.dropped and "Dropped" in grown.describe()
    return
  with pytest.raises(ValueError, match=match):
    grow(old, new, how)


def run_config(sides, **changes):
  c = star_scenes64.get_config("runlocal")
  c.model.schedule = sides
  c.update(dict(num_steps=2, eval_every=0, sample_every=0, **changes))
  return c


@pytest.mark.long
def test_a_run_starts_from_one_with_fewer_scales(tmp_path, capsys):
  train_and_evaluate(run_config((1, 2)), tmp_path / "small")
  start = dict(init_from=str(tmp_path / "small"), grow="index")
  summary = train_and_evaluate(
    run_config((1, 2, 3), **start), tmp_path / "large"
  )
  assert summary["step"] == 2
  said = capsys.readouterr().out
  assert "Grown lvl_embed: 2 levels kept, 1 fresh" in said
  # The synthetic tokenizer has four phi.
  assert "old, K = 2 (1, 2): 0, 3" in said
  assert re.search(r"new, K = 3 \(1, 2, 3\): 0, \d, 3", said)
  with pytest.raises(ValueError, match="written by another configuration"):
    train_and_evaluate(
      run_config((1, 2, 3), init_from=start["init_from"]), tmp_path / "other"
    )


def test_only_transformers_grow(tmp_path):
  with pytest.raises(ValueError, match="No checkpoint in"):
    load_grown(str(tmp_path), config(1, 2), {}, "index", tokenizer=None)


def test_a_bundle_is_a_start_and_loses_its_learned_positions(tmp_path):
  testing.save_tiny_bundle(tmp_path)
  bundle = load_bundle(tmp_path)
  old = bundle.star_config
  more = dataclasses.replace(old, position="rope+absolute")
  drawn = params_of(old, 5)
  grown = load_grown(str(tmp_path), old, drawn, "side", tokenizer=None)
  jax.tree.map(
    np.testing.assert_array_equal, grown.params, bundle.params["star"]
  )
  assert not grown.dropped and not grown.grown
  # The other way round: a model with positions becomes one without.
  free = grow_star(params_of(more, 1), more, old, drawn, "side")
  assert free.dropped == ("pos_embed",)
  assert "Dropped pos_embed." in free.describe()
  save_bundle(
    tmp_path / "tokenizer",
    tokenizer_config=bundle.tokenizer_config,
    tokenizer_params=bundle.params["tokenizer"],
    licence="none",
  )
  with pytest.raises(ValueError, match="holds a tokenizer alone"):
    load_grown(str(tmp_path / "tokenizer"), old, drawn, "side", tokenizer=None)
