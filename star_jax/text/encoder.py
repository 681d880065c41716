"""The door to every frozen text encoder: names in, `TextEncoder` out.

An encoder is one module beside this one with NAME, MAX_TOKENS (its usual
window) and a `load(max_tokens, path)` function; `_ENCODERS` is the only place
that lists them. The rest of star_jax sees the `TextEncoder` protocol and never
which encoder stands behind it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from star_jax.text import clip, minilm, t5
from star_jax.text.states import TextStates


@runtime_checkable
class TextEncoder(Protocol):
  """A frozen text encoder: the same prompt always gives the same states."""

  name: str
  width: int  # D
  max_tokens: int  # T, start and end tokens included

  @property
  def fingerprint(self) -> str:
    """Hash of weights, vocabulary and settings; it names cached states."""

  def encode(self, prompts: Sequence[str]) -> TextStates:
    """Float32 numpy states of shape [B, max_tokens, width] and companions."""

  def null(self) -> TextStates:
    """States of the empty prompt (B = 1), the condition of guidance."""

  def truncated(self, prompt: str) -> str | None:
    """The part of `prompt` beyond the window, or None when all of it fits."""


_ENCODERS = {module.NAME: module for module in (minilm, clip, t5)}


def text_encoder_names() -> tuple[str, ...]:
  """Names that `load_text_encoder` accepts."""
  return tuple(_ENCODERS)


def load_text_encoder(
  name: str,
  max_tokens: int | None = None,
  path: str | os.PathLike | None = None,
) -> TextEncoder:
  """Loads a frozen encoder by name.

  Args:
    name: one of `text_encoder_names()`.
    max_tokens: T, the fixed number of text tokens of every output; longer
      prompts are cut with a warning. By default the usual window of that
      encoder.
    path: a local folder with the weights; by default the installed package
      of that encoder, which minilm-l6 alone has.

  Raises:
    ValueError: unknown name, a window that the encoder cannot hold, or
      weights that are missing or of another model.
  """
  if name not in _ENCODERS:
    raise ValueError(
      f"Unknown text encoder {name!r}; known are {', '.join(_ENCODERS)}."
    )
  module = _ENCODERS[name]
  window = module.MAX_TOKENS if max_tokens is None else max_tokens
  return module.load(max_tokens=window, path=path)
