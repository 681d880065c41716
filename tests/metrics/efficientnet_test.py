"""EfficientNet-lite0: its parts against XLA's own, and sane features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from star_jax.metrics import efficientnet
from tests.cases import long_but


@pytest.fixture(scope="module")
def network():
  try:
    efficientnet.default_weights()
  except FileNotFoundError as error:
    pytest.skip(str(error))
  return efficientnet.FeatureNetwork(batch_size=8)


def _drawings(n, size=128):
  """Simple coloured drawings, deterministic."""
  rng = np.random.default_rng(0)
  out = []
  for _ in range(n):
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(4):
      a, b = rng.integers(0, size * 2 // 3, 2)
      w, h = rng.integers(size // 6, size // 2, 2)
      colour = tuple(int(c) for c in rng.integers(0, 255, 3))
      shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
      shape([int(a), int(b), int(a + w), int(b + h)], fill=colour)
    out.append(image)
  return out


def _stack(images):
  return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("size, stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("shape", long_but([1], [[8, 8], [7, 10]]))
def test_depthwise_is_a_grouped_convolution(size, stride, shape):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, *shape, 6)).astype(np.float32)
  layer = {
    "kernel": rng.standard_normal((size, size, 1, 6)).astype(np.float32),
    "bias": rng.standard_normal(6).astype(np.float32),
  }
  expected = jax.lax.conv_general_dilated(
    x, layer["kernel"], (stride, stride), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6,
  ) + layer["bias"]  # fmt: skip
  actual = efficientnet._depthwise(jnp.asarray(x), layer, stride)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_folding_equals_convolution_then_batch_norm():
  rng = np.random.default_rng(2)
  state = {
    "c.weight": rng.standard_normal((4, 3, 1, 1)),
    "n.weight": rng.standard_normal(4),
    "n.bias": rng.standard_normal(4),
    "n.running_mean": rng.standard_normal(4),
    "n.running_var": rng.random(4) + 0.5,
  }
  x = rng.standard_normal((5, 3))
  y = x @ state["c.weight"][:, :, 0, 0].T
  y = (y - state["n.running_mean"]) / np.sqrt(state["n.running_var"] + 1e-3)
  y = y * state["n.weight"] + state["n.bias"]
  layer = efficientnet._folded(state, "c", "n")
  np.testing.assert_allclose(
    x @ layer["kernel"][0, 0] + layer["bias"], y, atol=1e-5
  )


def test_missing_entry_is_named():
  with pytest.raises(ValueError, match="lacks '_blocks"):
    efficientnet.params_from_state({})


@pytest.mark.parametrize(
  "key", ["_blocks.0._se_reduce.weight", "_blocks.16._bn0.bias"]
)
def test_relatives_of_the_network_are_refused(key):
  with pytest.raises(ValueError, match=f"another network.*it has '{key}'"):
    efficientnet.params_from_state({key: np.zeros(1)})


def test_batches_of_any_length_agree(network):
  image = _stack(_drawings(11))
  whole = network(image)
  assert whole.shape == (11, efficientnet.FEATURES)
  assert np.isfinite(whole).all()
  np.testing.assert_allclose(network(image[9:]), whole[9:], atol=1e-4)
  assert network(image[:0]).shape == (0, efficientnet.FEATURES)


def test_features_order_damage(network):
  clean = _drawings(8)
  reference = network(_stack(clean))

  def distance(damaged):
    return np.linalg.norm(network(_stack(damaged)) - reference, axis=1).mean()

  blurs = [
    distance([im.filter(ImageFilter.GaussianBlur(r)) for im in clean])
    for r in (0.5, 1.5, 4)
  ]
  shuffled = distance(clean[1:] + clean[:1])
  assert 0 < blurs[0] < blurs[1] < blurs[2]
  assert blurs[0] < shuffled


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (200, 100)])
def test_pictures_of_any_size_keep_their_layout(size):
  image = np.zeros((1, *size, 3), np.uint8)
  image[:, : size[0] // 2, :, 0] = 255
  image[:, :, size[1] // 2 :, 1] = 200
  x = np.asarray(efficientnet.to_input_size(jnp.asarray(image)))[0]
  assert x.shape == (128, 128, 3) and x.min() >= 0 and x.max() <= 255
  np.testing.assert_allclose(x[32, 32], [255, 0, 0], atol=1)
  np.testing.assert_allclose(x[96, 96], [0, 200, 0], atol=1)


@pytest.mark.parametrize(
  "image",
  [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8)],
)
def test_bad_pictures(network, image):
  with pytest.raises(ValueError, match="uint8 pictures"):
    network(image)
