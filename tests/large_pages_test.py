"""The restart keeps arguments and process id, and happens once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from star_jax.large_pages import LARGE_PAGES, TUNABLES

SCRIPT = """
import os, sys
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], flush=True)
from star_jax.large_pages import restart_with_large_pages
restart_with_large_pages()
print("end")
"""


def _run(**environment) -> list[str]:
  inherited = {k: v for k, v in os.environ.items() if k != TUNABLES}
  out = subprocess.run(
    [sys.executable, "-c", SCRIPT, "--seed=3", "a b"],
    env=inherited | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return out.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_restarts_once_with_the_same_arguments_and_id():
  first, second, end = _run()
  pid, setting, *arguments = first.split(" ")
  assert setting == "None"
  assert second.split(" ") == [pid, LARGE_PAGES, *arguments]
  assert arguments == ["--seed=3", "a", "b"]
  assert end == "end"


def test_leaves_a_setting_of_the_user_alone():
  (first, end) = _run(**{TUNABLES: ""})
  assert first.endswith(" --seed=3 a b")
  assert end == "end"
