"""Dropping tokens: targets, nested squares, the loss of what is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common, star_1024, star_scenes64
from star_jax.scales import ScaleSchedule
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.train.losses import token_losses
from star_jax.train.token_data import given_of
from star_jax.train.token_drop import TokenDrop
from star_jax.train.transformer_task import TransformerTask
from tests.train import quick

SCHEDULE = ScaleSchedule.from_patch_nums([1, 2, 4, 6])
L = SCHEDULE.num_tokens


def drop(**changes) -> TokenDrop:
  return TokenDrop(**common.token_drop().to_dict() | changes)


def draw(settings, batch, schedule=SCHEDULE, seed=0):
  idx_BL = jnp.zeros((batch, schedule.num_tokens), jnp.int32)
  return settings.draw(schedule, idx_BL, jax.random.key(seed))


def test_nothing_is_dropped_by_default():
  assert drop().lengths(SCHEDULE) == SCHEDULE.lengths
  kept = draw(drop(), 2)
  np.testing.assert_array_equal(kept.index_BL, np.tile(np.arange(L), (2, 1)))


@pytest.mark.parametrize("target", [22, 30, L])
def test_random_keeps_so_many_tokens_each_equally_often(target):
  kept = draw(drop(way="random", tokens=target), 8000)
  assert kept.lengths == (1, 4, 16, target - 21)
  assert kept.index_BL.shape == (8000, target)
  assert (np.diff(kept.index_BL, axis=1) > 0).all()
  np.testing.assert_array_equal(kept.weight_BL, 1.0)
  seen = np.bincount(np.ravel(kept.index_BL), minlength=L) / 8000
  np.testing.assert_array_equal(seen[:21], 1.0)
  np.testing.assert_allclose(seen[21:], (target - 21) / 36, atol=0.03)


def test_random_pairs_are_kept_as_often_as_in_a_uniform_subset():
  """Neighbours are as likely kept together as places far apart."""
  kept = draw(drop(way="random", tokens=21 + 2), 20_000)
  pair = np.asarray(kept.index_BL[:, -2:]) - 21
  seen = np.zeros((36, 36))
  np.add.at(seen, (pair[:, 0], pair[:, 1]), 1)
  expected = 20_000 / (36 * 35 / 2)
  assert seen[np.triu_indices(36, 1)].min() > expected / 3
  assert seen[np.triu_indices(36, 1)].max() < expected * 2.5


def test_random_drops_from_several_scales_in_proportion():
  settings = drop(way="random", tokens=5 + 28, last_scales=2)
  assert settings.lengths(SCHEDULE) == (1, 4, 9, 19)
  sums = {
    sum(drop(way="random", tokens=n, last_scales=3).lengths(SCHEDULE)) - n
    for n in range(4, L + 1)
  }
  assert sums == {0}


def allowed_corners(sides, edge, lengths):
  """All chains of beginnings along one axis, by the rule of the authors."""
  chains = [((), 0.0, 1.0)]
  for side, length in zip(sides, lengths):
    longer = []
    for chain, low, high in chains:
      low, high = round(low * length), round(high * length)
      for begin in range(low, high - side + 1):
        bounds = (begin + edge) / length, (begin + side - edge) / length
        longer.append((chain + (begin,), *bounds))
    chains = longer
  return {chain for chain, *_ in chains}


@pytest.mark.parametrize(
  "grids, sides, edge",
  [((1, 5, 6, 9), (5, 4, 3), 1), ((1, (3, 5), (4, 7)), (3, 2), 0)],
)
def test_squares_lie_within_each_other(grids, sides, edge):
  schedule = ScaleSchedule.from_patch_nums(grids)
  settings = drop(way="crop", sides=sides, edge=edge)
  kept = draw(settings, 4000, schedule)
  first = schedule.num_scales - len(sides)
  assert kept.lengths[first:] == tuple(side**2 for side in sides)
  np.testing.assert_array_equal(kept.weight_BL, 1.0)
  ends = np.cumsum(kept.lengths)
  corners = []
  for k, side in enumerate(sides, first):
    begin, (_, width) = schedule.begin_ends[k][0], schedule.grids[k]
    place = np.asarray(kept.index_BL[:, ends[k - 1] : ends[k]]) - begin
    row, column = place // width, place % width
    corners.append((row[:, 0], column[:, 0]))
    inside = np.arange(side**2)
    np.testing.assert_array_equal(row - row[:, :1], [inside // side] * 4000)
    np.testing.assert_array_equal(
      column - column[:, :1], [inside % side] * 4000
    )
  for axis in range(2):
    seen = {tuple(x) for x in np.stack([c[axis] for c in corners], 1).tolist()}
    lengths = [grid[axis] for grid in schedule.grids[first:]]
    assert seen == allowed_corners(sides, edge, lengths)


def test_the_squares_of_the_published_code_fit():
  """Its sides of 31 and 26 tokens of the last two scales at 1024 px."""
  schedule = ScaleSchedule.from_name("1024")
  settings = drop(way="crop", sides=(31, 26))
  lengths = settings.lengths(schedule)
  assert lengths[-2:] == (961, 676) and sum(lengths) == 4688


def test_the_target_of_the_published_config():
  c = star_1024.get_config()
  schedule = ScaleSchedule.from_name(c.model.schedule)
  lengths = TokenDrop(**c.token_drop).lengths(schedule)
  assert sum(lengths) == 8800 and lengths[:-1] == schedule.lengths[:-1]


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      dict(way="random", tokens=L + 1),
      r"from 22 \(one in each scale that loses some\) to all 57 .* got 58",
    ),
    (dict(way="random", tokens=21), "from 22 .* got 21"),
    (dict(way="random", tokens=30, last_scales=5), "of the 4 scales .* got 5"),
    (dict(way="crop", sides=(7,)), r"a square of side 7 .* grid \(6, 6\)\."),
    (
      dict(way="crop", sides=(4, 5), edge=1),
      r"side 5 does not always fit into the grid \(6, 6\) and the square"
      " before it, less 1 tokens",
    ),
    (dict(way="crop", sides=(1,) * 5), "there are 4, got"),
    (dict(way="crop", sides=(2,), edge=-1), "edge is from 0 on"),
    (dict(way="rarity", tail=(37,)), r"the scales have \(1, 4, 16, 36\), got"),
  ],
)
def test_targets_that_do_not_fit_the_schedule(changes, message):
  with pytest.raises(ValueError, match=message):
    drop(**changes).lengths(SCHEDULE)


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(way="rare"), "one of rarity, random, crop, got 'rare'"),
    (dict(way="random"), "'random' needs config.token_drop.tokens, got"),
    (dict(tokens=30), "way='random' alone takes config.token_drop.tokens"),
    (
      dict(way="crop", sides=(2,), tail=(3,)),
      "way='rarity' alone takes config.token_drop.tail",
    ),
  ],
)
def test_settings_belong_to_their_way(changes, message):
  with pytest.raises(ValueError, match=message):
    drop(**changes)


def task_of(**token_drop):
  c = star_scenes64.get_config("runlocal")
  c.model.update(schedule=(1, 2, 3, 4), depth=1, width=16, num_heads=2)
  c.cond_drop_rate = 0.0
  c.sampling.prompts = ()
  c.token_drop.update(token_drop)
  return TransformerTask(c)


@pytest.mark.long
@pytest.mark.parametrize(
  "changes",
  [
    dict(way="random", tokens=20, last_scales=2),
    dict(way="crop", sides=(3, 2), edge=0),
  ],
)
def test_the_loss_is_the_mean_over_the_tokens_kept(changes):
  """One program for all draws, whose loss weighs every kept token alike."""
  task = task_of(**changes)
  batch = next(task.train_batches())
  params, extra = jax.jit(task.init)(jax.random.key(0))
  traced = []

  def step(params, key):
    traced.append(key)
    loss, (metrics, _) = task.loss(params, extra, task.frozen, batch, key, 0)
    return loss, metrics["loss"]

  run = jax.jit(step, compiler_options=quick.OPTIONS)
  keys = [jax.random.key(seed) for seed in range(3)]
  losses = [tuple(map(float, run(params, key))) for key in keys]
  assert len(traced) == 1 and len(set(losses)) == 3

  kept = task.token_drop.draw(
    task.star_config.schedule, batch["idx"], jax.random.split(keys[0], 3)[2]
  )

  @functools.partial(jax.jit, compiler_options=quick.OPTIONS)
  def logits_of(params, frozen, kept):
    x_BLCv = teacher_forcing_input(
      task.star_config, task.tokenizer.vqvae, frozen, batch["idx"]
    )
    return task.star.apply(
      {"params": params}, x_BLCv, given_of(batch), kept=kept
    )

  logits_BLV = logits_of(params, task.frozen["tokenizer"], kept)
  idx_BL = jnp.take_along_axis(jnp.asarray(batch["idx"]), kept.index_BL, axis=1)
  mean = float(token_losses(logits_BLV, idx_BL)[0].mean())
  np.testing.assert_allclose(losses[0], mean, rtol=1e-5)


def test_a_task_refuses_a_target_above_all_tokens():
  with pytest.raises(ValueError, match="to all 30 of this schedule, got 31"):
    task_of(way="random", tokens=31)
