"""The first pictures of every row of a table, one row below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SHEETS, PICTURE = "sheets", "samples.png"
_LABEL = 230  # pixels beside the pictures
_GAP = 6
_PAPER, _INK = (255, 255, 255), (25, 25, 25)


def sheet_path(out: Path, arm: str, draw: str, seed: int | str) -> Path:
  """Where the first pictures of a run lie."""
  return out / SHEETS / f"{arm}-{draw}-{seed}.png"


def write_samples(
  tables: Sequence[Mapping], out: Path, seed: int | str
) -> Path | None:
  """OUT/samples.png of the rows whose pictures are there; None without any.

  All rows show the same captions, of the same seed.
  """
  rows = [
    (title, sheet_path(out, arm, draw, seed))
    for table in tables
    for title, arm, draw in table["rows"]
  ]
  found = [(title, Image.open(path)) for title, path in rows if path.is_file()]
  if not found:
    return None
  width, height = found[0][1].size
  picture = Image.new(
    "RGB", (_LABEL + width, (height + _GAP) * len(found)), _PAPER
  )
  canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
  for i, (title, sheet) in enumerate(found):
    y = i * (height + _GAP)
    canvas.text((4, y + height // 2 - 8), title, fill=_INK, font=font)
    picture.paste(sheet, (_LABEL, y))
  picture.save(out / PICTURE)
  return out / PICTURE
