"""What a text encoder hands to the model: token states, mask, pooled vector.

B: prompts, T: text tokens (padded), D: width of the text encoder.
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class TextStates:
  """Encoded prompts, a pytree of numpy or jax arrays.

  Attributes:
    text_BTD: float [B, T, D], last hidden states. Padding positions hold
      zeros when they come from `TextEncoder.encode`; readers mask them.
    text_mask_BT: bool [B, T], True where a token is to be attended to.
    pooled_BD: float [B, D], one vector a prompt (for the start token).
  """

  text_BTD: Array
  text_mask_BT: Array
  pooled_BD: Array

  @property
  def batch(self) -> int:
    """B, the number of prompts."""
    return self.text_BTD.shape[0]

  def __getitem__(self, rows) -> TextStates:
    """The prompts `rows`: a slice or an array of indices, never one int."""
    return jax.tree.map(lambda x: x[rows], self)
