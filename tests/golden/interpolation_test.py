"""Resize primitives and the choice of phi against the official code."""

import re

import numpy as np
import pytest

from star_jax.tokenizer import quantizer, resize
from tests.golden.conftest import GOLDEN_DIR, cases_of, load

MATRICES = {
  "area": resize.area_matrix,
  "bicubic": resize.bicubic_matrix,
  "bilinear": resize.bilinear_matrix,
}


@pytest.mark.parametrize(("name", "case"), cases_of("interpolation"))
def test_resize_matrices(name, case):
  tensors = load(GOLDEN_DIR, case["tensors"])
  inputs = [key for key in tensors if key.endswith("_in")]
  assert inputs
  for key in inputs:
    mode, n_in, _, n_out, _ = key.split("_")
    matrix = MATRICES[mode](int(n_in), int(n_out))
    x_BhwC = tensors[key].transpose(0, 2, 3, 1)
    out = np.asarray(resize.resize_maps(x_BhwC, matrix, matrix))
    want = tensors[key.removesuffix("_in") + "_out"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(out, want, atol=1e-6, rtol=1e-6, err_msg=key)


def _phi_rows(case):
  """Rows of a table of phi indices; other tables have none."""
  table = case.get("table")
  if not isinstance(table, dict):
    return {}
  pattern = r"(partially|non)_shared K="
  return {key: row for key, row in table.items() if re.match(pattern, key)}


# A skip stands in for the cases when the folder is absent; it has no table.
PHI_TABLES = [
  param
  for param in cases_of("table")
  if _phi_rows(param.values[1]) or not param.values[1]
]


@pytest.mark.parametrize(("name", "case"), PHI_TABLES)
def test_phi_of_every_scale(name, case):
  for key, want in _phi_rows(case).items():
    numbers = [int(n) for n in re.findall(r"\d+", key)]
    count, num_scales = numbers[0], numbers[-1]
    got = quantizer.phi_indices(num_scales, count)
    assert list(got) == want, key
