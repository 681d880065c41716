"""CLIP score and the aesthetic head on CLIP-L, from local folders.

CLIP score (arXiv 2104.08718 without its factor and clipping): 100 times the
cosine of the projected picture and caption. Aesthetic score: the linear layers
of improved-aesthetic-predictor on the picture vector of length one.

N: pictures, D: width of the projection.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from star_jax.convert.pth import read_state_dict
from star_jax.evaluation import clip_vision
from star_jax.evaluation.clip_vision import ClipVision, ClipVisionConfig
from star_jax.evaluation.networks import file_hash
from star_jax.text import clip as text_clip
from star_jax.text.hf_folder import config_of, read_json, read_weights

# Linear layers of the head, by their numbers in the file (dropout between).
AESTHETIC_LAYERS = (0, 2, 4, 6, 7)
AESTHETIC_WIDTHS = (768, 1024, 128, 64, 16, 1)
_BATCH = 32


def preprocess(image: Image.Image, size: int) -> np.ndarray:
  """CLIP's input: shorter side bicubic to `size`, centre, normalised.

  Returns:
    float32 [size, size, 3].
  """
  image = image.convert("RGB")
  # As torchvision's Resize: the longer side is rounded down.
  wide, high = (size * side // min(image.size) for side in image.size)
  image = image.resize((wide, high), Image.Resampling.BICUBIC)
  left, top = round((wide - size) / 2), round((high - size) / 2)
  image = image.crop((left, top, left + size, top + size))
  x = np.asarray(image, np.float32) / 255
  return (x - np.float32(clip_vision.MEAN)) / np.float32(clip_vision.STD)


class ClipImages:
  """Pictures to vectors of length one."""

  def __init__(self, path: str | Path):
    """Reads config.json and the weights of a CLIP folder.

    Raises:
      ValueError: no folder given, or not one of a CLIP with an image tower.
    """
    if not path or not Path(path).is_dir():
      given = f"no folder at {path}" if path else "none given"
      raise ValueError(
        f"The weights of CLIP are missing ({given}): get a folder such as"
        " openai/clip-vit-large-patch14 (config.json, model.safetensors,"
        " tokenizer files) and say where it lies, --config.clip=FOLDER."
      )
    self.path = Path(path)
    entries = read_json(self.path / "config.json")
    self.config = read_config(entries, self.path / "config.json")
    self._state = read_weights(self.path)
    self.params = jax.device_put(
      clip_vision.params_from_state(self._state, self.config, self.path)
    )
    model = ClipVision(self.config)
    self._apply = jax.jit(lambda p, x: model.apply({"params": p}, x))
    self.identity = f"{self.path.name}, {_weights_hash(self.path)}"

  def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
    """float32 [N, D]."""
    out = []
    for start in range(0, len(images), _BATCH):
      part = images[start : start + _BATCH]
      x = np.stack([preprocess(i, self.config.image_size) for i in part])
      missing = _BATCH - len(x)
      x = np.concatenate([x, np.repeat(x[-1:], missing, 0)])
      out.append(np.asarray(self._apply(self.params, x))[: len(part)])
    return unit(np.concatenate(out))


def read_config(entries: dict, path: Path) -> ClipVisionConfig:
  """Of a whole CLIP or of an image tower alone.

  Raises:
    ValueError: another model.
  """
  kind = entries.get("model_type")
  if kind == "clip":
    vision = entries.get("vision_config")
    if not isinstance(vision, dict):
      raise ValueError(f"{path} describes a CLIP without a vision_config.")
    width = entries.get("projection_dim", 512)
    entries = {**vision, "projection_dim": width}
  elif kind != "clip_vision_model":
    raise ValueError(
      f"{path} has model_type = {kind!r}; CLIP scores read 'clip' or"
      " 'clip_vision_model'."
    )
  return config_of(ClipVisionConfig, entries, path)


def _weights_hash(folder: Path) -> str:
  names = ("model.safetensors", "pytorch_model.bin")
  found = [folder / n for n in names if (folder / n).is_file()]
  return file_hash(found[0]) if found else "in parts"


def unit(x_ND: np.ndarray) -> np.ndarray:
  """Rows of length one."""
  return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


class ClipScore:
  """100 cos(picture, caption); a `best_of.Scorer`."""

  def __init__(self, images: ClipImages, encoder, projection_DD: np.ndarray):
    """Args: `encoder` the text tower; `projection_DD` [D_text, D]."""
    self._images, self._encoder = images, encoder
    self._projection = projection_DD
    self.name = f"CLIP score, {images.identity}"

  def texts(self, prompts: Sequence[str]) -> np.ndarray:
    """Captions as vectors of length one, float32 [N, D]."""
    pooled_ND = self._encoder.encode(list(prompts)).pooled_BD
    return unit(pooled_ND @ self._projection)

  def __call__(
    self, images: Sequence[Image.Image], prompts: Sequence[str]
  ) -> np.ndarray:
    """float64 [N]."""
    x, y = self._images(images), self.texts(prompts)
    return 100 * (x.astype(np.float64) * y).sum(1)


def load_clip_score(path: str | Path) -> ClipScore:
  """From a folder with both towers and the tokenizer.

  Raises:
    ValueError: something is missing or damaged; the sentence names it.
  """
  images = ClipImages(path)
  encoder = text_clip.load(path=path)
  projection = images._state.get("text_projection.weight")
  if projection is None:
    raise ValueError(f"The CLIP in {path} has no text_projection.weight.")
  return ClipScore(images, encoder, np.asarray(projection, np.float32).T)


class Aesthetic:
  """About 1 to 10; a `best_of.Scorer` that reads no caption."""

  def __init__(self, images: ClipImages, layers, identity: str):
    """Args: `layers` (weight [in, out], bias [out]) in their order."""
    self._images, self._layers = images, layers
    self.name = f"aesthetic score, {identity}, {images.identity}"

  def of_vectors(self, x_ND: np.ndarray) -> np.ndarray:
    """float32 [N] of picture vectors of length one."""
    return functools.reduce(
      lambda x, wb: x @ wb[0] + wb[1], self._layers, x_ND
    )[:, 0]

  def __call__(
    self, images: Sequence[Image.Image], prompts: Sequence[str]
  ) -> np.ndarray:
    """float32 [N]; `prompts` are not looked at."""
    return self.of_vectors(self._images(images))


def load_aesthetic(clip: str | Path, head: str | Path) -> Aesthetic:
  """From a CLIP-L folder and the file of the head.

  Raises:
    ValueError: something is missing, or of another width.
  """
  if not head or not Path(head).is_file():
    raise ValueError(
      "The weights of the aesthetic head are missing: get"
      " sac+logos+ava1-l14-linearMSE.pth of"
      " christophschuhmann/improved-aesthetic-predictor and say where it lies,"
      " --config.aesthetic=FILE."
    )
  state, images = read_state_dict(head), ClipImages(clip)
  shapes = itertools.pairwise(AESTHETIC_WIDTHS)
  layers = []
  for number, (below, above) in zip(AESTHETIC_LAYERS, shapes):
    weight = state.get(f"layers.{number}.weight")
    bias = state.get(f"layers.{number}.bias")
    if weight is None or weight.shape != (above, below) or bias is None:
      raise ValueError(
        f"{head} is not the aesthetic head of CLIP-L: layers.{number} is"
        f" {None if weight is None else weight.shape}, expected"
        f" {(above, below)}."
      )
    layers.append((np.asarray(weight, np.float32).T, np.asarray(bias)))
  if images.config.projection_dim != AESTHETIC_WIDTHS[0]:
    raise ValueError(
      f"The aesthetic head reads the 768 numbers of CLIP-L, the CLIP in {clip}"
      f" gives {images.config.projection_dim}."
    )
  return Aesthetic(images, layers, file_hash(head))
