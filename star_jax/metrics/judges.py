"""Networks that measure pictures, and which of them may measure a bundle.

A network in the loss or in the discriminator of a training is flattered by
what was trained: it never judges it. Bundles say in their notes which networks
those were (`trained_against`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from star_jax.train.task import TRAINED_AGAINST

# Judge -> networks that it must not have been trained against: both distances
# start from the VGG16 of ImageNet.
JUDGES = {
  "vgg16-hed": ("vgg16-hed", "lpips"),
  "efficientnet": ("efficientnet",),
}
# Parts of launch/evaluate.py that ask one judge alone.
PARTS = {
  "icons": "efficientnet",
  "copy": "efficientnet",
  "refinement": "efficientnet",
}


def partial_judges(notes: Mapping[str, Any]) -> dict[str, str]:
  """Judges that may not measure a bundle -> what it was trained against.

  Args:
    notes: of the bundle; older ones say nothing and were trained against none.
  """
  against = set(notes.get(TRAINED_AGAINST, ()))
  out = {}
  for judge, relatives in JUDGES.items():
    if met := sorted(against.intersection(relatives)):
      out[judge] = ", ".join(met)
  return out


def choose_judges(
  asked: Sequence[str], notes: Mapping[str, Any]
) -> dict[str, str]:
  """Who measures: judge -> "" or why it does not.

  Args:
    asked: names of judges; (): all that may.
    notes: of the bundle.

  Raises:
    ValueError: an unknown judge, or one asked for by name that may not.
  """
  if unknown := sorted(set(asked) - set(JUDGES)):
    raise ValueError(
      f"config.tokenizer.judges are of {', '.join(JUDGES)}, got"
      f" {', '.join(unknown)}."
    )
  partial = partial_judges(notes)
  for judge in asked:
    if judge in partial:
      raise ValueError(
        f"{judge} does not judge this bundle, which was trained against"
        f" {partial[judge]}; config.tokenizer.judges = () takes those that may."
      )
  return {
    judge: f"trained against {partial[judge]}" if judge in partial else ""
    for judge in asked or JUDGES
  }


def refusal(part: str, notes: Mapping[str, Any]) -> str:
  """Why a part of the evaluation may not measure a bundle; "": it may.

  Args:
    part: of launch/evaluate.py.
    notes: of the bundle.
  """
  judge = PARTS.get(part)
  partial = partial_judges(notes)
  if judge not in partial:
    return ""
  return (
    f"--what={part} asks {judge}, which does not judge this bundle: its"
    f" tokenizer was trained against {partial[judge]}."
  )
