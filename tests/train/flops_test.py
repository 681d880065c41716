import jax
import jax.numpy as jnp
import pytest

from star_jax.train.flops import count_flops, count_model_flops


def test_matrix_product_forward_and_backward():
  a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
  once = 2 * 3 * 5 * 7
  assert count_flops(lambda: a @ b) == once
  grad = jax.grad(lambda a, b: jnp.sum((a @ b) ** 2), argnums=(0, 1))
  assert count_flops(grad, a, b) == 3 * once


def test_scan_counts_every_turn_and_jit_and_remat_are_seen_through():
  w = jnp.zeros((4, 6, 6))

  @jax.jit
  def layers(x):
    body = jax.checkpoint(lambda x, w: (x @ w, None))
    return jax.lax.scan(body, x, w)[0]

  assert count_flops(layers, jax.ShapeDtypeStruct((2, 6), jnp.float32)) == (
    4 * 2 * 2 * 6 * 6
  )


@pytest.mark.parametrize("stride,groups", [(1, 1), (2, 1), (1, 2)])
def test_convolution_and_its_gradients(stride, groups):
  x = jnp.zeros((2, 8, 8, 4))
  kernel = jnp.zeros((3, 3, 4 // groups, 6))

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  side = 8 // stride
  once = 2 * (2 * side * side * 6) * (3 * 3 * 4 // groups)
  assert count_flops(conv, x, kernel) == once
  grads = jax.grad(lambda x, k: jnp.sum(conv(x, k) ** 2), argnums=(0, 1))
  # The gradient of a strided convolution also visits inserted zeros at the
  # border, hence the tolerance.
  assert count_flops(grads, x, kernel) == pytest.approx(3 * once, rel=0.05)


def test_model_flops_leave_out_what_is_computed_again():
  params, x = jnp.zeros((3, 6, 6)), jnp.zeros((2, 6))

  def loss(params, extra, frozen, batch, key, step):
    del extra, key, step
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w) @ w, None))
    # Nobody needs the gradient of what is frozen.
    x, _ = jax.lax.scan(layer, batch @ frozen, params)
    return jnp.sum(x**2), None

  rest = ({}, jnp.eye(6), x, jax.random.key(0), jnp.int32(0))
  product = 2 * 2 * 6 * 6
  needed = product + 3 * 6 * product
  assert count_model_flops(loss, params, *rest) == needed
  grad = jax.grad(lambda params, *rest: loss(params, *rest)[0])
  assert count_flops(grad, params, *rest) > needed
