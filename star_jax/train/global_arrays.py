"""Arrays that belong to all devices, and to all processes, of a run.

Every process holds the parts that its own devices need. What goes in is the
same on all processes (parameters from a file), or each process's rows of a
batch.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from star_jax import sharding as sharding_lib
from star_jax.train.state import TrainState, stream_key
from star_jax.train.task import Batch, BatchIterator

PyTree = Any
DEVICE_MEMORY = "device"
HOST_MEMORY = "pinned_host"


def place(tree: PyTree, shardings: PyTree) -> PyTree:
  """Puts arrays that every process has whole, or that lie there already.

  Args:
    tree: of numpy or jax arrays.
    shardings: of the same structure.
  """

  def one(x, sharding):
    if isinstance(x, jax.Array) and x.sharding == sharding:
      return x
    if sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.jit(lambda x: x, out_shardings=sharding)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(one, tree, shardings)


def place_by_rules(tree: PyTree, mesh: Mesh) -> PyTree:
  """`place` where the sharding rules say."""
  return place(tree, sharding_lib.shardings_of(tree, mesh))


def state_shardings(
  state: TrainState, mesh: Mesh, ema_on_host: bool = False
) -> TrainState:
  """Where a training state lies, by the rules.

  Args:
    state: its shapes.
    ema_on_host: the average is in the memory of the machines that the devices
      belong to, cut as the parameters are.

  Raises:
    ValueError: no rule for a parameter, an axis that does not divide it, or
      devices that cannot reach such memory.
  """
  shardings = sharding_lib.shardings_of(state, mesh)
  if not ema_on_host:
    return shardings
  device = mesh.devices.flat[0]
  kinds = [memory.kind for memory in device.addressable_memories()]
  if HOST_MEMORY not in kinds:
    raise ValueError(
      "config.optimizer.ema_on_host needs devices that reach the memory"
      f" {HOST_MEMORY}; {device.device_kind} has {', '.join(kinds)}."
    )
  on_host = jax.tree.map(
    lambda s: s.with_memory_kind(HOST_MEMORY), shardings.ema_params
  )
  return shardings.replace(ema_params=on_host)


def on_devices(state: TrainState) -> TrainState:
  """The state for whoever computes with the average: all of it on devices."""
  shardings = jax.tree.map(
    lambda x: x.sharding.with_memory_kind(DEVICE_MEMORY), state.ema_params
  )
  return state.replace(ema_params=place(state.ema_params, shardings))


def local_rows(mesh: Mesh, batch_size: int) -> slice:
  """The rows of a batch that the devices of this process need.

  Raises:
    ValueError: they are not neighbours, which batches cannot be read by.
  """
  sharding = sharding_lib.batch_sharding(mesh)
  needed = sharding.addressable_devices_indices_map((batch_size,)).values()
  rows = sorted({i for index in needed for i in range(batch_size)[index[0]]})
  if rows != list(range(rows[0], rows[-1] + 1)):
    raise ValueError(
      f"The devices of process {jax.process_index()} have rows of a batch that"
      " are not neighbours under this config.mesh; choose data and fsdp so that"
      " a process has whole parts of the batch."
    )
  return slice(rows[0], rows[-1] + 1)


def place_whole_batch(batch: Batch, mesh: Mesh) -> Batch:
  """A batch that every process has read whole."""
  sharding = sharding_lib.batch_sharding(mesh)
  return place(batch, jax.tree.map(lambda _: sharding, batch))


def place_key(seed: int, stream: int, mesh: Mesh) -> jax.Array:
  """`stream_key`, the same on all devices."""
  whole = sharding_lib.replicated(mesh)
  return jax.jit(lambda: stream_key(seed, stream), out_shardings=whole)()


def place_batch(batch: Batch, mesh: Mesh, batch_size: int) -> Batch:
  """A batch of this process's rows -> arrays of the whole batch."""
  sharding = sharding_lib.batch_sharding(mesh)

  def one(x):
    x = np.asarray(x)
    shape = (batch_size, *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding, x, shape)

  return jax.tree.map(one, batch)


def fetch(tree: PyTree) -> PyTree:
  """Numpy arrays, whole, on every process; all of them have to call it."""

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      whole = sharding_lib.replicated(x.sharding.mesh)
      x = jax.jit(lambda x: x, out_shardings=whole)(x)
    return np.asarray(x)

  return jax.tree.map(one, tree)


def first_says(value: bool) -> bool:
  """What the first process knows, on all of them; all have to call it."""
  return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


class PlacedBatches:
  """Batches of this process's rows, as arrays of the whole batch."""

  def __init__(self, source: BatchIterator, mesh: Mesh, batch_size: int):
    self._source = source
    self._mesh = mesh
    self._batch_size = batch_size

  def __next__(self) -> Batch:
    return place_batch(next(self._source), self._mesh, self._batch_size)

  def get_state(self) -> Any:
    return self._source.get_state()

  def set_state(self, state: Any) -> None:
    self._source.set_state(state)
