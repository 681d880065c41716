"""InceptionV3 as FID was defined with it.

The network of the TensorFlow file of 2015-12-05, whose PyTorch copies
pytorch-fid and torch-fidelity load. It differs from torchvision's: average
pools do not count padding, the last block pools by maximum, 1008 classes, no
auxiliary head. Modules are named as in those copies. Batch norms use their
running statistics. All products state HIGHEST precision: FID moves with it.

B: batch, H W: pixels, C: channels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.convert.pth import read_state_dict
from star_jax.convert.state_dict import (
  CONV,
  LINEAR,
  Rule,
  ignore,
  torch_to_jax,
)
from star_jax.evaluation.resize import resize_bilinear

INPUT_SIZE = 299
# What OpenAI's evaluator takes of mixed_6/conv for sFID: 7 channels at 17 x 17
# places, row by row.
SPATIAL_CHANNELS = 7
WIDTHS = {
  "64": 64,
  "192": 192,
  "768": 768,
  "spatial": 17 * 17 * SPATIAL_CHANNELS,
  "pool": 2048,
  "logits": 1008,
}
_BN_EPS = 1e-3
_HIGHEST = jax.lax.Precision.HIGHEST


class ConvNorm(nn.Module):
  """Convolution without bias, batch norm, ReLU."""

  features: int
  kernel: tuple[int, int]
  stride: int = 1
  padding: str | tuple = "VALID"

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    shape = (*self.kernel, x_BHWC.shape[-1], self.features)
    # Weights always come from a file; zeros are quick to trace.
    kernel = self.param("kernel", nn.initializers.zeros, shape)
    width = (self.features,)
    scale = self.param("scale", nn.initializers.ones, width)
    bias = self.param("bias", nn.initializers.zeros, width)
    mean = self.param("mean", nn.initializers.zeros, width)
    var = self.param("var", nn.initializers.ones, width)
    x_BHWC = jax.lax.conv_general_dilated(
      x_BHWC,
      kernel,
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=_HIGHEST,
    )
    gain = scale / jnp.sqrt(var + _BN_EPS)
    return jax.nn.relu((x_BHWC - mean) * gain + bias)


def _conv(name: str, features: int, kernel=(1, 1), stride=1, padding="SAME"):
  """By default keeps the size (stride 1, odd kernels: PyTorch's k // 2)."""
  return ConvNorm(features, kernel, stride, padding, name=name)


def _average_pool(x_BHWC):
  """3 x 3, of the places within the picture alone."""
  return nn.avg_pool(x_BHWC, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x_BHWC):
  return nn.max_pool(x_BHWC, (3, 3), (2, 2))


class BlockA(nn.Module):
  """35 x 35."""

  pool_features: int

  @nn.compact
  def __call__(self, x):
    a = _conv("branch1x1", 64)(x)
    b = _conv("branch5x5_1", 48)(x)
    b = _conv("branch5x5_2", 64, (5, 5))(b)
    c = _conv("branch3x3dbl_1", 64)(x)
    c = _conv("branch3x3dbl_2", 96, (3, 3))(c)
    c = _conv("branch3x3dbl_3", 96, (3, 3))(c)
    d = _conv("branch_pool", self.pool_features)(_average_pool(x))
    return jnp.concatenate([a, b, c, d], -1)


class BlockB(nn.Module):
  """35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x):
    a = _conv("branch3x3", 384, (3, 3), 2, "VALID")(x)
    b = _conv("branch3x3dbl_1", 64)(x)
    b = _conv("branch3x3dbl_2", 96, (3, 3))(b)
    b = _conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID")(b)
    return jnp.concatenate([a, b, _max_pool(x)], -1)


class BlockC(nn.Module):
  """17 x 17; its first branch is what sFID looks at."""

  width: int

  @nn.compact
  def __call__(self, x):
    """Returns (output, first branch)."""
    n = self.width
    a = _conv("branch1x1", 192)(x)
    b = _conv("branch7x7_1", n)(x)
    b = _conv("branch7x7_2", n, (1, 7))(b)
    b = _conv("branch7x7_3", 192, (7, 1))(b)
    c = _conv("branch7x7dbl_1", n)(x)
    c = _conv("branch7x7dbl_2", n, (7, 1))(c)
    c = _conv("branch7x7dbl_3", n, (1, 7))(c)
    c = _conv("branch7x7dbl_4", n, (7, 1))(c)
    c = _conv("branch7x7dbl_5", 192, (1, 7))(c)
    d = _conv("branch_pool", 192)(_average_pool(x))
    return jnp.concatenate([a, b, c, d], -1), a


class BlockD(nn.Module):
  """17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x):
    a = _conv("branch3x3_1", 192)(x)
    a = _conv("branch3x3_2", 320, (3, 3), 2, "VALID")(a)
    b = _conv("branch7x7x3_1", 192)(x)
    b = _conv("branch7x7x3_2", 192, (1, 7))(b)
    b = _conv("branch7x7x3_3", 192, (7, 1))(b)
    b = _conv("branch7x7x3_4", 192, (3, 3), 2, "VALID")(b)
    return jnp.concatenate([a, b, _max_pool(x)], -1)


