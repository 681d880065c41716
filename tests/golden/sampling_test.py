"""Top-k and top-p against the official filter (golden README, rule 17)."""

import jax
import numpy as np
import pytest

from star_jax.sampling import logits as L
from tests.golden.conftest import GOLDEN_DIR, cases_of, load

CASES = cases_of("top_k_top_p_filter")


@pytest.mark.parametrize(("name", "case"), CASES)
def test_filters_remove_the_same_tokens(name, case):
  tensors = load(GOLDEN_DIR, case["tensors"])
  both = jax.jit(lambda x, k, p: L.filter_top_p(L.filter_top_k(x, k), p))
  for pair in case["pairs"]:
    found = np.asarray(both(tensors["logits"], pair["top_k"], pair["top_p"]))
    expected = tensors[f"filtered_{pair['index']}"]
    np.testing.assert_array_equal(found, expected, err_msg=str(pair))
    kept = np.isfinite(found).sum(-1)
    np.testing.assert_array_equal(kept, pair["kept_per_row"])
