"""Which pictures are held out, and why: by hash, the same on every machine.

Five compositional questions, asked in this order; the first that says "held
out" gives the reason:

1. unseen concept: 5% of concepts, in all styles, tones and genders.
2. style x concept: 5% of the concepts that at least four colour styles draw
   are held out in one of these styles (line art goes with openmoji, whose
   outline it is).
3. skin tone x gesture: 20% of the concepts that come in all five tones lose
   one tone, in all styles (4% of the pairs).
4. gender x role: 10% of the roles lose their man or their woman.
5. colour x object: of every object in three or more colours, one in eight
   colours and at least one.

Near-twins (clocks, similar flags, small and large squares) stay on one side:
concepts whose pictures hardly differ in some style form one cluster, and the
first two decisions are made per cluster. Big clusters (persons, clocks, plain
faces) are always trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from star_jax.data.art.names import (
  TONES,
  gender_of,
  neutral,
  tones_of,
  undirected,
  untoned,
)
from star_jax.data.art.sources import COLOUR_STYLES

UNSEEN_SHARE = 0.05
STYLE_SHARE = 0.05
TONE_SHARE = 0.20
GENDER_SHARE = 0.10
COLOURS_PER_HELDOUT = 8
MIN_STYLES = 4
MIN_COLOURS = 3
MAX_HELDOUT_CLUSTER = 4  # concepts; man, woman and person are one of eight
SALT = "star_jax art splits 1"

COLOURS = (
  "red",
  "orange",
  "yellow",
  "green",
  "blue",
  "light blue",
  "purple",
  "pink",
  "brown",
  "black",
  "white",
  "grey",
)


@dataclasses.dataclass(frozen=True)
class SplitItem:
  """What the decision depends on."""

  style: str
  key: str
  name: str


def share(*parts: str) -> float:
  """A number in [0, 1) from a hash of the parts."""
  text = "\x1f".join((SALT, *parts)).encode()
  return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2.0**64


def _lowest(options: Iterable[str], *parts: str) -> list[str]:
  """The options in an order that the hash shuffles."""
  return sorted(options, key=lambda option: (share(*parts, option), option))


def colour_object(name: str) -> tuple[str, str] | None:
  """'light blue heart' -> ('light blue', 'heart'), None without a colour."""
  for colour in sorted(COLOURS, key=len, reverse=True):
    if name.startswith(colour + " "):
      return colour, name.removeprefix(colour + " ")
  return None


def cluster_concepts(
  keys: Iterable[str], twins: Iterable[tuple[str, str]]
) -> dict[str, str]:
  """{neutral key: name of its cluster} by union-find over twin pairs."""
  parent = {neutral(key): neutral(key) for key in keys}

  def root(key: str) -> str:
    while parent[key] != key:
      parent[key] = parent[parent[key]]
      key = parent[key]
    return key

  for left, right in twins:
    a, b = sorted((root(neutral(left)), root(neutral(right))))
    parent[b] = a
  return {key: root(key) for key in parent}


def near_twins(
  keys: Sequence[str], thumbs_ND: np.ndarray, threshold: int
) -> list[tuple[str, str]]:
  """Pairs of different concepts in one style that look almost the same.

  Args:
    keys: N keys.
    thumbs_ND: integer perceptual hashes (render.thumbnail).
    threshold: pairs count below this squared distance.
  """
  # float64 holds these integers exactly, so the comparison is exact too.
  thumbs_ND = np.asarray(thumbs_ND, np.float64)
  norms_N = (thumbs_ND**2).sum(1)
  pairs = []
  for start in range(0, len(keys), 512):
    rows = slice(start, start + 512)
    distance = norms_N[rows, None] + norms_N - 2 * thumbs_ND[rows] @ thumbs_ND.T
    for i, j in zip(*np.nonzero(distance < threshold), strict=True):
      left, right = keys[start + i], keys[j]
      if start + i < j and neutral(left) != neutral(right):
        pairs.append((left, right))
  return pairs


def assign_splits(
  items: Sequence[SplitItem], twins: Iterable[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
  """('train' | 'heldout', reason) of every item, in order."""
  clusters = cluster_concepts((item.key for item in items), twins)
  lost_clusters, lost_styles = _lost_concepts(items, clusters)
  lost_tones, lost_genders = _lost_tones(items), _lost_genders(items)
  lost_colours = _lost_colours(items)

  def reason(item: SplitItem) -> str:
    role, concept = neutral(item.key), _gesture(item.key)
    cluster = clusters[role]
    style = "openmoji" if item.style == "line art" else item.style
    if cluster in lost_clusters:
      return "unseen concept"
    if lost_styles.get(cluster) == style:
      return "style x concept"
    if lost_tones.get(concept) in tones_of(item.key):
      return "skin tone x gesture"
    if role in lost_genders and lost_genders[role] == gender_of(item.key):
      return "gender x role"
    if _colour_pair(item) in lost_colours:
      return "colour x object"
    return ""

  reasons = [reason(item) for item in items]
  return [("heldout" if why else "train", why) for why in reasons]


def _lost_concepts(
  items: Sequence[SplitItem], clusters: Mapping[str, str]
) -> tuple[set[str], dict[str, str]]:
  """Clusters that are unseen; {cluster: the style it is not seen in}."""
  sizes = Counter(clusters.values())
  small = {c for c, n in sizes.items() if n <= MAX_HELDOUT_CLUSTER}
  styles = defaultdict(set)
  for item in items:
    if item.style in COLOUR_STYLES:
      styles[clusters[neutral(item.key)]].add(item.style)
  unseen = {c for c in small if share("unseen", c) < UNSEEN_SHARE}
  lost_styles = {
    cluster: _lowest(have, "which style", cluster)[0]
    for cluster, have in styles.items()
    if cluster in small
    and len(have) >= MIN_STYLES
    and share("style", cluster) < STYLE_SHARE
  }
  return unseen, lost_styles


def _gesture(key: str) -> str:
  """What a skin tone is paired with; both directions are one gesture."""
  return undirected(untoned(key))


def _lost_tones(items: Sequence[SplitItem]) -> dict[str, str]:
  """{concept: the tone it is not seen in}."""
  tones = defaultdict(set)
  for item in items:
    if len(tones_of(item.key)) == 1 and item.key != untoned(item.key):
      tones[_gesture(item.key)].update(tones_of(item.key))
  return {
    concept: _lowest(have, "which tone", concept)[0]
    for concept, have in tones.items()
    if len(have) == len(TONES) and share("tone", concept) < TONE_SHARE
  }


def _lost_genders(items: Sequence[SplitItem]) -> dict[str, str]:
  """{role: the gender it is not seen in}."""
  genders = defaultdict(set)
  for item in items:
    genders[neutral(item.key)].add(gender_of(item.key))
  return {
    role: _lowest(("man", "woman"), "which gender", role)[0]
    for role, have in genders.items()
    if {"man", "woman"} <= have and share("gender", role) < GENDER_SHARE
  }


def _lost_colours(items: Sequence[SplitItem]) -> set[tuple[str, str]]:
  """The pairs (colour, object) that are not seen."""
  colours = defaultdict(set)
  for item in items:
    pair = _colour_pair(item)
    if pair:
      colours[pair[1]].add(pair[0])
  return {
    (colour, thing)
    for thing, have in colours.items()
    if len(have) >= MIN_COLOURS
    for colour in _lowest(have, "colour", thing)[
      : max(1, len(have) // COLOURS_PER_HELDOUT)
    ]
  }


def _colour_pair(item: SplitItem) -> tuple[str, str] | None:
  """(colour, object); None in line art, which has no colour."""
  return None if item.style == "line art" else colour_object(item.name)
