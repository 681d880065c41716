"""A tokenizer under another schedule: phi, rates, what stays."""

import dataclasses

import jax
import numpy as np
import pytest

from star_jax import testing
from star_jax.bundle import load_bundle
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer import growth
from star_jax.tokenizer.quantizer import phi_indices
from star_jax.tokenizer.vqvae import VQVAE

FOUR_OF_TEN = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def tiny(schedule, **changes):
  config = testing.tiny_tokenizer_config((1,))
  config = dataclasses.replace(
    config, schedule=ScaleSchedule.parse(schedule), **changes
  )
  return config, testing.random_params(VQVAE(config))


def grow(schedule, old="512", phi="position", **changes):
  config, params = tiny(old, **changes)
  grown = growth.grow_tokenizer(
    config, params, ScaleSchedule.parse(schedule), phi
  )
  return params, grown


def phi_of_scale(grown, old_params, k):
  """Which old phi scale k of the grown tokenizer really uses."""
  count = len(grown.phi_new)
  if grown.config.share_quant_resi == 4:
    count = 4
  used = phi_indices(grown.config.schedule.num_scales, count)[k]
  kernel = grown.params["quantizer"][f"phi_{used}"]["kernel"]
  return [
    j
    for j in range(4)
    if np.array_equal(old_params["quantizer"][f"phi_{j}"]["kernel"], kernel)
  ]


@pytest.mark.parametrize(
  "phi, says, new",
  [
    (
      "position",
      "0 x3, 1 x4, 2 x4, 3 x3",
      (0,) * 3 + (1,) * 4 + (2,) * 4 + (3,) * 3,
    ),
    ("official", "0 x7, 1 x3, 2, 3 x3", (0,) * 7 + (1,) * 3 + (2,) + (3,) * 3),
    (
      "side",
      "0 x2, 1 x4, 2 x2, 3 x6",
      (0,) * 2 + (1,) * 4 + (2,) * 2 + (3,) * 6,
    ),
  ],
)
def test_the_phi_of_ten_scales_become_those_of_fourteen(phi, says, new):
  params, grown = grow("1024", phi=phi)
  assert grown.phi_old == FOUR_OF_TEN and grown.phi_new == new
  assert "old, K = 10 (1, 2, 3, 4, 6, 9, 13, 18, 24, 32): 0 x2" in grown.text
  assert f"16, 21, 27, 36, 48, 64): {says}" in grown.text
  assert [phi_of_scale(grown, params, k) for k in range(14)] == [
    [j] for j in new
  ]
  # The rule itself needs no copies.
  assert (grown.config.share_quant_resi == 4) == (phi == "position")
  # What is said later, of the grown tokenizer alone, is the same.
  old = ScaleSchedule.from_name("512")
  assert grown.text == growth.describe_phi(grown.config, grown.params, old)


def test_a_phi_for_each_scale_stays_with_its_scale():
  for count in range(1, 20):
    assert phi_indices(count, count) == tuple(range(count))


def test_own_phi_of_every_scale_are_copied():
  params, grown = grow((1, 2, 4, 8), old=(1, 2, 4), share_quant_resi=0)
  assert grown.config.share_quant_resi == 0
  assert grown.phi_old == (0, 1, 2) and len(grown.phi_new) == 4
  for k, j in enumerate(grown.phi_new):
    np.testing.assert_array_equal(
      grown.params["quantizer"][f"phi_{k}"]["kernel"],
      params["quantizer"][f"phi_{j}"]["kernel"],
    )


@pytest.mark.long
def test_all_other_weights_stay_and_the_grown_one_runs():
  params, grown = grow((1, 2, 5), old=(1, 2, 3))
  jax.tree.map(np.testing.assert_array_equal, grown.params, params)
  assert grown.config.image_size == (20, 20)
  image = np.zeros((1, 20, 20, 3), np.float32)
  idx_BL = VQVAE(grown.config).apply(
    {"params": grown.params}, image, method="encode"
  )
  assert idx_BL.shape == (1, 30)


def test_the_shipped_tokenizer_has_no_phi_and_rates_by_side():
  bundle = load_bundle(None)
  config, params = bundle.tokenizer_config, bundle.params["tokenizer"]
  schedule = ScaleSchedule.from_patch_nums((1, 2, 4, 8, 16, 32))
  grown = growth.grow_tokenizer(config, params, schedule)
  assert grown.text.startswith("Tokenizer: no phi")
  assert grown.config.image_size == (128, 128)
  # 32 x 32 takes what the second of the two 16 x 16 has.
  np.testing.assert_allclose(grown.config.rate_weight, config.rate_weight)
  np.testing.assert_array_equal(
    grown.params["quantizer"]["rate_KV"], params["quantizer"]["rate_KV"]
  )
  schedule = ScaleSchedule.from_patch_nums((1, 2, 4, 16, 32))
  grown = growth.grow_tokenizer(config, params, schedule)
  rates = grown.params["quantizer"]["rate_KV"]
  np.testing.assert_array_equal(
    rates, params["quantizer"]["rate_KV"][[0, 1, 2, 4, 5]]
  )


@pytest.mark.parametrize(
  "schedule, phi, message",
  [
    (
      (1, 2, 3),
      "position",
      r"needs phi 2, the scales of the old one only had 0, 3; phi='side'",
    ),
    ("1024", "nearest", "one of position, side, official, got 'nearest'"),
    ("512", "official", "makes 14 phi of 4.* has 4 and the schedule 10 scales"),
  ],
)
def test_what_cannot_be_grown(schedule, phi, message):
  old = (1, 2) if phi == "position" else "256"
  with pytest.raises(ValueError, match=message):
    grow(schedule, old=old, phi=phi)
