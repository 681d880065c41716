"""What the training loop asks of a task, and the iterators it feeds on.

The loop knows nothing of tokenizers or transformers: stage 1 and stage 2 are
two tasks behind this interface (tokenizer_task.py, transformer_task.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from star_jax.data.position import ALL_ROWS
from star_jax.train.state import TrainState

PyTree = Any
# The exported model, inside the workdir.
BUNDLE = "bundle"
# In the notes of a bundle and in checkpoints of tokenizers: networks that the
# tokenizer was trained against.
TRAINED_AGAINST = "trained_against"
Batch = dict[str, np.ndarray]
LossFn = Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]]


class BatchIterator(Protocol):
  """Endless batches whose position can be stored.

  The position is what JSON can hold, and the same in all processes of a run.
  """

  def __next__(self) -> Batch: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


class Task(Protocol):
  """One kind of training.

  Attributes:
    frozen: arrays that the loss reads and nobody trains; they travel into the
      step as an argument, so that they are not compiled in as constants.
    maintain_every: steps between two calls of `maintain`, 0 for never.
    width_ratio: of the model to muP's base (mup.py); 1: one rate for all.
  """

  frozen: PyTree
  maintain_every: int
  width_ratio: float

  def identity(self) -> dict:
    """The part of the configuration that a checkpoint must agree with."""

  def check_mesh(self, mesh: Mesh) -> str:
    """ValueError where the model cannot be cut as the mesh would have it, or
    computed there as the config says.

    Returns:
      A line for the run to print on how it will be; "": there is no choice.
    """

  def init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
    """(params, extra) of step 0; traceable."""

  def init_adversary(self, key: jax.Array) -> PyTree:
    """Parameters of what is trained against the model; traceable.

    Asked only where the run's optimizer has one for them. They are then the
    last argument of the loss of a training step, which is the sum of both
    sides' losses, each with the other side's parameters behind a
    `stop_gradient`: one backward pass then gives both gradients.
    """

  def loss(
    self,
    params: PyTree,
    extra: PyTree,
    frozen: PyTree,
    batch: Batch,
    key: jax.Array,
    step: jax.Array | None,
    adversary: PyTree = None,
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
    """(loss, (metrics with "loss" among them, extra)); traceable.

    Each is what it would be on average over parts of the batch: with
    `config.accumulate` the step takes the mean of what the parts give, which
    all see the same `extra`.

    `step` is the 0-based number of the training step; None: an evaluation,
    which knows no adversary.
    """

  def loss_at(self, step: int) -> LossFn:
    """What the training step with this number calls instead of `loss`.

    Each function is compiled once: steps of one program give the same one.
    """

  def train_batches(self, rows: slice = ALL_ROWS) -> BatchIterator:
    """Of each batch those rows that the devices of this process need."""

  def eval_batches(self) -> Iterable[Batch]:
    """The same batches every time; may be empty."""

  def start(self, state: TrainState, batches: BatchIterator) -> TrainState:
    """Data-dependent initialisation of a run that starts from scratch.

    It may draw batches; the loop puts the iterator back afterwards.
    """

  def maintain(
    self, state: TrainState, batch: Batch, key: jax.Array
  ) -> TrainState:
    """Called between steps every `maintain_every` steps; deterministic."""

  def pictures(self, state: TrainState) -> dict[str, Image.Image]:
    """Sample sheets by name."""

  def export(self, state: TrainState, workdir: Path) -> Path:
    """Writes the averaged model in the form that sampling reads."""


class MappedBatches:
  """`fn` applied to every batch; the position is that of the source."""

  def __init__(self, source: BatchIterator, fn: Callable[[Batch], Batch]):
    self._source = source
    self._fn = fn

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    return self._fn(next(self._source))

  def get_state(self) -> Any:
    return self._source.get_state()

  def set_state(self, state: Any) -> None:
    self._source.set_state(state)
