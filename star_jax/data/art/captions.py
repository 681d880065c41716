"""Captions of single pictures: what a person would type.

All captions are lower-case ASCII. `canonical_caption` is the one form used
for measuring ("a red heart, twemoji style"); `icon_caption` draws a variant
for training: with or without article and style, style first, other word
order, keywords.
"""

from __future__ import annotations

import numpy as np

from star_jax.data.art.phrases import noun_phrase
from star_jax.data.art.splits import COLOURS, colour_object
from star_jax.data.art.store import ArtRecord

# Shares of the variants. Most captions stay plain, as most prompts will be.
_REORDERED = 0.12
_KEYWORDS = 0.12
_ARTICLE = 0.6
_STYLE = 0.65
_STYLE_IS_LAST = 0.7

_STYLE_FIRST = ("{style} style: {text}", "{style} {bare}", "{style}, {text}")
_STYLE_LAST = ("{text}, {style} style", "{text} in {style} style")
# Words that may stand behind the noun: "heart, red".
_MOVABLE = frozenset(COLOURS) | {
  *("large", "small", "big", "open", "closed", "broken", "wrapped"),
  *("grinning", "smiling", "crying", "angry", "sleeping", "waving"),
  *("beating", "sparkling", "growing", "crossed", "raised", "rainbow"),
  *("crescent", "full", "new", "polar", "tropical", "racing", "police"),
}
# The sources add colours of old drawings, directions and genders as keywords.
_UNSAFE = frozenset(word for colour in COLOURS for word in colour.split()) | {
  *("left", "right", "up", "down", "male", "female"),
  *("man", "woman", "men", "women", "boy", "girl"),
}


def canonical_caption(record: ArtRecord) -> str:
  """'a red heart, twemoji style': article, name, style."""
  return f"{noun_phrase(record)}, {record.style} style"


def icon_caption(record: ArtRecord, rng: np.random.Generator) -> str:
  """One of the ways to say what the picture shows, drawn from `rng`."""
  bare = noun_phrase(record, article=False)
  text = noun_phrase(record) if rng.random() < _ARTICLE else bare
  kind = rng.random()
  if kind < _REORDERED:
    text = _reordered(bare, rng)
  elif kind < _REORDERED + _KEYWORDS:
    text = _with_keywords(record, bare, rng)
  if rng.random() >= _STYLE:
    return text
  forms = _STYLE_LAST if rng.random() < _STYLE_IS_LAST else _STYLE_FIRST
  form = forms[rng.integers(len(forms))]
  return form.format(style=record.style, text=text, bare=bare)


def _reordered(bare: str, rng: np.random.Generator) -> str:
  """'heart, red'; 'medium skin tone, waving hand'; 'france flag'."""
  coin = rng.random() < 0.5
  if bare.startswith("flag of "):
    country = bare.removeprefix("flag of ").removeprefix("the ")
    return f"{country} flag" if coin else f"flag, {country}"
  head, linked, rest = bare.partition(" with ")
  if linked and "skin tone" in rest:
    return f"{head}, {rest}" if coin else f"{rest}, {head}"
  words = colour_object(head) or tuple(head.split(" ", 1))
  if len(words) == 2 and words[0] in _MOVABLE:
    return f"{words[1]}{linked}{rest}, {words[0]}"
  return bare


def _with_keywords(
  record: ArtRecord, bare: str, rng: np.random.Generator
) -> str:
  """'red heart, love, valentines': the name and up to three keywords."""
  # The first ones are the best; after them come words of other drawings.
  words = [
    word
    for word in record.keywords[:6]
    if word not in bare and not _UNSAFE.intersection(word.split())
  ]
  count = min(len(words), int(rng.integers(1, 4)))
  chosen = [words[i] for i in rng.permutation(len(words))[:count]]
  return ", ".join([bare, *chosen])
