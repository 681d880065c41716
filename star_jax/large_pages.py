"""Large memory pages for long CPU runs.

XLA hands the temporaries of a step back to the system and takes fresh pages
in the next one. With 4 KiB pages that is a quarter of a million page faults
per gigabyte; glibc can ask for 2 MiB pages instead, but reads the wish only
when a process starts. Measured on two cores, training step of the shipped
model at batch 16 (0.98 GB of temporaries): 1.59 -> 1.22 CPU seconds.
"""

from __future__ import annotations

import os
import sys

TUNABLES = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb=1"


def restart_with_large_pages() -> None:
  """Starts this program again with large pages, before anything is loaded.

  Does nothing off Linux and where GLIBC_TUNABLES is set, to whatever value.
  The process keeps its id, so signals sent to it arrive.
  """
  if sys.platform != "linux" or TUNABLES in os.environ:
    return
  os.environ[TUNABLES] = LARGE_PAGES
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
