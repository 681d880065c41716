"""A small art store of drawn shapes, so that no art has to be rendered."""

import dataclasses
import zlib

import numpy as np
import pytest

from star_jax.data.art.store import ArtRecord
from star_jax.data.concepts import CONCEPTS


class DrawnStore:
  """The store's interface over outlined discs with a white eye."""

  size = 128

  def __init__(self, records):
    self.records = records
    self._by_key = {(r.style, r.key): i for i, r in enumerate(records)}

  def __len__(self):
    return len(self.records)

  def __contains__(self, style_and_key):
    return style_and_key in self._by_key

  def index(self, style, key):
    return self._by_key[style, key]

  def rgba(self, i):
    record = self.records[i]
    dice = np.random.default_rng(
      zlib.crc32(f"{record.style} {record.key}".encode())
    )
    return drawn_disc(dice.integers(60, 230, 3), int(dice.integers(30, 60)))


def drawn_disc(colour, radius):
  """uint8 [128, 128, 4]: a shaded disc, black outline, white eye."""
  y, x = np.mgrid[:128, :128] - 63.5
  far = np.hypot(y, x)
  rgba = np.zeros((128, 128, 4), np.uint8)
  shade = (1 - 0.25 * (x + radius) / (2 * radius))[..., None]
  rgba[..., :3] = np.clip(np.asarray(colour) * shade, 0, 255)
  rgba[far > radius - 4, :3] = 0
  rgba[np.hypot(y + 8, x + 8) < 5, :3] = 255
  rgba[far <= radius, 3] = 255
  return rgba


def drawn_records(styles, split="train"):
  """One record for every concept that a style draws."""
  values = {
    "keywords": ("thing", "shape"),
    "category": "objects",
    "subcategory": "shapes",
    "split": split,
    "holdout_reason": "",
    "shard": "",
    "position": 0,
  }
  known = {f.name for f in dataclasses.fields(ArtRecord)}
  assert known == {*values, "key", "style", "name"}
  return [
    ArtRecord(key=c.key, style=style, name=c.name, **values)
    for style in styles
    for c in CONCEPTS.values()
  ]


@pytest.fixture(scope="session")
def art_store():
  """All concepts in three styles, and one style that is held out."""
  return DrawnStore(
    drawn_records(("twemoji", "openmoji", "noto"))
    + drawn_records(("fluent",), split="heldout")
  )
