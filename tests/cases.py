"""Cases of parametrized tests."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def long_but(
  quick: Iterable[int] | int, cases: Sequence[Any], ids: Sequence[str] = ()
) -> list:
  """The same cases, marked long apart from some.

  Args:
    quick: places of those that always run; a number: so many of the first.
    cases: values, tuples of values or `pytest.param`.
    ids: names of cases that are not `pytest.param`.
  """
  kept = range(quick) if isinstance(quick, int) else set(quick)
  found = []
  for place, case in enumerate(cases):
    marks = [] if place in kept else [pytest.mark.long]
    if isinstance(case, type(pytest.param())):
      name, values = case.id, case.values
      marks += case.marks
    else:
      name = ids[place] if ids else None
      values = case if isinstance(case, tuple) else (case,)
    found.append(pytest.param(*values, id=name, marks=marks))
  return found
