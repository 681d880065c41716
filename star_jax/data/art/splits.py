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
first two decisions are made per cluster.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from star_jax.data.art.names import gender_of, neutral, tones_of, untoned
from star_jax.data.art.sources import COLOUR_STYLES

UNSEEN_SHARE = 0.05
STYLE_SHARE = 0.05
TONE_SHARE = 0.20
GENDER_SHARE = 0.10
COLOURS_PER_HELDOUT = 8
MIN_STYLES = 4
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
  styles = defaultdict(set)  # cluster -> colour styles that draw it
  tones = defaultdict(set)  # concept -> tone combinations
  genders = defaultdict(set)  # role -> genders
  colours = defaultdict(set)  # object -> colours
  for item in items:
    if item.style in COLOUR_STYLES:
      styles[clusters[neutral(item.key)]].add(item.style)
    tones[untoned(item.key)].add("-".join(tones_of(item.key)))
    genders[neutral(item.key)].add(gender_of(item.key))
    pair = _colour_pair(item)
    if pair:
      colours[pair[1]].add(pair[0])
  heldout_style = {
    cluster: _lowest(have, "which style", cluster)[0]
    for cluster, have in styles.items()
    if len(have) >= MIN_STYLES and share("style", cluster) < STYLE_SHARE
  }
  heldout_tone = {
    concept: _lowest(_single(have), "which tone", concept)[0]
    for concept, have in tones.items()
    if len(_single(have)) == 5 and share("tone", concept) < TONE_SHARE
  }
  heldout_gender = {
    role: _lowest(("man", "woman"), "which gender", role)[0]
    for role, have in genders.items()
    if {"man", "woman"} <= have and share("gender", role) < GENDER_SHARE
  }
  heldout_colours = {
    thing: _lowest(have, "colour", thing)[
      : max(1, len(have) // COLOURS_PER_HELDOUT)
    ]
    for thing, have in colours.items()
    if len(have) >= 3
  }

  def decide(item: SplitItem) -> str:
    role, concept = neutral(item.key), untoned(item.key)
    cluster = clusters[role]
    style = "openmoji" if item.style == "line art" else item.style
    pair = _colour_pair(item)
    if share("unseen", cluster) < UNSEEN_SHARE:
      return "unseen concept"
    if heldout_style.get(cluster) == style:
      return "style x concept"
    if heldout_tone.get(concept, "-") in tones_of(item.key):
      return "skin tone x gesture"
    if heldout_gender.get(role, "-") == gender_of(item.key):
      return "gender x role"
    if pair and pair[0] in heldout_colours.get(pair[1], ()):
      return "colour x object"
    return ""

  reasons = [decide(item) for item in items]
  return [("heldout" if reason else "train", reason) for reason in reasons]


def _colour_pair(item: SplitItem) -> tuple[str, str] | None:
  """(colour, object); None in line art, which has no colour."""
  return None if item.style == "line art" else colour_object(item.name)


def _single(tones: Iterable[str]) -> list[str]:
  """The combinations that are one tone."""
  return [tone for tone in tones if tone and "-" not in tone]
