"""WebDataset tars: members of one key are one example.

A member's key is its path up to the first dot of its file name: `a/0001.jpg`,
`a/0001.txt` and `a/0001.json` belong together. The picture is the member with a
suffix of pictures, the captions are in .txt or .json, as in a folder, a class
in .cls. Where each member lies is read once, from the headers alone; pictures
are then read in any order.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NamedTuple

from star_jax.data.listing import (
  CAPTION_SUFFIXES,
  IMAGE_SUFFIXES,
  class_name,
  file_labels,
  find_files,
  parse_captions,
)

CLASS_SUFFIX = ".cls"


class _Member(NamedTuple):
  """Bytes of a tar: the file in it, where it begins and how long it is."""

  name: str
  offset: int
  size: int


class _Group(NamedTuple):
  """The members of one key, by suffix, in the tar of some number."""

  tar: int
  key: str
  members: dict[str, _Member]


class WebDatasetListing:
  """See `listing.Listing`; a picture's name is that of its tar and its key.

  Args:
    path: a .tar, a folder of them, or a pattern.
    caption: field of the .json members.
    classes: the caption of a picture is its .cls member, a name or a number.

  Raises:
    ValueError: no such files, no pictures in them, or a tar that is cut off or
      compressed, by name.
  """

  kind = "webdataset"

  def __init__(
    self, path: str, *, caption: str = "caption", classes: bool = False
  ):
    self._files = find_files(path, ".tar", self.kind)
    self._labels = file_labels([file.with_suffix("") for file in self._files])
    self._field, self._classes = caption, classes
    self.where = str(path)
    self._groups = [
      group
      for tar, file in enumerate(self._files)
      for group in _groups(tar, file)
    ]
    if not self._groups:
      raise ValueError(
        f"{self.where} holds no pictures ({', '.join(IMAGE_SUFFIXES)})."
      )

  def __len__(self) -> int:
    return len(self._groups)

  def name(self, number: int) -> str:
    group = self._groups[number]
    return f"{self._labels[group.tar]}/{group.key}"

  def picture(self, number: int) -> bytes:
    group = self._groups[number]
    return self._read(group, _picture_suffix(group.members))

  def captions(self, number: int) -> tuple[str, ...]:
    group = self._groups[number]
    known = (CLASS_SUFFIX,) if self._classes else CAPTION_SUFFIXES
    for suffix in known:
      if suffix not in group.members:
        continue
      name, data = group.members[suffix].name, self._read(group, suffix)
      if self._classes:
        return class_name(data.decode("utf-8", "replace"), name)
      return parse_captions(data, name, self._field)
    raise ValueError(f"no member {group.key}{' or '.join(known)}")

  def _read(self, group: _Group, suffix: str) -> bytes:
    member = group.members[suffix]
    # Opened anew each time: threads share no position, processes no file.
    with open(self._files[group.tar], "rb") as file:
      file.seek(member.offset)
      data = file.read(member.size)
    if len(data) < member.size:
      raise ValueError(f"{self._files[group.tar]} ends within {member.name}")
    return data


def _groups(tar: int, path: Path) -> list[_Group]:
  """Those of one tar that have a picture, in its order."""
  groups: dict[str, _Group] = {}
  for member in _members(path):
    folder, slash, name = member.name.rpartition("/")
    stem, dot, suffix = name.partition(".")
    if not stem or not dot:
      continue
    key = folder + slash + stem
    group = groups.setdefault(key, _Group(tar, key, {}))
    group.members[f".{suffix.lower()}"] = member
  return [g for g in groups.values() if _picture_suffix(g.members)]


def _picture_suffix(members: dict[str, _Member]) -> str | None:
  return next((s for s in IMAGE_SUFFIXES if s in members), None)


def _members(path: Path) -> list[_Member]:
  """The files in a tar.

  Raises:
    ValueError: it is cut off, compressed or no tar.
  """
  try:
    with tarfile.open(path, "r:") as tar:
      members = [
        _Member(info.name.removeprefix("./"), info.offset_data, info.size)
        for info in tar
        if info.isreg() and not info.sparse
      ]
      end = tar.offset
  except tarfile.TarError as error:
    raise ValueError(
      f"{path} is cut off or no uncompressed tar ({error})."
    ) from None
  # tarfile takes the end of a file for the end of the archive, which is a
  # block of zeros.
  with open(path, "rb") as file:
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
  if len(block) < tarfile.BLOCKSIZE or any(block):
    named = f"after {members[-1].name}" if members else "at its beginning"
    raise ValueError(f"{path} is cut off or damaged {named}.")
  return members
