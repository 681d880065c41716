"""Bits of tokens: a bijection, and flips that depend on a sample alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import bits


@pytest.mark.parametrize("n", [1, 7, bits.MOST_BITS])
def test_packing_is_a_bijection(n):
  idx = np.unique(np.random.default_rng(0).integers(0, 2**n, 200))
  idx = np.concatenate([[0, 2**n - 1], idx]).astype(np.int32)
  found = bits.unpack(idx, n)
  assert found.shape == (len(idx), n)
  assert set(np.unique(found)) <= {0, 1}
  np.testing.assert_array_equal(bits.pack(found), idx)
  assert bits.pack(found).dtype == jnp.int32


def test_the_first_bit_is_the_least():
  np.testing.assert_array_equal(bits.unpack(6, 4), [0, 1, 1, 0])
  assert bits.pack(jnp.array([True, False, False])) == 1


def test_flips_are_of_each_sample_alone_and_at_most_the_rate():
  flip = jax.jit(
    bits.flip,
    static_argnums=3,
    compiler_options={"xla_backend_optimization_level": 0},
  )
  keys = jax.random.split(jax.random.key(0), 40)
  idx = np.random.default_rng(1).integers(0, 2**10, (40, 64)).astype(np.int32)
  np.testing.assert_array_equal(flip(idx, keys, 0.0, 10), idx)
  changed = flip(idx, keys, 0.3, 10)
  share = np.mean(bits.unpack(changed ^ idx, 10), axis=(1, 2))
  # 640 bits a sample: the shares are uniform in [0, 0.3] up to noise.
  assert share.max() < 0.35 and share.min() < 0.05
  assert 0.1 < share.mean() < 0.2
  again = flip(idx[5:6], keys[5:6], 0.3, 10)
  np.testing.assert_array_equal(again, changed[5:6])
