"""Settings of all tests: eight CPU devices, exact products, quick compiling,
--long.

They are set while pytest collects, before anything starts a jax backend.
"""

import os
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
DEVICES = 8
# Programs of tests are small and run once or twice: most of the time went into
# compiling them, which takes a third of it with little optimisation and the
# older code generator. With none at all, tests that draw 100,000 samples take
# three times as long. Processes that tests start inherit the flags.
QUICK = (
  "--xla_backend_optimization_level=1",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_use_fusion_emitters=false",
)

given = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*QUICK, *given]))
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
