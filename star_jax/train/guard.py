"""Steps without a finite loss: when a run stops, and what its log then shows.

The step itself changes nothing and counts, see `step.train_step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Metrics of every step: steps skipped so far, and in a row up to this one.
SKIPPED = "skipped"
SKIPPED_IN_A_ROW = "skipped_in_a_row"
# Norm of the gradient of what is trained against the model.
ADVERSARY_NORM = "adversary_grad_norm"


class NonFiniteError(ValueError):
  """The loss is nan or infinite for longer than the run puts up with."""


def check_skipped(
  step: int,
  metrics: Mapping[str, Any],
  max_skipped: int,
  checkpoints: Sequence[int],
) -> None:
  """Looks at the metrics of one step; one line for a step that was skipped.

  Args:
    step: 1-based number of the step.
    metrics: of it, on the host.
    max_skipped: most steps in a row that may be skipped.
    checkpoints: steps of the saved ones, oldest first.

  Raises:
    NonFiniteError: more than `max_skipped` steps in a row were skipped.
  """
  in_a_row, total = int(metrics[SKIPPED_IN_A_ROW]), int(metrics[SKIPPED])
  if not in_a_row:
    return
  loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
  became = f"loss {loss}, gradient norm {norm}"
  if ADVERSARY_NORM in metrics:
    became += f", of the adversary {float(metrics[ADVERSARY_NORM])}"
  if in_a_row <= max_skipped:
    print(
      f"Step {step} is skipped ({became}): {in_a_row} in a row of at most"
      f" {max_skipped}, {total} in all.",
      flush=True,
    )
    return
  first = step - in_a_row + 1
  span = f"at step {step}" if in_a_row == 1 else f"from step {first} to {step}"
  kept = f"checkpoint {checkpoints[-1]}" if checkpoints else "no checkpoint"
  raise NonFiniteError(
    f"The loss or its gradient was not finite {span} ({became}; finite up to"
    f" step {first - 1}): {in_a_row} skipped in a row where config.max_skipped"
    f" = {max_skipped}, {total} in all; {kept} is the last saved state. A"
    " lower optimizer.learning_rate or clip_norm may help."
  )


def mean_of_steps(
  collected: Sequence[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
  """Means over the steps that were not skipped, float64.

  Returns:
    By metric; of steps that were all skipped, nothing but how many.
  """
  finite = [dict(m) for m in collected if not m[SKIPPED_IN_A_ROW]]
  for metrics in finite:
    del metrics[SKIPPED_IN_A_ROW]
  means = {}
  if finite:
    means = jax.tree.map(
      lambda *x: np.mean(np.asarray(x, np.float64), axis=0), *finite
    )
  return means | {SKIPPED: np.float64(collected[-1][SKIPPED])}
