"""Stages: when scales join, what a stage may not depend on, exact resumes."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import star_scenes64
from star_jax.model.kept_tokens import KeptTokens
from star_jax.train import kept_tokens, loop, start
from star_jax.train.curves import read_curves
from star_jax.train.global_arrays import place
from star_jax.train.logging import read_metrics
from star_jax.train.progressive import build_stages
from star_jax.train.transformer_task import TransformerTask
from tests.train import quick


def official_stage(it, num_steps, warmup, pg, pg0, num_scales):
  """The rule of VAR's train.py, one step at a time."""
  last = num_scales - 1
  if it <= warmup:
    return pg0
  if it >= num_steps * pg:
    return last
  progress = (it - warmup) / (num_steps * pg - warmup)
  return pg0 + round(min(max(progress, 0), 1) * (last - pg0))


def official_weights(stages, warmup):
  """The rule of VAR's trainer.py, which counts the steps of each stage."""
  weights, count, first = [], 0, True
  for i, stage in enumerate(stages):
    if i and stage != stages[i - 1]:
      count, first = 0, False
    count += 1
    weights.append(1.0 if first else max(min(count / warmup, 1), 0.01))
  return weights


@pytest.mark.parametrize(
  ("num_steps", "warmup", "share", "first", "num_scales"),
  [
    (1000, 20, 0.8, 4, 10),
    (97, 0, 1.0, 0, 6),
    (300, 45.5, 0.33, 1, 4),
    (50, 40, 0.5, 2, 5),
    (40, 3, 0.9, 3, 4),
  ],
)
def test_stages_follow_the_official_rule(
  num_steps, warmup, share, first, num_scales
):
  stages = build_stages(
    share=share,
    first_scale=first,
    warmup_steps=7,
    num_steps=num_steps,
    rate_warmup_steps=warmup,
    num_scales=num_scales,
  )
  expected = [
    official_stage(it, num_steps, warmup, share, first, num_scales)
    for it in range(num_steps)
  ]
  assert [stages.at(it) for it in range(num_steps)] == expected
  weights = official_weights(expected, 7)
  for stage in set(expected) - {num_scales - 1}:
    steps = np.flatnonzero(np.asarray(expected) == stage)
    np.testing.assert_allclose(
      jax.vmap(functools.partial(stages.newest_weight, stage))(steps),
      np.asarray(weights)[steps],
      rtol=1e-6,
    )


def test_a_share_of_zero_is_no_stage():
  stages = build_stages(
    share=0.0,
    first_scale=9,
    warmup_steps=0,
    num_steps=10,
    rate_warmup_steps=2,
    num_scales=3,
  )
  assert {stages.at(it) for it in range(10)} == {2}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"share": 1.5}, r"share is in \[0, 1\], got 1.5"),
    ({"first_scale": 3}, r"first_scale is in \[0, 2\], got 3"),
    ({"warmup_steps": -1}, "warmup_steps is 0 or more, got -1"),
  ],
)
def test_values_outside_their_range(change, message):
  values = dict(
    share=0.5,
    first_scale=1,
    warmup_steps=0,
    num_steps=10,
    rate_warmup_steps=2,
    num_scales=3,
  )
  with pytest.raises(ValueError, match=message):
    build_stages(**{**values, **change})


DROP = dict(way="rarity", tail=(2, 4))


def config(**changes):
  """Scales 1, 2, 3 in 8 steps: the first stage is scale 0 alone."""
  c = star_scenes64.get_config("runlocal")
  c.model.update(schedule=(1, 2, 3), depth=1, width=16, num_heads=2)
  c.model.position = "rope+absolute"
  c.num_steps = 8
  c.optimizer.update(warmup_steps=1, ema_decay=0.0)
  c.progressive.update(share=0.75, first_scale=0, warmup_steps=2)
  c.update(eval_batches=0, eval_every=0, sample_every=0, log_every=3)
  c.checkpoint_every = 4
  c.sampling.prompts = ()
  c.update(changes)
  return c


@pytest.mark.long
@pytest.mark.parametrize("drop", [{}, DROP])
def test_a_stage_does_not_see_the_tokens_of_later_scales(drop):
  task = TransformerTask(config(token_drop=drop))
  assert [task.stages.at(it) for it in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]
  batch = next(task.train_batches())
  params, extra = jax.jit(task.init)(jax.random.key(0))
  step = 3
  grad = jax.jit(
    jax.value_and_grad(task.loss_at(step), has_aux=True),
    compiler_options=quick.OPTIONS,
  )

  def run(idx):
    args = params, extra, task.frozen, {**batch, "idx": idx}
    return grad(*args, jax.random.key(1), jnp.asarray(step))

  idx = np.asarray(batch["idx"])
  later, earlier = idx.copy(), idx.copy()
  later[:, 5:] = (later[:, 5:] + 1) % 32
  earlier[:, :1] = (earlier[:, :1] + 1) % 32
  (loss, (metrics, _)), grads = run(idx)
  assert metrics["loss_k"].shape == (2,)
  assert float(metrics["newest_weight"]) == 0.5
  (same, _), same_grads = run(later)
  assert loss == same
  jax.tree.map(np.testing.assert_array_equal, grads, same_grads)
  assert run(earlier)[0][0] != loss
  # What belongs to later scales alone is not trained.
  assert not np.any(grads["lvl_embed"][2:]) and np.any(grads["lvl_embed"][1])
  assert not np.any(grads["pos_embed"][5:])
  assert np.any(grads["pos_embed"][1:5])


def test_the_first_scales_of_kept_tokens():
  kept = KeptTokens(jnp.arange(6)[None], jnp.arange(6.0)[None], (1, 2, 3))
  two = kept_tokens.first_scales(kept, 2)
  np.testing.assert_array_equal(two.index_BL, [[0, 1, 2]])
  np.testing.assert_array_equal(two.weight_BL, [[0.0, 1.0, 2.0]])
  assert two.lengths == (1, 2)


@pytest.mark.long
def test_a_run_compiles_once_a_stage_and_goes_on_as_if_unbroken(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(loop, "train_step", quick.train_step)
  monkeypatch.setattr(loop.report.flops_lib, "count_flops", lambda *_: 0)
  monkeypatch.setattr(
    start,
    "init_state",
    lambda task, tx, seed, places: place(quick.init_state(task, tx), places),
  )

  def stop(state, batch, key):
    if int(state.step) == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return state

  def rows(workdir, stopping=False):
    task = TransformerTask(config())
    if stopping:
      task.maintain_every, task.maintain = 1, stop
    loop.train_and_evaluate(task.config, workdir, task=task)
    return {row["step"]: row for row in read_metrics(workdir)}

  whole = rows(tmp_path / "whole")
  assert capsys.readouterr().out.count("Training step: compiled") == 3
  # Means never reach across stages.
  scales = {step: len(row["loss_k"]) for step, row in whole.items()}
  assert scales == {3: 1, 5: 2, 6: 3, 8: 3}
  assert whole[5]["finest_scale"] == 1 and "finest_scale" not in whole[6]
  assert "loss_tail" not in whole[5] and "loss_tail" in whole[8]
  assert whole[5]["newest_weight"] == (0.5 + 1.0) / 2
  # Step 4 waits in the checkpoint for its row.
  assert max(rows(tmp_path / "parts", stopping=True)) == 3
  parts = rows(tmp_path / "parts")
  for step, row in whole.items():
    assert row["loss_k"] == parts[step]["loss_k"], step
  curve = read_curves(tmp_path / "parts" / "curves.json")["curves"]
  assert [len(value) for _, value in curve["train/loss_k"]] == [1, 2, 3, 3]
