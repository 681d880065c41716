"""InceptionV3: its importer, its taps, its resize, and torch where it is."""

import jax
import numpy as np
import pytest

from star_jax.convert.state_dict import jax_to_torch
from star_jax.evaluation import inception
from star_jax.evaluation.resize import resize_bilinear


def random_params(seed=0):
  """Weights that keep activations of order one, drawn with numpy."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    noise = rng.standard_normal(leaf.shape).astype(np.float32)
    if name == "kernel":
      return noise * np.float32(1.6 / np.sqrt(np.prod(leaf.shape[:-1])))
    if name == "var":
      return 1 + 0.3 * np.abs(noise)
    return 1 + 0.1 * noise if name == "scale" else 0.1 * noise

  return jax.tree_util.tree_map_with_path(draw, inception.template())


def test_the_importer_reads_its_own_names_back():
  params = random_params()
  state = jax_to_torch(params, inception.RULES)
  assert state["Mixed_6d.branch7x7dbl_3.conv.weight"].shape == (160, 160, 1, 7)
  assert state["Conv2d_1a_3x3.bn.running_var"].shape == (32,)
  assert state["fc.weight"].shape == (1008, 2048)
  assert len([k for k in state if k.endswith("conv.weight")]) == 94
  # The files also count batches.
  state["Mixed_6d.branch1x1.bn.num_batches_tracked"] = np.zeros((), np.int64)
  back = inception.params_from_state(state)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  del state["fc.bias"]
  with pytest.raises(ValueError, match=r"FID InceptionV3: .*missing.*fc.bias"):
    inception.params_from_state(state)


def test_shapes_of_the_features():
  image = jax.ShapeDtypeStruct((2, 64, 48, 3), np.uint8)
  out = jax.eval_shape(
    lambda p, x: inception.features(p, x, "tf1"), inception.template(), image
  )
  assert {k: v.shape for k, v in out.items()} == {
    name: (2, width) for name, width in inception.WIDTHS.items()
  }


def tensorflow_resize(image, size):
  """TensorFlow 1's definition, a sample at a time, in float32."""
  height, width, _ = image.shape
  f32 = np.float32
  out = np.zeros((size, size, 3), f32)
  for i in range(size):
    y = f32(i) * f32(height / size)
    y0 = int(y)
    y1, dy = min(y0 + 1, height - 1), f32(y - f32(y0))
    for j in range(size):
      x = f32(j) * f32(width / size)
      x0 = int(x)
      x1, dx = min(x0 + 1, width - 1), f32(x - f32(x0))
      top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * dx
      bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * dx
      out[i, j] = top + (bottom - top) * dy
  return out


@pytest.mark.parametrize("shape", [(13, 17), (40, 31)])
def test_tf1_resize_is_bit_exact(shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3))
  image = image.astype(np.float32)
  found = jax.jit(lambda x: resize_bilinear(x, 29, "tf1"))(image[None])[0]
  np.testing.assert_array_equal(found, tensorflow_resize(image, 29))


def test_torch_resize_uses_half_pixel_centres():
  row = np.array([0.0, 8.0], np.float32)
  image = np.broadcast_to(row[None, None, :, None], (1, 2, 2, 3))
  found = np.asarray(resize_bilinear(image, 4, "torch"))[0, 0, :, 0]
  np.testing.assert_allclose(found, [0, 2, 6, 8])
  found = np.asarray(resize_bilinear(image, 4, "tf1"))[0, 0, :, 0]
  np.testing.assert_allclose(found, [0, 4, 8, 8])


@pytest.mark.long
def test_parity_with_torch_fidelity(tmp_path, torch):
  from torch_fidelity.feature_extractor_inceptionv3 import (
    FeatureExtractorInceptionV3 as Theirs,
  )

  params = random_params()
  state = {
    k: torch.from_numpy(np.array(v))
    for k, v in jax_to_torch(params, inception.RULES).items()
  }
  for key in [k for k in state if k.endswith("bn.bias")]:
    place = key.removesuffix("bias")
    state[f"{place}num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
  path = tmp_path / "weights.pth"
  torch.save(state, path)
  names = ["64", "192", "768", "2048", "logits_unbiased"]
  theirs = Theirs("ours", names, feature_extractor_weights_path=str(path))
  image = np.random.default_rng(1).integers(0, 256, (2, 80, 64, 3), np.uint8)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2)))
  params = inception.load_params(path)
  found = jax.jit(lambda p, x: inception.features(p, x, "tf1"))(params, image)
  ours = ["64", "192", "768", "pool", "logits"]
  for name, their in zip(ours, expected):
    their = their.numpy()
    scale = np.abs(their).max()
    np.testing.assert_allclose(found[name], their, atol=1e-4 * scale, rtol=1e-4)
