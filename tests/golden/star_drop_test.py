"""Dropping tokens of the last scales in training, against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.model.star import KeptTokens, Star
from star_jax.train.losses import token_losses
from tests.golden.conftest import cases_of
from tests.golden.star_cases import QUICK, text_states
from tests.golden.star_refine_test import KIND, setup

CASES = [
  pytest.param(*p.values, mode, id=f"{p.id}-{mode}", marks=p.marks)
  for p in cases_of(KIND)
  for mode in ("persample", "official")
]


@pytest.mark.parametrize(("name", "case", "mode"), CASES)
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
