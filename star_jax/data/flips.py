"""Which pictures may be mirrored: those whose caption stays true.

A mirrored picture of "a car left of a dog" has the car on the right, and the
model would learn that "left" means either side. The caption cannot be mirrored
along with it in general ("turning left", "the right answer", another
language), so that such a picture is left as it is. Writing, digits and arrows
come out wrong in a mirror too, and captions do not always tell of them: this is
why nothing is flipped unless it is asked for.
"""

from __future__ import annotations

import re

import numpy as np

# Words that a mirror makes untrue, or that tell of what it makes unreadable.
SPATIAL_WORDS = frozenset(
  (
    *("left", "leftmost", "lefthand", "leftward", "leftwards"),
    *("right", "rightmost", "righthand", "rightward", "rightwards"),
    *("clockwise", "counterclockwise", "anticlockwise", "clock"),
    *("east", "west", "eastern", "western", "mirrored", "arrow", "arrows"),
    *("text", "letter", "letters", "word", "words", "writing", "written"),
    *("reading", "reads", "saying", "says", "sign", "logo"),
    *("number", "numbers", "digit", "digits"),
  )
)


def has_spatial_words(caption: str) -> bool:
  """Whether a caption has one of `SPATIAL_WORDS`, as a word of its own."""
  words = re.findall(r"[^\W\d_]+", caption.lower())
  return not SPATIAL_WORDS.isdisjoint(words)


def mirrored(image: np.ndarray) -> np.ndarray:
  """[H, W, 3] with its left and right sides exchanged."""
  return np.ascontiguousarray(image[:, ::-1])
