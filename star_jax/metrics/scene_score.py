"""How well the objects found in a picture agree with a caption's facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from star_jax.data.scene_text import Facts, Thing, read_caption
from star_jax.metrics.progress import Progress
from star_jax.metrics.scene_match import Detection, SceneMatcher
from star_jax.metrics.wilson import Share

# A relation needs centres this far apart along its axis, in mean sizes; and
# farther along it than across.
ALONG = 0.4


@dataclasses.dataclass(frozen=True)
class SceneScore:
  """One bool for each thing the caption states.

  objects: is an object of this kind there. colours: is it there and in its
  colour; only for objects whose colour is named. relations: are both objects
  there, standing so. count: as many objects as stated, no more, no less.
  """

  objects: tuple[bool, ...]
  colours: tuple[bool, ...]
  relations: tuple[bool, ...]
  count: bool

  @property
  def everything(self) -> bool:
    """Every stated fact is true."""
    return all((*self.objects, *self.colours, *self.relations))


def holds(a: Detection, relation: str, b: Detection) -> bool:
  """Whether a stands left of / right of / above / below b."""
  dx = a.centre[0] - b.centre[0]
  dy = a.centre[1] - b.centre[1]
  along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
  if relation in ("left", "above"):
    along = -along
  size = (a.size + b.size) / 2
  return along >= ALONG * size and along > abs(across)


def score_scene(facts: Facts, found: Sequence[Detection]) -> SceneScore:
  """Compares a caption with what was found.

  Each object of the caption may claim one detection of its kind; of all ways
  to do so the one with the most objects, and then the most other facts, is
  taken (two dogs may be told apart by colour or place).
  """
  if facts.relations:
    claims = _claims(facts.things, found)
  else:  # Nine equal stars can claim nine detections in 9! ways.
    claims = [_colour_claim(facts.things, found)]
  best = max(
    (_score(facts, claim) for claim in claims),
    key=lambda score: sum(score.colours) + sum(score.relations),
  )
  return dataclasses.replace(best, count=len(found) == len(facts.things))


def _claims(things: Sequence[Thing], found: Sequence[Detection]):
  """Every way in which as many things as possible claim a detection.

  Yields:
    A list with the detection of each thing, or None.
  """
  kinds = {t.concept for t in things}
  short = {  # things of a kind that have to go without
    kind: sum(t.concept == kind for t in things)
    - sum(d.entry.concept == kind for d in found)
    for kind in kinds
  }

  def extend(claim: list[int | None]):
    if len(claim) == len(things):
      yield [None if i is None else found[i] for i in claim]
      return
    kind = things[len(claim)].concept
    if short[kind] > 0:
      short[kind] -= 1
      yield from extend([*claim, None])
      short[kind] += 1
    for i, d in enumerate(found):
      if d.entry.concept == kind and i not in claim:
        yield from extend([*claim, i])

  return extend([])


def _colour_claim(things: Sequence[Thing], found: Sequence[Detection]):
  """The claim with the most objects, and of these with the most colours."""
  # A colour is worth less than an object, however many there are.
  value = np.array(
    [
      (t.concept == d.entry.concept)
      * (1 + len(things) + (t.colour == d.entry.colour))
      for t in things
      for d in found
    ]
  ).reshape(len(things), len(found))
  claim: list[Detection | None] = [None] * len(things)
  for i, j in zip(*linear_sum_assignment(value, maximize=True)):
    if value[i, j]:
      claim[i] = found[j]
  return claim


def _score(facts: Facts, claim: Sequence[Detection | None]) -> SceneScore:
  pairs = list(zip(facts.things, claim))
  return SceneScore(
    objects=tuple(d is not None for _, d in pairs),
    colours=tuple(
      d is not None and d.entry.colour == t.colour
      for t, d in pairs
      if t.colour is not None
    ),
    relations=tuple(
      claim[i] is not None
      and claim[j] is not None
      and holds(claim[i], relation, claim[j])
      for i, relation, j in facts.relations
    ),
    count=False,
  )


def shares(scores: Sequence[SceneScore]) -> dict[str, Share]:
  """Accuracies over all stated facts of all scenes, with their intervals."""
  return {
    "objects": Share.of([x for s in scores for x in s.objects]),
    "colours": Share.of([x for s in scores for x in s.colours]),
    "relations": Share.of([x for s in scores for x in s.relations]),
    "count": Share.of([s.count for s in scores]),
    "everything": Share.of([s.everything for s in scores]),
  }


def score_pictures(
  matcher: SceneMatcher,
  image: Sequence[np.ndarray],
  captions: Sequence[str],
  label: str,
) -> list[SceneScore]:
  """Scores of pictures uint8 [H, W, 3] under the captions they were drawn for.

  Args:
    label: of the progress line.
  """
  progress, scores = Progress(label), []
  for i, (picture, caption) in enumerate(zip(image, captions)):
    facts = read_caption(caption)
    scores.append(score_scene(facts, matcher.find(picture, facts.style)))
    progress(i + 1, len(image))
  return scores


def derangement(n: int, seed: int) -> np.ndarray:
  """A shuffle of range(n) that leaves nothing in its place (n >= 2).

  Raises:
    ValueError: n < 2.
  """
  if n < 2:
    raise ValueError(f"A shuffled control needs at least 2 scenes, got {n}.")
  # A random cycle: everybody gets the next one's caption.
  order = np.random.default_rng((seed, 3)).permutation(n)
  out = np.empty(n, np.int64)
  out[order] = np.roll(order, -1)
  return out
