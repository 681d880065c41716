"""The columns of `product_speed` compute the same."""

import numpy as np

from star_jax.metrics.product_speed import HEADER, measure, to_markdown, ways


def test_all_ways_agree_and_are_timed():
  rng = np.random.default_rng(0)
  fc1, fc2 = rng.standard_normal((2, 2, 8, 32)).astype(np.float32) / 4
  found = [
    np.asarray(call()) for call in ways(fc1, fc2.reshape(2, 32, 8), 3).values()
  ]
  for other in found[1:]:
    np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)
  times = measure(width=8, layers=2, rows=(3,), repeats=1)
  assert all(seconds > 0 for seconds in times[0].values())
  text = to_markdown(8, (3,), [{HEADER[1]: 0.001}])
  # 2 products of 3 x 8 x 32 multiply-adds in a millisecond.
  assert "1.0 ms, 0 GFLOP/s" in text and text.count(" - ") == 2
