"""Reads a folder of golden tensors and offers its cases for parametrisation.

The folder is STAR_GOLDEN_DIR (default `../shared/golden` beside the
repository). Tests select cases by *kind* and read every configuration from the
case, so any folder with the same schema can be run.
"""

import functools
import json
import os
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GOLDEN_DIR = pathlib.Path(
  os.environ.get("STAR_GOLDEN_DIR") or REPOSITORY.parent / "shared" / "golden"
)


def cases_of(*kinds):
  """`pytest.param(name, case)` of every case of these kinds.

  Without the folder it is one parameter that skips, with the reason.
  """
  path = GOLDEN_DIR / "cases.json"
  if not path.exists():
    reason = f"no golden tensors: {path} does not exist (set STAR_GOLDEN_DIR)"
    skip = pytest.mark.skip(reason=reason)
    return [pytest.param("absent", {}, marks=skip)]
  return [
    pytest.param(name, case, id=name)
    for name, case in _read_cases(path).items()
    if case["kind"] in kinds
  ]


@functools.cache
def _read_cases(path):
  return json.loads(path.read_text())["cases"]


def load(folder, filename):
  """Arrays of one safetensors file by name; half precision as float32."""
  return {
    name: value.astype(np.float32) if value.dtype == np.float16 else value
    for name, value in load_file(pathlib.Path(folder) / filename).items()
  }
