"""Renders the emoji art sets to disk: once, resumable, with checksums.

python launch/prepare_data.py                      # all sets, 128 px
python launch/prepare_data.py --sets=twemoji,openmoji
python launch/prepare_data.py --npm_dir=downloads  # .tgz fetched elsewhere
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags

from star_jax.data.art.prepare import MAX_CORRUPT_SHARE, prepare_art
from star_jax.data.art.sources import STYLES
from star_jax.data.art.store import default_art_dir

_OUT = flags.DEFINE_string("out", None, "Folder; default data_cache/art<size>.")
_SETS = flags.DEFINE_list("sets", list(STYLES), "Art sets to include.")
_SIZE = flags.DEFINE_integer("size", 128, "Pixels a side, a multiple of 16.")
_NPM_DIR = flags.DEFINE_string("npm_dir", None, "Folder with npm .tgz files.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Rendering processes.", 1)
_MAX_CORRUPT = flags.DEFINE_float(
  "max_corrupt_share", MAX_CORRUPT_SHARE, "Drawings that may fail.", 0.0, 1.0
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
  try:
    summary = prepare_art(
      _OUT.value or default_art_dir(_SIZE.value),
      _SETS.value,
      _SIZE.value,
      npm_dir=_NPM_DIR.value,
      workers=_WORKERS.value,
      max_corrupt_share=_MAX_CORRUPT.value,
    )
  except (ValueError, OSError) as error:
    raise SystemExit(f"prepare_data: {error}") from None
  print(f"\n{'style':10} {'train':>6} {'held out':>8} {'duplicates':>10}")
  for style in _SETS.value:
    train, held = (summary.counts[style, s] for s in ("train", "heldout"))
    print(f"{style:10} {train:6} {held:8} {summary.duplicates[style]:10}")
  print("\nWhy held out:")
  for reason, count in summary.reasons.most_common():
    print(f"  {reason:20} {count:6} ({count / summary.total:.1%})")
  print(f"\nSkipped drawings: {len(summary.skipped)}")
  for line in summary.skipped:
    print(f"  {line}")
  print(
    f"{summary.total} pictures, {summary.num_bytes / 2**20:.0f} MiB, in"
    f" {summary.folder}"
  )


if __name__ == "__main__":
  app.run(main)
