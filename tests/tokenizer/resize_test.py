"""Resize matrices against literal weights."""

import numpy as np
import pytest

from star_jax.tokenizer import resize


def test_area_windows_overlap_where_sizes_do_not_divide():
  want = [[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]
  np.testing.assert_allclose(resize.area_matrix(4, 3), want)
  third = 1 / 3
  want = [
    [0.5, 0.5, 0, 0, 0],
    [0, third, third, third, 0],
    [0, 0, 0, 0.5, 0.5],
  ]
  np.testing.assert_allclose(resize.area_matrix(5, 3), want, rtol=1e-6)


def test_bicubic_weights_of_the_pytorch_kernel():
  # Output 3 of 4 -> 8 lies at 1.25: the cubic kernel with a = -0.75 at the
  # distances 1.25, 0.25, 0.75 and 1.75.
  want = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
  np.testing.assert_allclose(resize.bicubic_matrix(4, 8)[3], want)
  # Output 0 lies at -0.25: two of its taps read the border.
  want = [-0.03515625 + 0.26171875 + 0.87890625, -0.10546875, 0, 0]
  row = resize.bicubic_matrix(4, 8)[0]
  np.testing.assert_allclose(row, want[:4], atol=1e-7)


def test_bilinear_weights():
  want = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
  np.testing.assert_allclose(resize.bilinear_matrix(2, 4), want)
  np.testing.assert_allclose(
    resize.bilinear_matrix(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
  )


@pytest.mark.parametrize(
  "make", [resize.area_matrix, resize.bicubic_matrix, resize.bilinear_matrix]
)
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 7), (5, 5), (9, 16)])
def test_constant_maps_stay_constant(make, n_in, n_out):
  np.testing.assert_allclose(make(n_in, n_out).sum(1), 1, rtol=1e-6)
  if n_in == n_out:
    np.testing.assert_array_equal(make(n_in, n_out), np.eye(n_in))


def test_rows_act_on_height_and_columns_on_width():
  x_BhwC = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
  rows, cols = resize.area_matrix(3, 2), resize.bicubic_matrix(5, 7)
  want = np.zeros((2, 2, 7, 4))
  for b in range(2):
    for c in range(4):
      want[b, :, :, c] = rows @ x_BhwC[b, :, :, c] @ cols.T
  got = resize.resize_maps(x_BhwC, rows, cols)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_cached_matrices_cannot_be_changed():
  with pytest.raises(ValueError, match="read-only"):
    resize.area_matrix(4, 2)[0, 0] = 7


def test_nearest_repeats_cells():
  x = np.arange(4.0, dtype=np.float32).reshape(1, 2, 2, 1)
  grown = resize.grow(x, (4, 6), "nearest")
  assert grown.shape == (1, 4, 6, 1)
  np.testing.assert_array_equal(grown[0, 0, :, 0], [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(grown[0, :, 0, 0], [0, 0, 2, 2])
