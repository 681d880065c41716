"""Is the real picture nearest to a generated icon the one that was asked for.

All pictures are cut out on white first (see cutout.py), softened, and compared
by the cosine of their EfficientNet-lite0 features. The network was trained on
photographs and minds the faint grain of a tokenizer more than a wrong shape;
softening makes it find even clean pictures better.

M: pictures of the gallery, N: queries, F: feature width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from star_jax.data.art.store import MANIFEST, ArtRecord, ArtStore
from star_jax.metrics.cutout import on_white
from star_jax.metrics.efficientnet import FeatureNetwork
from star_jax.metrics.heldout import resize_rgba

FORMAT = 1  # of the cached features; raise it when their recipe changes
BLOCK = 256


def normalised(features: np.ndarray) -> np.ndarray:
  """Rows of length one."""
  norm = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(norm, 1e-12)


def soften(image: np.ndarray, softening: float) -> np.ndarray:
  """Gaussian blur of uint8 [N, H, W, 3].

  Args:
    image: the pictures.
    softening: standard deviation in 64ths of the shorter side; 0 for none.
  """
  sigma = softening * min(image.shape[1:3]) / 64
  if sigma == 0:
    return image
  soft = ndimage.gaussian_filter(
    image.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"
  )
  return np.round(soft).astype(np.uint8)


def query_features(
  network: FeatureNetwork,
  image: np.ndarray,
  softening: float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
  """Unit features of icons on any background: float32 [N, F]."""
  out = [np.zeros((0, 1), np.float32)] if not len(image) else []
  for start in range(0, len(image), BLOCK):
    part = image[start : start + BLOCK]
    cut = np.stack([on_white(x) for x in part])
    out.append(network(soften(cut, softening)))
    progress(min(start + BLOCK, len(image)), len(image))
  return normalised(np.concatenate(out))


@dataclasses.dataclass
class Gallery:
  """Real pictures. features_MF: unit rows; records: M facts about them."""

  features_MF: np.ndarray
  records: list[ArtRecord]

  def __post_init__(self):
    self.styles = np.array([r.style for r in self.records])
    self.keys = np.array([r.key for r in self.records])
    self.merged = np.array([r.merged_concept for r in self.records])
    self.train = np.array([r.split == "train" for r in self.records])

  def nearest(
    self, features_NF: np.ndarray, allowed_NM: np.ndarray | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Number and cosine distance of the nearest allowed picture: two [N]."""
    distance_NM = 1 - features_NF @ self.features_MF.T
    if allowed_NM is not None:
      distance_NM = np.where(allowed_NM, distance_NM, np.inf)
    best_N = distance_NM.argmin(1)
    return best_N, distance_NM[np.arange(len(best_N)), best_N]


def gallery_picture(
  store: ArtStore, number: int, size: tuple[int, int]
) -> np.ndarray:
  """A real picture on white, filling the frame: uint8 [H, W, 3]."""
  art = resize_rgba(store.rgba(number), size)
  image = art[..., :3] * 255 + (1 - art[..., 3:]) * 255
  return on_white(np.round(image).astype(np.uint8), art[..., 3])


def load_gallery(
  store: ArtStore,
  size: tuple[int, int],
  network: FeatureNetwork,
  softening: float,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gallery:
  """Features of the whole store, from disk when they were computed before.

  Args:
    store: the art; the cache lies beside it.
    size: (H, W) that the model draws at: the real pictures get no more detail.
    network: for the features.
    softening: see `soften`.
    progress: called with (pictures done, pictures in all).
  """
  manifest = (store.folder / MANIFEST).read_bytes()
  identity = f"{FORMAT} {tuple(size)} {softening:g}".encode() + manifest
  digest = hashlib.sha256(identity).hexdigest()[:16]
  path = store.folder.parent / f"features-{digest}.npy"
  features_MF = _read(path, len(store))
  if features_MF is None:
    out = []
    for start in range(0, len(store), BLOCK):
      numbers = range(start, min(start + BLOCK, len(store)))
      image = np.stack([gallery_picture(store, i, size) for i in numbers])
      out.append(network(soften(image, softening)))
      progress(numbers.stop, len(store))
    features_MF = normalised(np.concatenate(out)).astype(np.float16)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npy")
    np.save(temporary, features_MF)
    os.replace(temporary, path)
  return Gallery(features_MF.astype(np.float32), store.records)


def _read(path: Path, rows: int) -> np.ndarray | None:
  try:
    features = np.load(path)
  except (OSError, ValueError, EOFError):
    return None
  return features if len(features) == rows else None


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """One bool per query. strict: the very picture's concept with tone and
  gender; merged: up to tone and gender; style: the nearest picture of all
  styles is of the style that was asked for. nearest: its number among the
  pictures of the style."""

  strict: np.ndarray
  merged: np.ndarray
  style: np.ndarray
  nearest: np.ndarray


def retrieve(
  gallery: Gallery, features_NF: np.ndarray, asked: Sequence[ArtRecord]
) -> Retrieval:
  """Looks each query up among the real pictures of the style it asks for."""
  strict, merged, style, nearest = [], [], [], []
  for start in range(0, len(asked), BLOCK):
    part = asked[start : start + BLOCK]
    features = features_NF[start : start + BLOCK]
    wanted = np.array([r.style for r in part])
    same = wanted[:, None] == gallery.styles[None]
    best, _ = gallery.nearest(features, same)
    anywhere, _ = gallery.nearest(features)
    strict.append(gallery.keys[best] == [r.key for r in part])
    merged.append(gallery.merged[best] == [r.merged_concept for r in part])
    style.append(gallery.styles[anywhere] == wanted)
    nearest.append(best)
  return Retrieval(
    *(np.concatenate(x) for x in (strict, merged, style, nearest))
  )


def chance(gallery: Gallery, asked: Sequence[ArtRecord]) -> dict[str, float]:
  """Expected accuracy of a random picture of the style (any, for style)."""
  strict, merged, style = [], [], []
  for record in asked:
    same = gallery.styles == record.style
    strict.append((gallery.keys[same] == record.key).mean())
    merged.append((gallery.merged[same] == record.merged_concept).mean())
    style.append(same.mean())
  return {
    "strict": float(np.mean(strict)),
    "merged": float(np.mean(merged)),
    "style": float(np.mean(style)),
  }
