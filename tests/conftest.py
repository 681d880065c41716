"""Settings of all tests: eight CPU devices, exact products, --long.

They are set while pytest collects, before anything starts a jax backend.
"""

import os
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEVICES = 8

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", DEVICES)
# A test that compares numbers states what it compares: no rounding to
# bfloat16 behind its back, on any machine.
jax.config.update("jax_default_matmul_precision", "highest")
# The programs of an earlier run are read back instead of compiled again.
jax.config.update(
  "jax_compilation_cache_dir",
  os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_addoption(parser):
  parser.addoption(
    "--long", action="store_true", help="Also run the tests marked long."
  )


def pytest_collection_modifyitems(config, items):
  if config.getoption("--long"):
    return
  skip = pytest.mark.skip(reason="slow; run it with --long")
  for item in items:
    if "long" in item.keywords:
      item.add_marker(skip)
