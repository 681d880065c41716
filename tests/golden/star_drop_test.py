"""Dropping tokens of the last scales in training, against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from star_jax.model.kept_tokens import KeptTokens
from star_jax.model.star import Star
from star_jax.train.kept_tokens import last_of_orders
from star_jax.train.losses import token_losses
from star_jax.train.token_drop import TokenDrop
from tests.cases import long_but
from tests.golden.conftest import cases_of
from tests.golden.star_cases import QUICK, text_states
from tests.golden.star_refine_test import KIND, setup

CASES = [
  pytest.param(*p.values, mode, id=f"{p.id}-{mode}", marks=p.marks)
  for p in cases_of(KIND)
  for mode in ("persample", "official")
]


@pytest.mark.parametrize(("name", "case", "mode"), long_but(1, CASES))
def test_logits_and_loss_of_the_kept_tokens(name, case, mode):
  config, _, params, _, tensors = setup(case, mode)
  if "drop.keep_indices" not in tensors:
    pytest.skip("the case drops no tokens")
  schedule, batch = config.schedule, case["batch"]
  kept = np.flatnonzero(tensors["drop.keep_indices"])
  level = schedule.level_ids[kept]
  index_BL = jnp.asarray(np.tile(kept, (batch, 1)), jnp.int32)
  tokens = KeptTokens(
    index_BL=index_BL,
    weight_BL=jnp.ones(index_BL.shape),
    lengths=tuple(np.bincount(level).tolist()),
  )
  text, _ = text_states(case)

  def run(params):
    logits_BLV = Star(config).apply(
      {"params": params}, tensors["x_BLCv_wo_first_l"], text, kept=tokens
    )
    idx_BL = jnp.take_along_axis(tensors["gt_tokens"], index_BL, axis=1)
    return logits_BLV, token_losses(logits_BLV, idx_BL)[0]

  logits_BLV, loss_BL = jax.jit(run, compiler_options=QUICK)(params)
  if f"drop_{mode}.logits" in tensors:
    np.testing.assert_allclose(
      logits_BLV, tensors[f"drop_{mode}.logits"], atol=1e-4
    )
  # Rule 24: the official mean is over one row, so that the sum over the batch
  # is divided by the tokens of one sample.
  np.testing.assert_allclose(
    np.mean(loss_BL) * batch, tensors[f"drop_{mode}.loss"][0], rtol=1e-5
  )


@pytest.mark.parametrize(("name", "case"), cases_of(KIND))
def test_the_tokens_that_a_permutation_keeps(name, case):
  """Rule 25: its first entries are dropped, of the scales from one on."""
  config, _, _, _, tensors = setup(case, "persample")
  if "drop.randperm" not in tensors:
    pytest.skip("the case drops no tokens")
  schedule, spec = config.schedule, case["drop_scale"]
  begin = schedule.begin_ends[spec["drop_start_idx"]][0]
  last_scales = schedule.num_scales - spec["drop_start_idx"]
  settings = TokenDrop(
    **common.token_drop().to_dict()
    | dict(
      way="random", tokens=spec["drop_scale_length"], last_scales=last_scales
    )
  )
  lengths = settings.lengths(schedule)
  assert sum(lengths) == spec["drop_scale_length"]
  kept = np.flatnonzero(tensors["drop.keep_indices"])
  if last_scales > 1:
    pytest.skip("several scales share the drop there, each has its own here")
  order_Bl = jnp.asarray(tensors["drop.randperm"])[None]
  ours = begin + last_of_orders(order_Bl, lengths[-1])[0]
  np.testing.assert_array_equal(ours, kept[kept >= begin])
