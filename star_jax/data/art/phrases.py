"""The noun phrase of a picture: its name with the article English wants.

'a red heart', 'an hourglass', 'skis', 'the flag of the netherlands', 'a
waving hand with medium skin tone', 'a family of a man, a woman and two girls'.
"""

from __future__ import annotations

import re
from collections import Counter

from star_jax.data.art.names import PEOPLE_WORDS, fold
from star_jax.data.art.splits import colour_object
from star_jax.data.art.store import ArtRecord


def _lines(text: str) -> frozenset[str]:
  """The phrases of a comma-separated list over several lines."""
  return frozenset(" ".join(text.split()).split(", "))


# No article though not a plural in s: stuff, sports, zodiac signs, persons
# and places with a name, signs that are words, pairs joined by "and".
_BARE = _lines("""
aquarius, aries, cancer, capricorn, gemini, leo, libra, ophiuchus, pisces,
sagittarius, scorpio, taurus, virgo, mrs. claus, mx claus, santa claus,
mount fuji, tokyo tower, bacon, bread, baguette bread, broccoli, butter,
canned food, coral, cooked rice, curry rice, garlic, ginger root, popcorn,
salt, sake, spaghetti, sushi, oden, dango, ice, ice cream, soft ice cream,
shaved ice, pouring liquid, wood, fire, fog, foggy, dna, yarn, thread, soap,
luggage, nail polish, cooking, camping, badminton, bowling, field hockey,
ice hockey, lacrosse, ping pong, tennis, horse racing, breast-feeding,
baggage claim, left luggage, passport control, customs, construction,
potable water, non-potable water, high voltage, prohibited, radioactive,
biohazard, copyright, registered, infinity, plus, minus, multiply, divide,
wireless, information, vibration mode, mobile phone off, locked,
locked with key, locked with pen, unlocked, dizzy, dashing away, zzz, om,
yin yang, currency exchange, money with wings, palms up together,
flower playing cards, hot springs, star and crescent, hammer and pick,
hammer and wrench, nut and bolt, fork and knife, fork and knife with plate,
busts in silhouette, sunrise over mountains, night with stars,
love-you gesture, leafy green, mate, woman and man holding hands,
input latin letters, input latin lowercase, input latin uppercase,
input numbers, input symbols, performing arts, rolling on the floor laughing
""")
# An article though the head ends in s, or is hidden behind its link word.
_SINGULAR = _lines("""
thumbs up, thumbs down, rhinoceros, fleur-de-lis, bow and arrow,
skull and crossbones
""")
_THE = _lines("""
sun, milky way, statue of liberty, kaaba, sun behind cloud, sun with face,
sun behind large cloud, sun behind small cloud, sun behind rain cloud
""")
_PLURAL_HEADS = frozenset(("people", "men", "women", "children"))
_PERSON_HEADS = frozenset(("man", "woman", "person", "face"))
# The head noun is the word before the first of these.
_AFTER_HEAD = re.compile(
  r" (?:of|between|with|without|in|on|at|and|behind|over|to|from|for|holding"
  r"|facing|wearing|showing|pointing|not|but|up|down|by) "
)
_THE_COUNTRIES = re.compile(
  r"^(?:bahamas|comoros|gambia|maldives|.*netherlands|philippines|seychelles"
  r"|united .*|u\.s\. .*|european union|isle of man|.* islands|.* territor.*"
  r"|.* republic|.* lands)$"
)
# Line art has no colour: only what is filled may be called black there.
_OUTLINED = frozenset(("black cat", "black small square"))


def noun_phrase(record: ArtRecord, *, article: bool = True) -> str:
  """What the picture shows, lower-case ASCII.

  Line art is drawn without colour, so a colour is not named there.
  """
  head, _, rest = fold(record.name).partition(": ")
  head, rest = head.replace("&", "and"), rest.replace("&", "and")
  if head == "flag":
    the = "the " if _THE_COUNTRIES.match(rest) else ""
    return f"{'the ' if article else ''}flag of {the}{rest}"
  if head == "keycap":
    return _with_article(f"keycap {rest}", article)
  if record.style == "line art":
    head = colourless(head)
  parts = rest.split(", ") if rest else []
  people = [part for part in parts if part in PEOPLE_WORDS]
  traits = [part for part in parts if part not in PEOPLE_WORDS]
  if "bald" in traits:
    traits.remove("bald")
    head = f"bald {head}"
  if people:
    noun, linked, heart = head.partition(" with ")
    link = "between" if noun == "kiss" else "of"
    head = f"{noun} {link} {_people_phrase(people)}{linked}{heart}"
  phrase = _with_article(head, article)
  if traits:
    traits = ["a beard" if t == "beard" else t for t in traits]
    # A second "with" would read as belonging to what the first one names.
    link = ", " if " with " in phrase else " with "
    phrase += link + " and ".join(traits)
  return phrase


def colourless(name: str) -> str:
  """The name in a style without colour: 'red heart' -> 'heart'."""
  pair = colour_object(name)
  if pair is None:
    return name
  drawn = pair[0] in ("black", "white") and name not in _OUTLINED
  return name if drawn else pair[1]


def _people_phrase(people: list[str]) -> str:
  """'a man, a woman and two girls'."""
  said = [
    f"{indefinite_article(p)} {p}" if n == 1 else f"two {PEOPLE_WORDS[p]}"
    for p, n in Counter(people).items()
  ]
  return " and ".join(", ".join(said).rsplit(", ", 1))


def _with_article(name: str, article: bool) -> str:
  if not article:
    return name
  if name in _THE:
    return f"the {name}"
  if _takes_article(name):
    return f"{indefinite_article(name)} {name}"
  return name


def indefinite_article(name: str) -> str:
  """'a' or 'an', by sound: an hourglass, a unicorn, an x-ray, a one-piece."""
  if re.match(r"(?:uni|eur|one[- ']|once|u[bst]e)", name):
    return "a"
  if re.match(r"(?:[aeiou]|hour|honest|heir|x-|sos |ng )", name):
    return "an"
  return "a"


def _takes_article(name: str) -> bool:
  if name in _SINGULAR:
    return True
  if name in _BARE or name.startswith("no "):
    return False
  if re.search(r"o'clock$|-thirty$", name):
    return False
  first = name.split()[0]
  if first in _PLURAL_HEADS:
    return False
  if first in _PERSON_HEADS:
    return True
  head = _AFTER_HEAD.split(f"{name} ", maxsplit=1)[0].split()[-1]
  plural = head in _PLURAL_HEADS or (
    head.endswith("s") and not head.endswith(("ss", "us", "'s"))
  )
  return not plural
