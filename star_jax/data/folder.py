"""A folder of pictures with captions: `x.png` beside `x.txt` or `x.json`.

A .txt file holds one caption a line (several lines: one is drawn at random).
A .json file holds a string, a list of strings, or an object with "caption" or
"captions".
"""

from __future__ import annotations

from pathlib import Path

from star_jax.data.listing import (
  CAPTION_SUFFIXES,
  IMAGE_SUFFIXES,
  parse_captions,
)


class FolderListing:
  """See `listing.Listing`; a picture's name is its path in the folder, with /.

  Args:
    path: the folder, searched recursively.
    classes: the caption of a picture is the name of the folder that it lies
      in; there are no caption files.
    captions: False: pictures alone, for a tokenizer; captions are empty.

  Raises:
    ValueError: no such folder, or no pictures.
  """

  kind = "folder"

  def __init__(
    self, path: str | Path, *, classes: bool = False, captions: bool = True
  ):
    if not str(path):
      raise ValueError(
        "No folder of pictures was given; set config.data_options.folder.path."
      )
    self._folder, self._classes = Path(path), classes
    self._captioned = captions
    self.where = str(path)
    if not self._folder.is_dir():
      raise ValueError(f"There is no folder {self.where!r}.")
    self._names = [
      file.relative_to(self._folder).as_posix()
      for file in sorted(self._folder.rglob("*"))
      if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    if not self._names:
      raise ValueError(
        f"{self.where} holds no pictures ({', '.join(IMAGE_SUFFIXES)})."
      )

  def __len__(self) -> int:
    return len(self._names)

  def name(self, number: int) -> str:
    return self._names[number]

  def picture(self, number: int) -> Path:
    return self._folder / self._names[number]

  def captions(self, number: int) -> tuple[str, ...]:
    path = self.picture(number)
    if not self._captioned:
      return ("",)
    if not self._classes:
      return read_captions(_caption_file(path))
    if path.parent == self._folder:
      raise ValueError("it lies in no folder that names its class")
    return (path.parent.name,)


def read_captions(path: Path) -> tuple[str, ...]:
  """The captions in a .txt or .json file; see `listing.parse_captions`."""
  return parse_captions(path.read_bytes(), path.name)


def _caption_file(path: Path) -> Path:
  for suffix in CAPTION_SUFFIXES:
    if (beside := path.with_suffix(suffix)).is_file():
      return beside
  raise ValueError(f"no {path.stem}.txt or {path.stem}.json beside it")
