"""Training on pictures of several shapes."""

import jax
import numpy as np
import pytest

from configs import star_scenes64
from star_jax.bundle import load_bundle, save_bundle
from star_jax.scales import ScaleSchedule
from star_jax.train import build_cache, token_data
from star_jax.train import frozen as frozen_lib
from star_jax.train.logging import read_metrics
from star_jax.train.loop import train_and_evaluate
from star_jax.train.token_data import SCHEDULE
from star_jax.train.transformer_task import TransformerTask
from tests.train import quick

ASPECTS = ("1:1", "16:9", "9:16")
SCHEDULE_OF = {
  aspect: ScaleSchedule.from_patch_nums((1, 2, 3)).with_aspect(aspect)
  for aspect in ASPECTS
}


def config(**changes):
  c = star_scenes64.get_config("runlocal")
  c.model.update(schedule=(1, 2, 3), depth=1, width=16, text_dim=8, num_heads=2)
  c.text.max_tokens = 6
  c.sampling.prompts = ()
  c.update(changes)
  return c


def loss_of(task, params, batch):
  def loss(params, frozen):
    return task.loss(params, {}, frozen, batch, jax.random.key(1), None)[0]

  return jax.jit(loss, compiler_options=quick.OPTIONS)(params, task.frozen)


@pytest.mark.long
def test_the_loss_of_a_shape_is_that_of_a_model_made_for_it():
  task = TransformerTask(config(aspects=ASPECTS))
  params, _ = jax.jit(task.init)(jax.random.key(0))
  batches = task.train_batches()
  seen = {}
  while len(seen) < len(ASPECTS):
    batch = next(batches)
    seen[batch[SCHEDULE]] = batch
  assert set(seen) == set(SCHEDULE_OF.values())
  losses = {}
  for schedule, batch in seen.items():
    assert batch["idx"].shape[1] == schedule.num_tokens
    losses[schedule] = loss_of(task, params, batch)
    alone = config()
    alone.model.schedule = [list(grid) for grid in schedule.grids]
    plain = {key: x for key, x in batch.items() if key != SCHEDULE}
    expected = loss_of(TransformerTask(alone), params, plain)
    np.testing.assert_allclose(losses[schedule], expected, rtol=1e-6)
  # Lying and upright pictures have as many tokens and are not confused.
  wide, high = SCHEDULE_OF["16:9"], SCHEDULE_OF["9:16"]
  mistaken = loss_of(task, params, {**seen[wide], SCHEDULE: high})
  assert abs(mistaken - losses[wide]) > 1e-7


@pytest.mark.long
def test_every_shape_has_a_cache_that_equals_its_raw_pictures(
  tmp_path, monkeypatch
):
  def load(name, max_tokens, path):
    return frozen_lib.SyntheticText(8, max_tokens)

  monkeypatch.setattr(token_data, "load_text_encoder", load)
  monkeypatch.setattr(build_cache, "load_text_encoder", load)
  c = config(aspects=ASPECTS, tokenizer_path=str(tmp_path / "tokenizer"))
  tokenizer = frozen_lib.random_tokenizer(SCHEDULE_OF["1:1"], 32, 8)
  save_bundle(
    c.tokenizer_path,
    tokenizer_config=tokenizer.config,
    tokenizer_params=tokenizer.params,
    licence="none",
    storage="float32",
  )
  c.data_options.size = (3, 3)
  c.cache.update(
    source="synthetic", directory=str(tmp_path / "cache"), examples=24,
    heldout_examples=12, batch_size=4,
  )  # fmt: skip
  build_cache.build_cache(c)
  c.data = "synthetic"
  raw = TransformerTask(c).data._buckets("train")
  c.data = "cache"
  task = TransformerTask(c)
  batches = task.train_batches()
  first = {}
  for _ in range(20):
    batch = next(batches)
    first.setdefault(batch[SCHEDULE], batch)
  assert set(first) == set(SCHEDULE_OF.values())
  held_out = list(task.eval_batches())
  assert [batch[SCHEDULE] for batch in held_out] == [SCHEDULE_OF["1:1"]]
  for number, (aspect, schedule) in enumerate(SCHEDULE_OF.items()):
    cache = task.data.cache("train", aspect)
    assert len(cache) == 8
    source = raw[aspect].sources["synthetic"].source
    image, _, _ = source.example(0, c.seed + number)
    encode = task.data.shapes[aspect].tokenizer.encoder()
    np.testing.assert_array_equal(cache.rows([0])["idx"], encode(image[None]))
    assert image.shape[:2] == schedule.final_grid


@pytest.mark.long
def test_a_stopped_run_of_several_shapes_goes_on_as_an_unbroken_one(
  tmp_path, capsys
):
  options = dict(
    aspects=("1:1", "16:9"), eval_batches=2, eval_every=4, sample_every=0,
    checkpoint_every=2, log_every=1,
  )  # fmt: skip
  train_and_evaluate(config(num_steps=4, **options), tmp_path / "unbroken")
  # One program a shape, compiled once.
  assert capsys.readouterr().out.count("Training step: compiled") == 2

  class Stopped(Exception):
    pass

  class Stopping(TransformerTask):
    def train_batches(self, rows):
      source = super().train_batches(rows)
      take = source.__class__.__next__
      count = [0]

      class Few(source.__class__):
        def __next__(self):
          count[0] += 1
          if count[0] > 3:
            raise Stopped
          return take(self)

      source.__class__ = Few
      return source

  broken = config(num_steps=4, **options)
  with pytest.raises(Stopped):
    train_and_evaluate(broken, tmp_path / "broken", task=Stopping(broken))
  train_and_evaluate(broken, tmp_path / "broken")
  losses = [
    {
      (row["split"], row["step"]): row["loss"]
      for row in read_metrics(tmp_path / name)
    }
    for name in ("unbroken", "broken")
  ]
  assert losses[0] == losses[1]
  bundle = load_bundle(tmp_path / "broken" / "bundle")
  assert bundle.star_config.schedule == SCHEDULE_OF["1:1"]


@pytest.mark.parametrize(
  "aspects, model, reason",
  [
    (("1:1", "5:4"), {}, r"got '5:4'; the nearest is 4:3"),
    (("1:1", "4:3"), {}, "names 1:1 and 4:3, which are the same grids"),
    (("16:9",), {"position": "absolute"}, "learned positions, which fit"),
  ],
)
def test_shapes_that_cannot_be_trained_are_refused(aspects, model, reason):
  c = config(aspects=aspects)
  with c.unlocked():
    c.model.update(model)
  with pytest.raises(ValueError, match=reason):
    TransformerTask(c)
