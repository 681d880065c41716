"""The update rule: schedules, decay mask, clipping, moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import common
from star_jax.train import optimizer

BASE = dict(
  peak=2.0, num_steps=101, warmup_steps=1, warmup_start=0.5, final_ratio=0.1
)


@pytest.mark.parametrize(
  "kind", ["cos", "lin", "lin0", "lin00", "lin0.4", "exp", "wsd0.3"]
)
def test_schedule_starts_peaks_and_ends_where_it_should(kind):
  rate = optimizer.learning_rate_schedule(kind, **BASE)
  np.testing.assert_allclose(rate(0), 1.0)
  np.testing.assert_allclose(rate(1), 2.0)
  np.testing.assert_allclose(rate(100), 0.2, rtol=1e-6)
  values = np.asarray(rate(np.arange(1, 101)))
  assert (np.diff(values) <= 1e-6).all()


def test_lin0_is_flat_for_a_twentieth_then_straight():
  rate = np.asarray(
    optimizer.learning_rate_schedule("lin0", **BASE)(np.arange(1, 101))
  )
  assert (rate[:5] == 2.0).all()
  assert rate[6] < 2.0
  np.testing.assert_allclose(np.diff(rate[6:], n=2), 0, atol=1e-5)


def test_wsd_is_flat_until_its_last_share():
  rate = np.asarray(
    optimizer.learning_rate_schedule("wsd0.2", **BASE)(np.arange(1, 101))
  )
  assert (rate[:79] == 2.0).all() and rate[81] < 2.0
  np.testing.assert_allclose(np.diff(rate[81:], n=2), 0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "lin2", "wsd", "wsd1", "step", ""])
def test_unknown_schedule_is_refused_by_name(kind):
  with pytest.raises(ValueError, match="Unknown learning rate schedule"):
    optimizer.learning_rate_schedule(kind, **BASE)


def test_weight_decay_goes_from_start_to_end():
  decay = optimizer.weight_decay_schedule(start=0.4, end=0.2, num_steps=11)
  np.testing.assert_allclose(decay(np.array([0, 5, 10])), [0.4, 0.3, 0.2])


def test_decay_mask_counts_dimensions_without_the_layer_axis():
  params = {
    "blocks": {
      "norm": {"scale": np.zeros((3, 4))},
      "fc": {"kernel": np.zeros((3, 4, 4)), "bias": np.zeros((3, 4))},
      "attn": {"scale_mul": np.zeros((3, 2, 2))},
    },
    "head": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)},
    "lvl_embed": np.zeros((5, 4)),
    "quantizer": {"codebook_VCv": np.zeros((8, 4))},
  }
  mask = optimizer.decay_mask(
    params, (*optimizer.OFFICIAL_NO_DECAY, "codebook")
  )
  assert mask == {
    "blocks": {
      "norm": {"scale": False},
      "fc": {"kernel": True, "bias": False},
      "attn": {"scale_mul": False},
    },
    "head": {"kernel": True, "bias": False},
    "lvl_embed": False,
    "quantizer": {"codebook_VCv": False},
  }


def _config(**changes):
  config = common.optimizer()
  config.update(
    warmup_steps=0, learning_rate=0.1, weight_decay=0.5, weight_decay_end=0.5
  )
  config.update(changes)
  return config


def test_update_is_adamw():
  params = {"w": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
  grads = {"w": jnp.array([[0.3, 0.1]]), "bias": jnp.array([-0.2])}
  built = optimizer.build_optimizer(_config(schedule="constant"), 10)
  reference = optax.adamw(
    0.1, b1=0.9, b2=0.95, weight_decay=0.5, mask={"w": True, "bias": False}
  )
  state, expected_state = built.tx.init(params), reference.init(params)
  expected = params
  for _ in range(3):
    updates, state = built.tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    updates, expected_state = reference.update(grads, expected_state, expected)
    expected = optax.apply_updates(expected, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected
  )


def test_clipping_bounds_the_global_norm_of_what_adam_sees():
  params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
  grads = {"a": jnp.full((2, 2), 3.0), "b": jnp.full(2, 4.0)}
  built = optimizer.build_optimizer(_config(clip_norm=2.0), 10)
  _, state = built.tx.update(grads, built.tx.init(params), params)
  # After one step the first moment is 0.1 times the clipped gradient.
  moments = next(s for s in state if isinstance(s, optax.ScaleByAdamState)).mu
  np.testing.assert_allclose(optax.global_norm(moments), 0.2, rtol=1e-5)


def test_average_follows_quickly_at_first_and_slowly_later():
  ema, params = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
  early = optimizer.update_ema(ema, params, 0, 0.999)["w"]
  late = optimizer.update_ema(ema, params, 1_000_000, 0.999)["w"]
  np.testing.assert_allclose(early, 0.9, rtol=1e-6)
  np.testing.assert_allclose(late, 0.001, rtol=1e-3)


def test_every_optimizer_key_is_read():
  """A misspelt key in configs/common.py would otherwise rest unnoticed."""
  read = set()

  class Spy(ConfigDict):
    def __getattr__(self, name):
      read.add(name)
      return super().__getattr__(name)

  config = _config()
  optimizer.build_optimizer(Spy(config.to_dict()), 10)
  optimizer.build_optimizer(Spy({**config.to_dict(), "name": "muon"}), 10)
  assert set(config) <= read


def test_muon_orthogonalises_the_matrices_of_the_layers_alone():
  params = {
    "blocks": {
      "fc": {"kernel": jnp.zeros((2, 8, 4)), "bias": jnp.zeros((2, 4))},
      "attn": {"qkv": jnp.zeros((2, 4, 3, 4))},
    },
    "head": {"kernel": jnp.zeros((4, 6))},
  }
  labels = optimizer.muon_labels(params)
  assert labels["blocks"] == {
    "fc": {"kernel": "muon", "bias": "adam"},
    "attn": {"qkv": "muon"},
  }
  assert labels["head"] == {"kernel": "adam"}
  config = _config(name="muon", clip_norm=0.0, schedule="constant")
  config.warmup_steps, config.learning_rate = 0, 1.0
  config.weight_decay = config.weight_decay_end = 0.0
  built = optimizer.build_optimizer(config, 10)
  keys = iter(jax.random.split(jax.random.key(0), 4))
  grads = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)
  updates, _ = jax.jit(built.tx.update)(grads, built.tx.init(params), params)
  # Every layer, and each of q, k and v, on its own: all singular values are
  # about alike, and the entries have the size of a typical Adam update.
  qkv = updates["blocks"]["attn"]["qkv"]
  for matrix in [
    *updates["blocks"]["fc"]["kernel"],
    *jnp.moveaxis(qkv, 2, 0)[0],
  ]:
    values = jnp.linalg.svd(matrix, compute_uv=False)
    assert values.max() < 2 * values.min()
    rms = jnp.sqrt(jnp.mean(jnp.square(matrix)))
    assert 0.1 < float(rms) < 0.3


def test_unknown_optimizer():
  with pytest.raises(ValueError, match="adamw, muon, got 'sgd'"):
    optimizer.build_optimizer(_config(name="sgd"), 10)


def test_a_part_of_the_parameters_can_be_trained_alone():
  params = {"encoder": {"w": jnp.ones((2, 2))}, "decoder": {"w": jnp.ones(2)}}
  config = _config(train_only=("decoder",), warmup_steps=0)
  built = optimizer.build_optimizer(config, 10)
  updates, _ = built.tx.update(params, built.tx.init(params), params)
  assert (updates["encoder"]["w"] == 0).all()
  assert (updates["decoder"]["w"] < 0).all()
  # Two moments of the decoder, and counters: nothing of what stays.
  state = built.tx.init(params)
  assert sum(np.size(x) for x in jax.tree.leaves(state) if np.ndim(x)) == 2 * 2
  config = _config(train_only=("decodr",))
  with pytest.raises(ValueError, match=r"'decodr', but .* decoder, encoder"):
    optimizer.build_optimizer(config, 10).tx.init(params)
