"""Growing the number of scales, against the official helper (rule 34)."""

import numpy as np
import pytest

from star_jax.scales import ScaleSchedule
from star_jax.train.grow import _grow_levels, _grow_positions
from tests.golden.conftest import cases_of
from tests.golden.star_cases import arrays


@pytest.mark.parametrize(("name", "case"), cases_of("misc"))
def test_old_rows_are_kept_as_a_prefix(name, case):
  if "progressive" not in case:
    pytest.skip("the case grows nothing")
  spec, tensors = case["progressive"], arrays(case["tensors"])
  old, new = (
    ScaleSchedule.from_patch_nums(spec[f"{which}_patch_nums"])
    for which in ("old", "new")
  )
  for variant in spec["variants"]:
    levels = tensors[f"prog.after_{variant}.lvl_embed.weight"]
    positions = tensors[f"prog.after_{variant}.pos_1LC"][0]
    # What is new is random there: it is taken as the fresh rows here.
    ours, _ = _grow_levels(
      tensors["prog.before.lvl_embed.weight"], levels, old, new, "index"
    )
    np.testing.assert_array_equal(ours, levels)
    ours, _ = _grow_positions(
      tensors["prog.before.pos_1LC"][0], positions, old, new, "index"
    )
    np.testing.assert_array_equal(ours, positions)
