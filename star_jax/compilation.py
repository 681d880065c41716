"""Compiled programs on disk, so that a second start does not compile."""

from __future__ import annotations

import os
from pathlib import Path

import jax

CACHE_ENV = "STAR_CACHE_DIR"
DEFAULT_FOLDER = "~/.cache/star_jax"
# Small programs too: there are dozens of them before the first picture.
_MIN_COMPILE_SECONDS = 0.0


def use_compilation_cache() -> None:
  """Switches jax's persistent cache on, in ~/.cache/star_jax.

  STAR_CACHE_DIR names another folder, an empty value switches the cache off.
  A jax_compilation_cache_dir that is set already is left alone.
  """
  folder = os.environ.get(CACHE_ENV, DEFAULT_FOLDER)
  if not folder or jax.config.jax_compilation_cache_dir:
    return
  path = Path(folder).expanduser() / "compiled"
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS
  )
