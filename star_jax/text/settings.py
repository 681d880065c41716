"""Which text encoder a model was trained with, and how it is found again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from star_jax.text.encoder import TextEncoder, load_text_encoder

# Beside the files of a bundle: a text encoder that it brings along.
TEXT_FOLDER = "text"


@dataclasses.dataclass(frozen=True)
class TextSettings:
  """Which text encoder the model was trained with.

  Attributes:
    name: of `star_jax.text.encoder.load_text_encoder`.
    max_tokens: T, the text window.
    fingerprint: hash of its weights and settings; another one is refused.
      Empty where it is not known (a converted checkpoint without its encoder).
  """

  name: str
  max_tokens: int
  fingerprint: str

  @classmethod
  def of(cls, encoder: TextEncoder) -> TextSettings:
    """The settings that find this encoder again."""
    return cls(encoder.name, encoder.max_tokens, encoder.fingerprint)

  def load(
    self, bundle: Path, text_path: str | Path | None = None
  ) -> TextEncoder:
    """The encoder: from `text_path`, from the folder text/ of the bundle, or
    from the installed package; the first that is there.

    Raises:
      ValueError: it is nowhere, or it is another one.
    """
    own = bundle / TEXT_FOLDER
    folder = text_path or (own if own.is_dir() else None)
    try:
      encoder = load_text_encoder(self.name, self.max_tokens, folder)
    except ValueError as error:
      if self.fingerprint or folder:
        raise
      raise ValueError(
        f"The bundle {bundle} names its text encoder, {self.name} with"
        f" {self.max_tokens} tokens, and does not hold it: {error} Put it into"
        f" {own} with launch/convert.py --from=hf_{self.name}."
      ) from error
    if self.fingerprint not in ("", encoder.fingerprint):
      raise ValueError(
        f"The model was trained with the text encoder {self.name}"
        f" {self.fingerprint}, the one found is {encoder.fingerprint}."
      )
    return encoder
