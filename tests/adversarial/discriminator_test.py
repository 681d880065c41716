"""Discriminators: their parts, what a logit sees, and bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec

from star_jax import adversarial
from star_jax.adversarial import DiscriminatorConfig, discriminator_of
from star_jax.adversarial.spectral import Conv, spectral_norm
from star_jax.sharding import make_mesh, shardings_of

PATCH = dict(channels=8, layers=1, groups=4)


def _image(batch=2, size=24, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def _params(discriminator, frozen, size):
  """Random ones, drawn with numpy: nothing is compiled."""
  shapes = jax.eval_shape(
    lambda key: discriminator.init(key, frozen, (size, size)),
    jax.random.key(0),
  )
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda s: rng.uniform(-0.3, 0.3, s.shape).astype(np.float32), shapes
  )


def _logits(config, frozen, image):
  """(parameters, logits of the batch and of its last picture alone, gradient
  of the first picture's middle logit)."""
  discriminator = discriminator_of(config)
  params = _params(discriminator, frozen, image.shape[1])

  @jax.jit
  def run(params, image):
    logits_BN, pull = jax.vjp(
      lambda x: discriminator.logits(params, frozen, x), image
    )
    one = jnp.zeros(logits_BN.shape).at[0, logits_BN.shape[1] // 2].set(1.0)
    alone = discriminator.logits(params, frozen, image[-1:])
    return logits_BN, alone, pull(one)[0]

  return params, *run(params, image)


def test_spectral_norm_is_the_largest_singular_value():
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((3, 3, 4, 10)).astype(np.float32)
  matrix = kernel.reshape(-1, 10)
  u, s, v = np.linalg.svd(matrix)
  (value, gradient), few = jax.jit(
    lambda k: (
      jax.value_and_grad(lambda k: spectral_norm(k, 100))(k),
      spectral_norm(k),
    )
  )(kernel)
  np.testing.assert_allclose(value, s[0], rtol=1e-5)
  np.testing.assert_allclose(
    gradient.reshape(-1, 10), np.outer(u[:, 0], v[0]), atol=1e-3
  )
  # A few steps: never above it, and near.
  assert 0.9 * s[0] < few <= s[0] * (1 + 1e-6)


@pytest.mark.parametrize("size, stride, pad", [(4, 2, 1), (3, 1, 1), (1, 1, 0)])
def test_spectral_convolution_divides_by_its_norm(size, stride, pad):
  image = _image(size=7)
  conv = Conv(5, size, stride, spectral=True)

  @jax.jit
  def run(image):
    params = conv.init(jax.random.key(0), image)["params"]
    params["bias"] += 0.3
    kernel = params["kernel"] / spectral_norm(params["kernel"])
    direct = jax.lax.conv_general_dilated(
      image, kernel, (stride, stride), ((pad, pad), (pad, pad)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return conv.apply({"params": params}, image), direct + 0.3

  np.testing.assert_allclose(*run(image), atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "spectral", "group"])
def test_patch_logits_see_their_patch_and_their_picture(norm):
  config = DiscriminatorConfig(**PATCH, norm=norm)
  image = _image()
  _, logits, alone, gradient = _logits(config, {}, image)
  # (24 / 2 - 2) positions a side.
  assert logits.shape == (2, 100) and logits.dtype == jnp.float32
  assert not np.any(gradient[1])
  rows = np.any(gradient[0], axis=(1, 2)).sum()
  assert rows == (24 if norm == "group" else 16)
  np.testing.assert_allclose(alone[0], logits[1], atol=1e-5)


def test_published_patch_discriminator_has_its_sizes():
  """ndf 64, n 3: 2,765,633 weights with batch norms of as many parameters as
  the group norms here, and biases of three convolutions that they lack."""
  discriminator = discriminator_of(DiscriminatorConfig())
  params = jax.eval_shape(
    lambda key: discriminator.init(key, {}, (256, 256)), jax.random.key(0)
  )
  count = sum(x.size for x in jax.tree.leaves(params))
  assert count == 2_765_633 + 128 + 256 + 512
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  logits = jax.eval_shape(
    lambda p, x: discriminator.logits(p, {}, x), params, image
  )
  assert logits.shape == (1, 30 * 30)


@pytest.mark.long
def test_efficientnet_features_carry_the_gradient():
  try:
    _, frozen = adversarial.load(
      {"kind": "efficientnet", "channels": 8, "taps": (4, 2)}
    )
  except FileNotFoundError as error:
    pytest.skip(str(error))
  assert len(frozen["efficientnet"]["blocks"]) == 5
  config = DiscriminatorConfig("efficientnet", channels=8, taps=(4, 2))
  image = _image(size=16)
  params, logits, alone, gradient = _logits(config, frozen, image)
  # 1/4 and 1/8 of the sides.
  assert logits.shape == (2, 16 + 4) and set(params) == {"depth0", "depth1"}
  assert np.any(gradient[0]) and not np.any(gradient[1])
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(alone[0], logits[1], atol=1e-4)
  # The depths that stand in the table are those of the network.
  whole, everything = adversarial.load({"kind": "efficientnet"})
  shapes = jax.eval_shape(
    whole.features,
    everything,
    jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
  )
  assert [s.shape[1:] for s in shapes] == [
    (16, 16, 24), (8, 8, 40), (4, 4, 112), (2, 2, 320)
  ]  # fmt: skip


def test_every_parameter_has_a_sharding_rule():
  """Kernels by their outputs, the rest whole."""
  mesh = make_mesh({"data": 4, "fsdp": 2})
  layer = {"kernel": np.zeros((3, 3, 4, 8)), "bias": np.zeros(8)}
  tree = {
    "discriminator": {
      "conv0": layer, "norm1": {"scale": np.zeros(8)},
      "depth0": {"mix": layer},
    },
    "perceptual": {
      "vgg16": {"conv1_1": layer},
      "heads": {"tap1": {"weight": np.zeros(8)}},
    },
    "efficientnet": {"stem": layer, "blocks": [{"expand": layer}]},
    "dino": {
      "pos_embed": np.zeros((1, 5, 8)), "cls_token": np.zeros((1, 1, 8)),
      "block_0": {"qkv": {"kernel": np.zeros((8, 24))}},
    },
    "lecam": {"real": np.zeros(())},
  }  # fmt: skip
  found = shardings_of(tree, mesh)
  kernel, whole = Spec(None, None, None, "fsdp"), Spec()
  for conv in (
    found["discriminator"]["conv0"],
    found["discriminator"]["depth0"]["mix"],
    found["perceptual"]["vgg16"]["conv1_1"],
    found["efficientnet"]["blocks"][0]["expand"],
  ):
    assert conv["kernel"].spec == kernel and conv["bias"].spec == whole
  assert found["dino"]["block_0"]["qkv"]["kernel"].spec == Spec(None, "fsdp")
  assert found["dino"]["pos_embed"].spec == whole


@pytest.mark.parametrize(
  "settings, sentence",
  [
    ({"kind": "clip"}, "one of patch, efficientnet, dino, got 'clip'"),
    ({"layers": 0}, "layers of a discriminator is at least 1, got 0"),
    ({"norm": "batch"}, "one of group, spectral, none, got 'batch'"),
    ({"kind": "efficientnet", "norm": "group"}, "one of spectral, none"),
    ({"channels": 8}, "groups = 32 .* twice its channels = 8"),
    ({"taps": (1,)}, "patch has no frozen network"),
    ({"kind": "efficientnet", "taps": (3, 16)}, r"0 to 15, got \(3, 16\)"),
    ({"kind": "dino"}, "dino needs weights_path"),
  ],
)
def test_bad_settings(settings, sentence):
  with pytest.raises(ValueError, match=sentence):
    adversarial.load(settings)


def test_pictures_without_a_patch():
  discriminator = discriminator_of(DiscriminatorConfig())
  with pytest.raises(
    ValueError, match="at least 24 pixels a side, got 16 x 32"
  ):
    discriminator.init(jax.random.key(0), {}, (16, 32))
  dino = discriminator_of(DiscriminatorConfig("dino", weights_path="given"))
  with pytest.raises(ValueError, match="multiples of 16 pixels, got 24 x 16"):
    dino.init(jax.random.key(0), {"dino": {}}, (24, 16))
