"""The roofline of a GPU, from the products of a traced program."""

import jax
import jax.numpy as jnp
import pytest

from star_jax.chips import CHIPS
from star_jax.compile_check.traced import traced_roofline
from star_jax.train.flops import traced_products

CARD = CHIPS["a100"]


def products_of(dtype, side=4096, **options):
  """Of two square products in a loop of three, in the decoder."""
  x = jax.ShapeDtypeStruct((side, side), dtype)

  def run(x):
    with jax.named_scope("VQVAE.decode"), jax.named_scope("decoder"):
      return jax.lax.fori_loop(0, 3, lambda _, y: step(y), x)

  def step(y):
    return jnp.matmul(jnp.matmul(y, y, **options), y, **options)

  return traced_products(jax.make_jaxpr(run)(x).jaxpr)


@pytest.mark.parametrize(
  "dtype, options, rate",
  [
    ("bfloat16", {}, CARD.flops),
    ("float32", {"precision": "default"}, CARD.tf32_flops),
    ("float32", {"precision": "highest"}, CARD.float32_flops),
  ],
)
def test_a_product_runs_at_the_rate_of_its_dtype(dtype, options, rate):
  found = traced_roofline(products_of(dtype, **options), CARD, 0)
  flops = 6 * 2 * 4096**3
  assert found.flops == flops
  assert found.seconds == pytest.approx(flops / rate)
  assert found.bound == "compute" and not found.memory
  assert found.parts == {"decoder": (flops, pytest.approx(flops / rate))}


def test_small_products_and_what_none_moves_wait_for_memory():
  products = products_of("bfloat16", side=8)
  moved = 6 * 3 * 8 * 8 * 2
  found = traced_roofline(products, CARD, 0)
  assert found.hbm_bytes == moved
  assert found.memory == pytest.approx(moved / CARD.hbm_bandwidth)
  found = traced_roofline(products, CARD, 2 * moved)
  assert found.seconds == pytest.approx(2 * moved / CARD.hbm_bandwidth)
