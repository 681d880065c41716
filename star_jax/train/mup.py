"""muP: learning rates and initial weights that fit a model of any width.

Chosen at one width, they serve all others (Tensor Programs V, arXiv
2203.03466, table 3). With r = width / base width:

                                     initial std      rate Adam   rate Muon
  reads the width (layers' matrices)  sqrt(1/(3 C))    1 / r       1 / sqrt(r)
  head, reads the width               that / sqrt(r)   1 / r       -
  embeddings, biases, vectors, and    sqrt(r/(3 C))    1           1
  matrices that read codes or text

Updates of Adam are as large in every entry and point where the inputs do, so
that what they do to an output grows with the number of inputs; orthogonalised
ones of equal entries (`optimizer.UPDATE_RMS`) have a norm that grows with its
root. The head needs no multiplier: its initial weights and rate shrink instead,
which is the same function (arXiv 2203.03466, lemma J.1). Attention logits are
cosines times a learned scale, or of heads of one width.

Weight decay is not scaled: it takes `decay * rate` off at every width (arXiv
2309.14322).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import traverse_util

PyTree = Any

# Matrices of the transformer that read codes, texts or classes.
INPUTS = ("start_proj", "word_embed", "class_embed")
# Leaves that are matrices, among them stacked ones.
MATRICES = ("kernel", "qkv")
POWERS = {"adam": 1.0, "muon": 0.5}


def reads_width(path: tuple[str, ...]) -> bool:
  """Whether the parameter of that path multiplies what grows with the width."""
  return path[-1] in MATRICES and path[0] not in INPUTS


def rate_factors(
  params: PyTree,
  width_ratio: float,
  labels: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
  """Factor on the learning rate of every parameter.

  Args:
    params: of the transformer; shapes suffice.
    width_ratio: r, above.
    labels: gives "adam" or "muon" for each of them; None: all are Adam's.
  """
  flat = traverse_util.flatten_dict(params)
  kinds = dict.fromkeys(flat, "adam")
  if labels is not None:
    kinds = traverse_util.flatten_dict(labels(params))
  return traverse_util.unflatten_dict(
    {
      path: width_ratio ** -POWERS[kinds[path]] if reads_width(path) else 1.0
      for path in flat
    }
  )


def scale_by_width(
  width_ratio: float, labels: Callable[[PyTree], PyTree] | None = None
) -> optax.GradientTransformation:
  """Multiplies updates by `rate_factors`."""

  def scale(updates, params):
    factors = rate_factors(params, width_ratio, labels)
    return jax.tree.map(lambda u, factor: u * factor, updates, factors)

  return optax.stateless(scale)
