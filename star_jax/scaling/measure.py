"""What a run of a scaling sweep is measured on: loss and token error rate.

Three kinds of examples, none of which the rate was chosen on: "new" scenes of
what is trained on, never seen; "train", those that the run has seen, once each;
"heldout", scenes of combinations that are never trained on. The laws are of
"new"; how far it is above "train" is the gap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from star_jax.data.token_cache import TokenCache
from star_jax.train.step import eval_step
from star_jax.train.task import Batch
from star_jax.train.transformer_task import TransformerTask

NEW, TRAIN, HELDOUT = "new", "train", "heldout"
# The split of the generator that has new scenes of the training distribution.
NEW_SPLIT = "seen"


def measure(
  task: TransformerTask, params: Any, num_steps: int, batches: int
) -> dict[str, Any]:
  """Figures of a model.

  Args:
    task: of the run.
    params: of the transformer.
    num_steps: how many batches the run has seen.
    batches: to measure on, of each kind.

  Returns:
    loss, error: kind -> "all" (mean over tokens), "last" (of the last scale)
      and "scales"; loss in nats a token, error as the share of tokens whose
      likeliest value is another one. gap: of the losses, a share of that of
      "train", and gap_error, its standard error.
  """

  def unseen(split: str) -> Iterable[Batch]:
    return task.data.cache(split).in_order(task.config.batch_size, batches)

  found = {
    NEW: evaluate(task, params, unseen(NEW_SPLIT)),
    TRAIN: evaluate(task, params, seen_batches(task, num_steps, batches)),
    HELDOUT: evaluate(task, params, unseen(HELDOUT)),
  }
  new, train = (np.asarray(found[kind]["losses"]) for kind in (NEW, TRAIN))
  spread = [x.std(ddof=1) / np.sqrt(len(x)) for x in (new, train)]
  return {
    "loss": {kind: one["loss"] for kind, one in found.items()},
    "error": {kind: one["error"] for kind, one in found.items()},
    "gap": float(new.mean() / train.mean() - 1),
    "gap_error": float(np.hypot(*spread) / train.mean()),
  }


def evaluate(
  task: TransformerTask, params: Any, batches: Iterable[Batch]
) -> dict[str, Any]:
  """Loss and error over batches of equal size; losses: of each batch."""
  key, rows = jax.random.key(0), []
  for batch in batches:
    metrics = eval_step(params, {}, task.frozen, batch, key, loss_fn=task.loss)
    rows.append(jax.device_get(metrics))
  if len(rows) < 2:
    raise ValueError(
      f"A run is measured on at least 2 batches of each kind, got {len(rows)}:"
      " raise config.measure.batches or the examples of the cache."
    )
  mean = lambda name: np.mean([r[name] for r in rows], 0, np.float64)  # noqa: E731
  wrong_K = 1 - mean("acc_k")
  return {
    "losses": [float(r["loss"]) for r in rows],
    "loss": {
      "all": float(mean("loss")),
      "last": float(mean("loss_tail")),
      "scales": mean("loss_k").tolist(),
    },
    "error": {
      "all": float(1 - mean("acc")),
      "last": float(wrong_K[-1]),
      "scales": wrong_K.tolist(),
    },
  }


def seen_batches(
  task: TransformerTask, num_steps: int, count: int
) -> Iterable[Batch]:
  """`count` of the batches that a run of so many steps has seen, evenly."""
  batches = task.train_batches()
  for number in np.unique(np.linspace(0, num_steps - 1, count).astype(int)):
    batches.set_state(int(number))
    yield next(batches)


def count_repeats(train: TokenCache, other: TokenCache | None = None) -> int:
  """Examples of `train` that equal an earlier one, or of `other` that equal one
  of `train`: the same tokens and the same caption.

  Every example has an index of its own; equal ones were drawn by chance.
  """
  seen, repeats = set(), 0
  for i in range(len(train)):
    key = _key(train, i)
    repeats += other is None and key in seen
    seen.add(key)
  if other is not None:
    repeats = sum(_key(other, i) in seen for i in range(len(other)))
  return repeats


def _key(cache: TokenCache, index: int) -> bytes:
  record = cache.record(index)
  return record.idx_VL[0].tobytes() + record.keys_V[:1].tobytes()
