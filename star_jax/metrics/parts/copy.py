"""--what=copy: does the model draw training pictures again.

Distance of each icon to the nearest training picture (cosine of features, cut
out on white). What a copy measures like is known from training pictures,
freshly augmented, through the tokenizer: an icon closer than half of those
counts as a copy. Asked for a picture it was trained on, a model should draw
it; the question is what it draws for held-out prompts, next to held-out real
pictures, which cannot be copies.
"""

from __future__ import annotations

import numpy as np

from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.efficientnet import default_network
from star_jax.metrics.icons import augmented, drawn_icons
from star_jax.metrics.progress import Progress
from star_jax.metrics.report import Result
from star_jax.metrics.retrieval import (
  gallery_picture,
  load_gallery,
  query_features,
)
from star_jax.metrics.wilson import Share

NEIGHBOURS = 3
ROWS = 24
NAMES = {
  "generated_heldout": "generated, held-out prompts",
  "generated_train": "generated, trained prompts",
  "real_heldout": "real, held-out pictures",
  "real_heldout_tokenizer": "real, held out, through the tokenizer",
  "real_train_tokenizer": "real, trained, through the tokenizer",
}


def run(ctx: Context) -> Result:
  """Writes copy.png: an icon and its nearest training pictures a row."""
  icons = drawn_icons(ctx)
  network = default_network()
  softening = ctx.config.icons.softenings[0]
  gallery = load_gallery(
    ctx.store,
    ctx.image_size,
    network,
    softening,
    Progress("features of all real icons"),
  )
  rows = np.flatnonzero(gallery.train)
  train_MF = gallery.features_MF[rows]
  held = np.array([r.split == "heldout" for r in icons.records])
  few = ctx.config.copy.num_real
  real_held = augmented(ctx, icons.numbers[held][:few])
  real_train = augmented(ctx, icons.numbers[~held][:few])
  pictures = {
    "generated_heldout": icons.image[held],
    "generated_train": icons.image[~held],
    "real_heldout": real_held,
    "real_heldout_tokenizer": ctx.reconstruct(real_held)[0],
    "real_train_tokenizer": ctx.reconstruct(real_train)[0],
  }
  distances, order = {}, None
  for name, image in pictures.items():
    features = query_features(network, image, softening)
    distance = 1 - features @ train_MF.T
    distances[name] = distance.min(1)
    if name == "generated_heldout":
      order = rows[np.argsort(distance, axis=1)[:, :NEIGHBOURS]]
  values = _values(distances)
  _save_sheet(ctx, pictures["generated_heldout"], distances, order)
  return Result(values, _rows(values))


def _values(distances: dict[str, np.ndarray]) -> dict:
  threshold = float(np.median(distances["real_train_tokenizer"]))
  out = {"threshold": threshold, "distances": {}, "copies": {}}
  for name, distance in distances.items():
    out["distances"][name] = {
      str(q): float(np.percentile(distance, q)) for q in (1, 5, 25, 50, 75)
    }
    out["copies"][name] = Share.of(distance < threshold).to_dict()
  return out


def _rows(values: dict) -> list[tuple[str, str, str]]:
  rows = []
  for name, words in NAMES.items():
    share, distance = values["copies"][name], values["distances"][name]
    rows.append(
      (
        words,
        f"{100 * share['value']:.1f}% copies",
        f"[{100 * share['low']:.1f}, {100 * share['high']:.1f}],"
        f" n = {share['n']}; distance median {distance['50']:.3f},"
        f" 5% {distance['5']:.3f}",
      )
    )
  return [*rows, ("a copy is closer than", f"{values['threshold']:.3f}", "")]


def _save_sheet(ctx, image, distances, order) -> None:
  """The generated icons closest to training pictures, nearest first."""
  closest = np.argsort(distances["generated_heldout"])[:ROWS]
  rows = []
  for i in closest:
    rows.append(image[i])
    rows += [
      gallery_picture(ctx.store, int(j), ctx.image_size) for j in order[i]
    ]
  sheet = picture_grid(np.stack(rows), 3 * (NEIGHBOURS + 1))
  sheet.save(ctx.folder / "copy.png")
