"""Stage 1: learning, codebook start, revival of dead codes, export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tokenizer_scenes64
from star_jax.bundle import load_bundle
from star_jax.train import tokenizer_task
from star_jax.train.optimizer import build_optimizer
from star_jax.train.tokenizer_task import TokenizerTask, usage_metrics
from tests.train import quick


def config():
  c = tokenizer_scenes64.get_config("runlocal")
  c.tokenizer.update(
    schedule=(1, 2), vocab_size=16, code_dim=4, ch_mult=(1,), patch_size=4
  )
  c.tokenizer.update(growth="bicubic", quant_resi=0.5, rate_weight=(0.1, 0.1))
  c.tokenizer.share_quant_resi = 1
  c.data_options.size = (8, 8)
  c.optimizer.update(learning_rate=1e-3, warmup_steps=0, ema_decay=0.9)
  c.num_steps = 100
  return c


@pytest.fixture(scope="module")
def pieces():
  task = TokenizerTask(config())
  optimizer = build_optimizer(task.config.optimizer, 100)
  return task, optimizer, quick.init_state(task, optimizer)


def copied(state):
  """Steps donate their state."""
  return jax.tree.map(jnp.copy, state)


@pytest.mark.long
def test_step_lowers_the_loss_and_tracks_usage(pieces):
  task, optimizer, state = pieces
  state = task.start(copied(state), task.train_batches())
  batch = next(task.train_batches())
  key = jax.random.key(0)
  losses = []
  for _ in range(15):
    state, metrics = quick.train_step(
      state, {}, batch, key, loss_fn=task.loss, optimizer=optimizer
    )
    losses.append(float(metrics["loss"]))
  assert losses[-1] < 0.8 * losses[0]
  assert int(state.step) == 15
  assert metrics["codebook_used_k"].shape == (2,)
  # Every batch has 4 images of 1 + 4 tokens.
  np.testing.assert_allclose(state.extra["usage_KV"].sum(1), [4, 16], rtol=1e-4)
  evaluated = quick.eval_step(
    state.eval_params, state.extra, {}, batch, key, loss_fn=task.loss
  )
  assert np.isfinite(evaluated["psnr"])


def test_parts_of_a_batch_count_the_same_codes(pieces):
  task, _, state = pieces
  image = next(task.train_batches())["image"]

  @functools.partial(jax.jit, compiler_options=quick.OPTIONS)
  def usage(params, extra, image):
    args = (params, extra, {}, {"image": image}, jax.random.key(0), 0)
    return task.loss(*args)[1][1]["usage_KV"]

  whole = usage(state.params, state.extra, image)
  parts = [usage(state.params, state.extra, image[i::2]) for i in range(2)]
  assert np.any(parts[0] != parts[1])
  # What a step with two parts makes of them.
  np.testing.assert_allclose(sum(parts) / 2, whole, rtol=1e-6)


@pytest.mark.long
def test_codebook_starts_from_features_in_parameters_and_average(pieces):
  task, _, state = pieces
  before = state.params["quantizer"]["codebook_VCv"]
  started = task.start(copied(state), task.train_batches())
  after = started.params["quantizer"]["codebook_VCv"]
  # The official start is within 1 / V.
  assert float(jnp.abs(before).max()) <= 1 / 16
  assert float(jnp.abs(after).std()) > 1 / 16
  np.testing.assert_array_equal(
    after, started.ema_params["quantizer"]["codebook_VCv"]
  )


def test_revival_replaces_only_dead_codes_and_clears_their_moments(pieces):
  task, _, state = pieces
  state = copied(state)
  expected_KV = task._expected_usage()
  usage_KV = expected_KV.at[:, 3].set(0.0)
  state = state.replace(
    extra={"usage_KV": usage_KV},
    opt_state=jax.tree.map(jnp.ones_like, state.opt_state),
  )
  before = np.asarray(state.params["quantizer"]["codebook_VCv"])
  image = next(task.train_batches())["image"]

  def revived():
    return tokenizer_task.revive(
      copied(state),
      image,
      jax.random.key(0),
      expected_KV,
      vqvae=task.vqvae,
      threshold=0.1,
    )

  after = revived()
  codes = np.asarray(after.params["quantizer"]["codebook_VCv"])
  changed = (codes != before).any(axis=1)
  np.testing.assert_array_equal(np.flatnonzero(changed), [3])
  np.testing.assert_array_equal(
    codes[3], after.ema_params["quantizer"]["codebook_VCv"][3]
  )
  np.testing.assert_array_equal(after.extra["usage_KV"], expected_KV)
  for moments in (s for s in after.opt_state if hasattr(s, "mu")):
    mu = np.asarray(moments.mu["quantizer"]["codebook_VCv"])
    assert (mu[3] == 0).all() and (np.delete(mu, 3, axis=0) == 1).all()
  again = revived()
  jax.tree.map(np.testing.assert_array_equal, after, again)


def test_no_revival_in_the_last_part_of_the_run(pieces):
  task, _, state = pieces
  state = copied(state).replace(
    step=jnp.int32(95),  # a step of revival, not of rates
    extra={"usage_KV": jnp.zeros_like(state.extra["usage_KV"])},
  )
  batch = next(task.train_batches())
  assert task.maintain(state, batch, jax.random.key(0)) is state


def test_rates_follow_usage_late_in_the_run(pieces):
  task, _, state = pieces
  batch = next(task.train_batches())
  usage_KV = state.extra["usage_KV"].at[:, 3].mul(9.0)
  state = copied(state).replace(extra={"usage_KV": usage_KV})
  early = task.maintain(
    copied(state).replace(step=jnp.int32(50)), batch, jax.random.key(0)
  )
  assert not np.any(early.params["quantizer"]["rate_KV"])
  late = task.maintain(
    copied(state).replace(step=jnp.int32(100)), batch, jax.random.key(0)
  )
  rate_KV = np.asarray(late.params["quantizer"]["rate_KV"])
  assert (rate_KV.argmin(axis=1) == 3).all() and (rate_KV > 0).all()
  np.testing.assert_array_equal(
    rate_KV, late.ema_params["quantizer"]["rate_KV"]
  )


def test_usage_metrics_on_a_literal_table():
  usage = jnp.array([[4.0, 0, 0, 0], [0, 2, 2, 0]])
  metrics = usage_metrics(usage)
  np.testing.assert_allclose(metrics["codebook_used"], 0.75)
  np.testing.assert_allclose(metrics["codebook_used_k"], [0.25, 0.5])
  # Shares 1/2, 1/4, 1/4: entropy 1.5 bits.
  np.testing.assert_allclose(
    metrics["codebook_perplexity"], 2**1.5 / 4, rtol=1e-5
  )


def test_export_and_sheet(pieces, tmp_path):
  task, _, state = pieces
  bundle = load_bundle(task.export(state, tmp_path))
  assert bundle.tokenizer_config == task.vqvae_config
  jax.tree.map(
    np.testing.assert_array_equal,
    bundle.params["tokenizer"],
    state.ema_params,
  )
  # Originals and the two scales, 8 px each, twice as large, with gaps.
  sheet = task.pictures(state)["reconstructions"]
  assert sheet.size[1] == (3 * 8 + 2 * 2) * 2


def test_identity_is_the_tokenizer(pieces):
  task = pieces[0]
  other = config()
  other.optimizer.learning_rate = 1.0
  assert TokenizerTask(other).identity() == task.identity()
  other.tokenizer.vocab_size = 32
  assert TokenizerTask(other).identity() != task.identity()
