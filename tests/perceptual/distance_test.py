"""Perceptual distances: against plain numpy, and against the lpips package."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.perceptual import PerceptualConfig, distance_of, load
from star_jax.perceptual.vgg16 import (
  GROUPS,
  VGG16,
  conv_names,
  conv_shapes,
  max_pool,
)


def _trunk(taps, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: {
      "kernel": (
        rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:3]))
      ).astype(np.float32),
      "bias": rng.uniform(-0.1, 0.1, shape[-1]).astype(np.float32),
    }
    for name, shape in conv_shapes(taps).items()
  }


def _heads(taps, seed=1):
  rng = np.random.default_rng(seed)
  return {
    f"tap{i}": {"weight": rng.random(width).astype(np.float32)}
    for i, (_, width) in enumerate(GROUPS[:taps], 1)
  }


def _pictures(shape, seed=2):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (2, *shape)).astype(np.float32)


def _numpy_conv(x, layer):
  """3x3, zeros around: nine shifted products."""
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  h, w = x.shape[1:3]
  return layer["bias"] + sum(
    padded[:, i : i + h, j : j + w] @ layer["kernel"][i, j]
    for i in range(3)
    for j in range(3)
  )


def _numpy_distance(frozen, x, y, to_input, taps):
  x, y = (to_input(np.float64(z)) for z in (x, y))
  total, names = 0.0, iter(conv_names(taps))
  for tap, (count, _) in enumerate(GROUPS[:taps], 1):
    if tap > 1:
      h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
      x, y = (
        np.max([z[:, i:h:2, j:w:2] for i in range(2) for j in range(2)], axis=0)
        for z in (x, y)
      )
    for name in [next(names) for _ in range(count)]:
      x, y = (np.maximum(_numpy_conv(z, frozen["vgg16"][name]), 0)
              for z in (x, y))  # fmt: skip
    a, b = (z / (np.linalg.norm(z, axis=-1, keepdims=True) + 1e-10)
            for z in (x, y))  # fmt: skip
    weight = frozen["heads"][f"tap{tap}"]["weight"]
    total = total + ((a - b) ** 2 @ weight).mean((1, 2))
  return total


@pytest.mark.parametrize(
  "distance, taps, to_input",
  [
    (
      "vgg16-hed",
      2,
      lambda x: (
        x[..., ::-1] * 127.5
        + (127.5 - np.array([104.00699, 116.66877, 122.67892]))
      ),
    ),
    (
      "lpips",
      5,
      lambda x: (
        (x - np.array([-0.030, -0.088, -0.188]))
        / np.array([0.458, 0.448, 0.450])
      ),
    ),
  ],
)
def test_distance_is_that_of_the_paper(distance, taps, to_input):
  """Odd sides, too: a maximum leaves the last row and column out."""
  config = PerceptualConfig(distance, trunk_path="not read", taps=taps)
  frozen = {"vgg16": _trunk(taps), "heads": _heads(taps)}
  x, y = _pictures((2, 16, 19, 3))
  actual = jax.jit(distance_of(config))(frozen, x, y)
  expected = _numpy_distance(frozen, x, y, to_input, taps)
  assert actual.shape == (2,) and actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=2e-5)


def test_gradient_is_finite_everywhere_and_right():
  """At equal pictures, where features vanish, and along a direction."""
  heads = _heads(2)
  live, dead = ({"vgg16": _trunk(2), "heads": heads} for _ in range(2))
  for layer in dead["vgg16"].values():
    layer["bias"] -= 1e3
  distance = distance_of(PerceptualConfig(taps=2))
  both = jax.jit(jax.value_and_grad(lambda x, f, y: jnp.sum(distance(f, x, y))))
  x, y = _pictures((1, 6, 6, 3))
  value, gradient = both(x, dead, y)
  assert value == 0 and not np.any(gradient)
  value, gradient = both(x, live, x)
  assert value == 0 and not np.any(gradient)
  value, gradient = both(x, live, y)
  assert np.isfinite(gradient).all()
  direction = np.random.default_rng(3).standard_normal(x.shape)
  step = np.float32(1e-2) * direction.astype(np.float32)
  up, down = (both(x + s * step, live, y)[0] for s in (1, -1))
  np.testing.assert_allclose(
    np.sum(gradient * step), (up - down) / 2, rtol=2e-2
  )


def test_maximum_shares_its_gradient_among_equals():
  x = np.zeros((1, 3, 2, 1), np.float32)
  gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(x)
  np.testing.assert_array_equal(
    gradient[0, :, :, 0], [[0.25, 0.25], [0.25, 0.25], [0, 0]]
  )


@pytest.mark.parametrize(
  "settings, sentence",
  [
    ({"distance": "ssim"}, "one of vgg16-hed, lpips, got 'ssim'"),
    ({"taps": 6}, "has 1 to 5 taps, got 6"),
    ({"distance": "lpips"}, "needs trunk_path.*torchvision's vgg16"),
    ({"distance": "lpips", "taps": 3, "trunk_path": "x"}, "5 taps, got 3"),
    ({"heads_path": "x"}, "goes with the distance lpips alone"),
  ],
)
def test_bad_settings(settings, sentence):
  with pytest.raises(ValueError, match=sentence):
    load(settings)


def test_bad_pictures():
  distance = distance_of(PerceptualConfig())
  with pytest.raises(ValueError, match="at least 16 pixels a side, got 15 x"):
    distance({}, np.zeros((1, 15, 20, 3)), np.zeros((1, 15, 20, 3)))
  with pytest.raises(ValueError, match=r"one shape, got .*16, 3.*17, 3"):
    distance({}, np.zeros((1, 16, 16, 3)), np.zeros((1, 16, 17, 3)))
  assert PerceptualConfig(taps=2).name.endswith("distance (2 taps)")


def test_the_trunk_has_the_sizes_of_vgg16():
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  features, variables = jax.eval_shape(
    VGG16().init_with_output, jax.random.key(0), image
  )
  assert [f.shape[1:] for f in features] == [
    (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512), (2, 2, 512)
  ]  # fmt: skip
  count = sum(x.size for x in jax.tree.leaves(variables))
  # What torchvision's `vgg16().features` counts.
  assert count == 14_714_688
  shapes = {k: v["kernel"].shape for k, v in variables["params"].items()}
  assert shapes == conv_shapes()


def test_parity_with_the_lpips_package(tmp_path):
  """Its own trunk with random weights and its published heads."""
  for name in ("torch", "torchvision", "lpips", "tqdm"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed")
  torch = importlib.import_module("torch")
  package = importlib.import_module("lpips")
  torch.manual_seed(0)
  theirs = package.LPIPS(net="vgg", pnet_rand=True, verbose=False)
  with torch.no_grad():
    for name, value in theirs.net.named_parameters():
      if name.endswith("bias"):
        value.uniform_(-0.1, 0.1)
  path = tmp_path / "lpips.pth"
  torch.save(theirs.state_dict(), path)
  x, y = _pictures((2, 40, 36, 3))
  with torch.no_grad():
    expected = theirs(
      *(torch.from_numpy(z.transpose(0, 3, 1, 2).copy()) for z in (x, y))
    )
  for heads_path in ("", str(path)):
    distance, frozen = load(
      {"distance": "lpips", "trunk_path": str(path), "heads_path": heads_path}
    )
    np.testing.assert_allclose(
      jax.jit(distance)(frozen, x, y), expected.numpy().reshape(-1), rtol=1e-4
    )