class BlockE(nn.Module):
  """8 x 8; `pool` is "average" or "max"."""

  pool: str

  @nn.compact
  def __call__(self, x):
    a = _conv("branch1x1", 320)(x)
    b = _conv("branch3x3_1", 384)(x)
    b = [
      _conv("branch3x3_2a", 384, (1, 3))(b),
      _conv("branch3x3_2b", 384, (3, 1))(b),
    ]
    c = _conv("branch3x3dbl_1", 448)(x)
    c = _conv("branch3x3dbl_2", 384, (3, 3))(c)
    c = [
      _conv("branch3x3dbl_3a", 384, (1, 3))(c),
      _conv("branch3x3dbl_3b", 384, (3, 1))(c),
    ]
    if self.pool == "max":
      d = nn.max_pool(x, (3, 3), (1, 1), "SAME")
    else:
      d = _average_pool(x)
    d = _conv("branch_pool", 192)(d)
    return jnp.concatenate([a, *b, *c, d], -1)


class InceptionV3(nn.Module):
  """Pictures to features of several depths."""

  @nn.compact
  def __call__(self, x_BHW3: jax.Array) -> dict[str, jax.Array]:
    """Args: float32 [B, 299, 299, 3], (pixel - 128) / 128.

    Returns:
      name -> float32 [B, WIDTHS[name]]; "logits" are without the bias, as both
      tools take them for the Inception Score.
    """
    x = _conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")(x_BHW3)
    x = _conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")(x)
    x = _max_pool(_conv("Conv2d_2b_3x3", 64, (3, 3))(x))
    out = {"64": x.mean((1, 2))}
    x = _conv("Conv2d_3b_1x1", 80)(x)
    x = _max_pool(_conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID")(x))
    out["192"] = x.mean((1, 2))
    for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
      x = BlockA(pool_features, name=f"Mixed_{name}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
      x, first = BlockC(width, name=f"Mixed_{name}")(x)
      if name == "6d":  # mixed_6 of the TensorFlow graph
        spatial = first[..., :SPATIAL_CHANNELS]
        out["spatial"] = spatial.reshape(len(spatial), -1)
    out["768"] = x.mean((1, 2))
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE("average", name="Mixed_7b")(x)
    x = BlockE("max", name="Mixed_7c")(x)
    out["pool"] = x.mean((1, 2))
    dense = nn.Dense(
      WIDTHS["logits"],
      precision=_HIGHEST,
      kernel_init=nn.initializers.zeros,
      name="fc",
    )
    out["logits"] = dense(out["pool"]) - dense.variables["params"]["bias"]
    return out


def features(params, image_BHW3: jax.Array, resize: str):
  """All features of uint8 pictures of any size; see `InceptionV3`.

  Args:
    params: from `load_params`.
    image_BHW3: uint8 [B, H, W, 3].
    resize: see resize.py; decides the range of the input too, which is
      (x - 128) / 128 in one tool and 2 x / 255 - 1 in the other.
  """
  x = image_BHW3.astype(jnp.float32)
  if resize == "tf1":
    x = (resize_bilinear(x, INPUT_SIZE, resize) - 128) / 128
  else:
    x = 2 * resize_bilinear(x / 255, INPUT_SIZE, resize) - 1
  return InceptionV3().apply({"params": params}, x)


_NORM = {
  "weight": "scale",
  "bias": "bias",
  "running_mean": "mean",
  "running_var": "var",
}
_PLACES = ("{block}", "{block}.{branch}")
RULES = tuple(
  rule
  for place in _PLACES
  for rule in (
    Rule(f"{place}.conv.weight", f"{place}/kernel".replace(".", "/"), CONV),
    *(
      Rule(f"{place}.bn.{theirs}", f"{place}/{ours}".replace(".", "/"))
      for theirs, ours in _NORM.items()
    ),
    ignore(f"{place}.bn.num_batches_tracked"),
  )
)
RULES = (
  Rule("fc.weight", "fc/kernel", LINEAR),
  Rule("fc.bias", "fc/bias"),
  *RULES,
)


@functools.cache
def template() -> dict:
  """The parameter tree as `ShapeDtypeStruct`s."""
  x = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, 3), jnp.float32)
  return jax.eval_shape(InceptionV3().init, jax.random.key(0), x)["params"]


def params_from_state(state: Mapping[str, np.ndarray]) -> dict:
  """Our parameters from the state dict of pytorch-fid or torch-fidelity.

  Raises:
    ValueError: another network; the sentence names the keys.
  """
  try:
    return torch_to_jax(state, RULES, template())
  except ValueError as error:
    raise ValueError(
      f"These are not the weights of the FID InceptionV3: {error}"
    ) from error


def load_params(path: str | os.PathLike) -> dict:
  """Reads weights-inception-2015-12-05-6726825d.pth (torch-fidelity) or
  pt_inception-2015-12-05-6726825d.pth (pytorch-fid), without torch."""
  return params_from_state(read_state_dict(Path(path)))
