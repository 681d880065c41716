"""Class labels as prompts: what a text encoder is for a model of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NULL = ""  # the prompt that means no class at all


class ClassLabels:
  """Turns prompts into classes: "207", or a name where the bundle has names.

  Args:
    num_classes: of the model.
    names: one a class, or None.

  Raises:
    ValueError: another number of names.
  """

  def __init__(self, num_classes: int, names: Sequence[str] | None = None):
    if names is not None and len(names) != num_classes:
      raise ValueError(
        f"A model of {num_classes} classes has as many names, got {len(names)}."
      )
    self.num_classes = num_classes
    self.names = None if names is None else tuple(names)
    self._place = {n.lower(): i for i, n in enumerate(self.names or ())}

  def encode(self, prompts: Sequence[str]) -> np.ndarray:
    """int32 [B]; the empty prompt is the null class.

    Raises:
      ValueError: an unknown name, or a number that is no class.
    """
    return np.array([self._class(prompt) for prompt in prompts], np.int32)

  def null(self) -> np.ndarray:
    """The null class, int32 [1]."""
    return np.array([self.num_classes], np.int32)

  def _class(self, prompt: str) -> int:
    word = prompt.strip().lower()
    if word == NULL:
      return self.num_classes
    if word in self._place:
      return self._place[word]
    if word.isdecimal() and int(word) < self.num_classes:
      return int(word)
    accepted = f"a number from 0 to {self.num_classes - 1}"
    if self.names:
      shown = ", ".join(self.names[:5])
      more = ", ..." if self.num_classes > 5 else ""
      accepted += f" or a name ({shown}{more})"
    raise ValueError(f"A class is {accepted}, got {prompt!r}.")
