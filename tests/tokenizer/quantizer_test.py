"""The multi-scale quantizer: choices by hand, gradients, agreement."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import Quantizer, num_phi

CONFIG = VQVAEConfig(
  # Rectangles and a repeated grid: nothing may assume squares.
  schedule=ScaleSchedule.from_patch_nums([1, (2, 3), (3, 5), (3, 5)]),
  vocab_size=11,
  code_dim=3,
  ch=8,
  ch_mult=(1,),
  num_res_blocks=1,
  share_quant_resi=2,
)
BATCH = 2


def _random(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _setup(**changes):
  """A quantizer with random weights in every parameter, and features."""
  config = dataclasses.replace(CONFIG, **changes)
  quantizer = Quantizer(config)
  f_BhwCv = _random(0, BATCH, *config.schedule.final_grid, config.code_dim)
  shapes = jax.eval_shape(quantizer.init, jax.random.key(1), f_BhwCv)
  leaves, tree = jax.tree.flatten(shapes["params"])
  params = jax.tree.unflatten(
    tree, [0.5 * _random(2 + i, *x.shape) for i, x in enumerate(leaves)]
  )
  return config, quantizer, params, f_BhwCv


def _apply(quantizer, params, *args, method):
  return quantizer.apply({"params": params}, *args, method=method)


def _by_hand():
  """Grids 1x1 and 1x2, phi off, three codes of one number."""
  config = dataclasses.replace(
    CONFIG,
    schedule=ScaleSchedule.from_patch_nums([1, (1, 2)]),
    vocab_size=3,
    code_dim=1,
    quant_resi=0.0,
  )
  params = {"codebook_VCv": jnp.array([[-1.0], [0.2], [3.0]])}
  return Quantizer(config), params, jnp.array([[[[2.0], [5.0]]]])


def _gradient(fn, **options):
  """One program instead of one an operation."""
  return jax.jit(jax.grad(fn, **options))


def test_residual_loop_by_hand():
  quantizer, params, f_BhwCv = _by_hand()
  out = quantizer.apply({"params": params}, f_BhwCv)
  # The mean 3.5 is nearest to 3.0; the rest (-1, 2) to (-1, 3).
  np.testing.assert_array_equal(out.idx_BL, [[2, 0, 2]])
  np.testing.assert_allclose(out.f_hat_BhwCv.ravel(), [2, 6])
  # Squared errors: (2 - 3, 5 - 3) after scale 0, (0, -1) after scale 1.
  want = (1 + CONFIG.beta) * ((1 + 4) / 2 + (0 + 1) / 2) / 2
  np.testing.assert_allclose(out.vq_loss, want, rtol=1e-6)
  np.testing.assert_array_equal(out.usage_KV, [[0, 0, 1], [1, 0, 1]])


@pytest.mark.long
def test_sum_over_scales_is_k_times_the_mean():
  _, quantizer, params, f = _setup()
  _, summed, _, _ = _setup(vq_loss_reduction="sum")
  mean = quantizer.apply({"params": params}, f).vq_loss
  total = summed.apply({"params": params}, f).vq_loss
  np.testing.assert_allclose(total, CONFIG.schedule.num_scales * mean, 1e-6)


def test_nearest_is_the_smallest_distance():
  _, quantizer, params, _ = _setup()
  z_NCv = _random(9, 50, CONFIG.code_dim)
  codes = params["codebook_VCv"]
  want = np.argmin(np.square(z_NCv[:, None] - codes[None]).sum(-1), axis=1)
  got = _apply(quantizer, params, z_NCv, 0, method="nearest")
  np.testing.assert_array_equal(got, want)


def test_rates_count_beside_the_distance_on_their_scale_only():
  quantizer, params, _ = _by_hand()
  config = dataclasses.replace(quantizer.config, rate_weight=(0.5, 0.0))
  params = {**params, "rate_KV": jnp.array([[0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])}
  z_NCv = jnp.array([[0.1], [2.9]])
  for k, want in ((0, [0, 2]), (1, [1, 2])):
    got = _apply(Quantizer(config), params, z_NCv, k, method="nearest")
    np.testing.assert_array_equal(got, want)
  grads = _gradient(
    lambda p: Quantizer(config).apply({"params": p}, _by_hand()[2]).vq_loss
  )(params)
  assert not np.any(grads["rate_KV"])
  assert np.any(grads["codebook_VCv"])


def test_znorm_chooses_by_angle_and_keeps_the_length_of_the_code():
  quantizer, _, _ = _by_hand()
  config = dataclasses.replace(
    quantizer.config, code_dim=2, vocab_size=2, using_znorm=True
  )
  quantizer = Quantizer(config)
  codes = jnp.array([[0.1, 0.0], [9.0, 9.0]])
  z_NCv = jnp.array([[9.0, 1.0], [0.01, 0.02]])
  # By distance the answers would be 1 and 0.
  got = _apply(quantizer, {"codebook_VCv": codes}, z_NCv, 0, method="nearest")
  np.testing.assert_array_equal(got, [0, 1])
  added = _apply(
    quantizer,
    {"codebook_VCv": codes},
    1,
    jnp.array([[1, 0]]),
    method="contribution",
  )
  np.testing.assert_allclose(added[0, 0], codes[::-1])


def test_gradient_passes_straight_through():
  _, quantizer, params, f = _setup()
  weight = _random(5, *f.shape)

  def picture_loss(params, f):
    out = quantizer.apply({"params": params}, f)
    return jnp.sum(out.f_hat_BhwCv * weight)

  by_params, by_f = _gradient(picture_loss, argnums=(0, 1))(params, f)
  np.testing.assert_allclose(by_f, weight, rtol=1e-6)
  for leaf in jax.tree.leaves(by_params):
    np.testing.assert_array_equal(leaf, 0)


def test_codebook_and_every_phi_learn_from_the_vq_loss():
  _, quantizer, params, f = _setup()
  grads = _gradient(lambda p: quantizer.apply({"params": p}, f).vq_loss)(params)
  assert all(np.any(g != 0) for g in jax.tree.leaves(grads))


def test_commitment_is_the_only_gradient_of_the_loss_in_f():
  _, quantizer, params, f = _setup(beta=0.0)
  grad = _gradient(lambda f: quantizer.apply({"params": params}, f).vq_loss)(f)
  np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("share", [0, 1, 2, 4])
def test_training_encoding_and_decoding_agree(share):
  config, quantizer, params, f = _setup(share_quant_resi=share)
  assert num_phi(config) == (share or config.schedule.num_scales)
  out = quantizer.apply({"params": params}, f)
  idx_BL = _apply(quantizer, params, f, method="encode")
  np.testing.assert_array_equal(out.idx_BL, idx_BL)
  assert idx_BL.dtype == jnp.int32
  f_hats = _apply(quantizer, params, idx_BL, method="tokens_to_f_hats")
  f_hat = _apply(quantizer, params, idx_BL, method="tokens_to_f_hat")
  np.testing.assert_allclose(f_hat, out.f_hat_BhwCv, atol=1e-5)
  np.testing.assert_allclose(f_hats[-1], f_hat, atol=1e-6)


def test_usage_counts_the_tokens_of_each_scale():
  config, quantizer, params, f = _setup()
  out = quantizer.apply({"params": params}, f)
  for k, (begin, end) in enumerate(config.schedule.begin_ends):
    counts = np.bincount(
      np.ravel(out.idx_BL[:, begin:end]), minlength=config.vocab_size
    )
    np.testing.assert_array_equal(out.usage_KV[k], counts)


def test_residuals_are_what_is_looked_up():
  config, quantizer, params, f = _setup()
  z_BLCv = _apply(quantizer, params, f, method="residuals")
  z_NCv = z_BLCv.reshape(-1, config.code_dim)
  idx = _apply(quantizer, params, z_NCv, 0, method="nearest")
  want = _apply(quantizer, params, f, method="encode")
  np.testing.assert_array_equal(idx.reshape(want.shape), want)


def test_teacher_forcing_input_is_what_sampling_feeds_back():
  config, quantizer, params, f = _setup()
  idx_BL = _apply(quantizer, params, f, method="encode")
  x_BLCv = _apply(quantizer, params, idx_BL, method="teacher_forcing_input")
  first = config.schedule.lengths[0]
  assert x_BLCv.shape == (BATCH, idx_BL.shape[1] - first, config.code_dim)
  f_hat, rows = jnp.zeros_like(f), []
  for k, (begin, end) in enumerate(config.schedule.begin_ends):
    f_hat, x_BlCv = _apply(
      quantizer, params, k, f_hat, idx_BL[:, begin:end],
      method="next_scale_input",
    )  # fmt: skip
    rows.append(x_BlCv)
  assert rows.pop() is None
  np.testing.assert_allclose(x_BLCv, jnp.concatenate(rows, 1), atol=1e-6)
  want = _apply(quantizer, params, idx_BL, method="tokens_to_f_hat")
  np.testing.assert_allclose(f_hat, want, atol=1e-6)


def test_teacher_forcing_input_of_a_scale_ignores_that_scale():
  config, quantizer, params, f = _setup()
  idx_BL = _apply(quantizer, params, f, method="encode")
  begin, end = config.schedule.begin_ends[2]
  other = idx_BL.at[:, begin:].set((idx_BL[:, begin:] + 1) % 11)
  first = config.schedule.lengths[0]
  a, b = (
    _apply(quantizer, params, idx, method="teacher_forcing_input")
    for idx in (idx_BL, other)
  )
  np.testing.assert_array_equal(a[:, : end - first], b[:, : end - first])
  assert np.any(a[:, end - first :] != b[:, end - first :])


def test_a_single_scale_has_no_teacher_forcing_input():
  _, quantizer, params, f = _setup(
    schedule=ScaleSchedule.from_patch_nums([(3, 5)])
  )
  idx_BL = _apply(quantizer, params, f, method="encode")
  x_BLCv = _apply(quantizer, params, idx_BL, method="teacher_forcing_input")
  assert x_BLCv.shape == (BATCH, 0, CONFIG.code_dim)


def test_sign_of_the_mixing_ratio_is_dropped_and_zero_means_no_phi():
  _, plus, params, f = _setup(quant_resi=0.3)
  _, minus, _, _ = _setup(quant_resi=-0.3)
  a, b = (q.apply({"params": params}, f).f_hat_BhwCv for q in (plus, minus))
  np.testing.assert_array_equal(a, b)
  _, _, params, _ = _setup(quant_resi=0.0)
  assert set(params) == {"codebook_VCv"}


def test_phi_is_the_identity_at_the_start():
  quantizer = Quantizer(CONFIG)
  idx = jnp.arange(15)[None] % CONFIG.vocab_size
  params = quantizer.init(jax.random.key(0), 3, idx, method="contribution")
  added = quantizer.apply(params, 3, idx, method="contribution")
  codes = params["params"]["codebook_VCv"][idx].reshape(added.shape)
  np.testing.assert_allclose(added, codes, rtol=1e-6)


def test_tokens_of_another_schedule_are_refused():
  _, quantizer, params, _ = _setup()
  with pytest.raises(ValueError, match=r"\(batch, 37\).*\(2, 36\)"):
    _apply(
      quantizer, params, jnp.zeros((2, 36), jnp.int32),
      method="tokens_to_f_hat",
    )  # fmt: skip


def test_tokens_of_a_cell_depend_on_its_own_blocks_alone():
  """Nearest growth, grids that divide each other, no phi."""
  config = dataclasses.replace(
    CONFIG,
    schedule=ScaleSchedule.from_patch_nums([2, 4]),
    vocab_size=64,
    quant_resi=0.0,
    growth="nearest",
  )
  quantizer = Quantizer(config)
  f = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
  params = quantizer.init(jax.random.key(1), f)
  params = jax.tree.map(lambda x: 64 * x, params)
  encode = lambda f: quantizer.apply(params, f, method="encode")  # noqa: E731
  before, after = encode(f), encode(f.at[0, :2, :2].add(5.0))
  changed = np.array(before != after)[0]
  assert changed[0] and not changed[1:4].any()
  fine = changed[4:].reshape(4, 4)
  assert fine[:2, :2].any()
  fine[:2, :2] = False
  assert not fine.any()


def test_unknown_growth():
  with pytest.raises(ValueError, match="one of bicubic, nearest, got 'area'"):
    dataclasses.replace(CONFIG, growth="area")
