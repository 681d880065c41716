"""Captioned pictures of one's own, wherever they lie.

A listing says how many pictures there are and gives one by number: its name,
its captions and its bytes. What becomes of them is `PictureSource`'s, the same
for all listings.
"""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any, Protocol

from star_jax.data import transforms

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTION_SUFFIXES = (".txt", ".json")


class Listing(Protocol):
  """Attributes: kind, as in config.data; where, for messages.

  May be sent to other processes.
  """

  kind: str
  where: str

  def __len__(self) -> int: ...

  def name(self, number: int) -> str:
    """What tells it from all others: its id in a token cache."""
    ...

  def captions(self, number: int) -> tuple[str, ...]:
    """At least one; ValueError with the reason if there is none."""
    ...

  def picture(self, number: int) -> Path | bytes:
    """Its file, or what would be in it; ValueError as above."""
    ...


def find_files(path: str, suffix: str, kind: str) -> list[Path]:
  """The files that a user's path means, sorted.

  Args:
    path: a file, a folder (searched recursively) or a pattern as shells take.
    suffix: of the files in a folder.
    kind: of listing, for the message.

  Raises:
    ValueError: no path, or no such files.
  """
  key = f"config.data_options.{kind}.path"
  if not str(path):
    raise ValueError(f"No {suffix} files were given; set {key}.")
  if Path(path).is_dir():
    found = sorted(Path(path).rglob(f"*{suffix}"))
  else:
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))
  files = [file for file in found if file.is_file()]
  if not files:
    raise ValueError(
      f"There are no {suffix} files at {str(path)!r}; {key} is a file, a folder"
      " or a pattern such as 'data/*" + suffix + "'."
    )
  return files


def file_labels(files: list[Path]) -> list[str]:
  """A name for each of several files: the shortest end of its path that no
  other one has."""
  for parts in range(1, 1 + max(len(file.parts) for file in files)):
    labels = ["/".join(file.parts[-parts:]) for file in files]
    if len(set(labels)) == len(labels):
      return labels
  raise ValueError(f"The file {files[0]} was given more than once.")


def parse_captions(
  data: bytes, name: str, field: str = "caption"
) -> tuple[str, ...]:
  """The captions in a .txt or .json file, cleaned up.

  Args:
    data: the file. A .txt holds one caption a line; a .json a string, a list
      of strings, or an object with one of these under `field` or "captions".
    name: of the file.
    field: of the object.

  Raises:
    ValueError: with the reason when there is none to be had.
  """
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"caption is not UTF-8 (byte {error.start} of {name})"
    ) from None
  if not name.lower().endswith(".json"):
    return clean_captions(text.splitlines(), name)
  try:
    value = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{name} is not JSON: {error.msg}") from None
  if isinstance(value, dict):
    value = value.get("captions", value.get(field))
  if not _is_text(value):
    raise ValueError(
      f"{name} holds neither a string, a list of strings nor an object with"
      f' "{field}" or "captions"'
    )
  return clean_captions(value, name)


def clean_captions(value: Any, where: str) -> tuple[str, ...]:
  """A caption or several of them, cleaned up, without empty ones.

  Raises:
    ValueError: with the reason when none is left.
  """
  lines = [value] if isinstance(value, str) else value
  if not _is_text(value):
    raise ValueError(f"{where} holds neither a string nor a list of strings")
  captions = tuple(c for c in map(transforms.clean_caption, lines) if c)
  if not captions:
    raise ValueError(f"{where} holds no caption")
  return captions


def class_name(value: Any, where: str) -> tuple[str, ...]:
  """The name or number of a class, as it is, in place of captions.

  Raises:
    ValueError: it is neither.
  """
  if isinstance(value, bool) or not isinstance(value, (str, int)):
    raise ValueError(f"{where} holds no class")
  text = str(value).strip()
  if not text:
    raise ValueError(f"{where} holds no class")
  return (text,)


def _is_text(value: Any) -> bool:
  """Whether it is a string or a list of strings."""
  lines = [value] if isinstance(value, str) else value
  return isinstance(lines, list) and all(isinstance(x, str) for x in lines)
