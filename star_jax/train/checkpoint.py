"""Checkpoints: what is saved, how it is found again, what can go wrong.

A checkpoint is one Orbax step directory with three items: `state` (the whole
TrainState), `data` (the position in the data and whatever else of the loop is
small) and `identity` (the part of the configuration that the arrays depend on);
`metrics` beside them has the held-out loss where it was measured at that step.
Orbax writes into a
temporary directory and renames it when complete, so that what carries a
number is whole.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from star_jax.train.state import TrainState

PyTree = Any
ITEMS = ("state", "data", "identity")
UNREADABLE = ".unreadable"
# Name of the figure in `metrics`.
HELDOUT = "heldout_loss"


class Checkpointer:
  """Saves and restores the run in `workdir`/checkpoints.

  Args:
    workdir: the run's directory.
    identity: nested dict of what must not change between save and restore.
    keep: how many of the newest checkpoints stay; older ones are deleted only
      after a newer one is complete.
    keep_best: how many stay beside them, those of the lowest held-out loss.
    asynchronous: write in the background while training goes on.

  Raises:
    ValueError: nothing would be kept.
  """

  def __init__(
    self,
    workdir: Path,
    identity: dict,
    *,
    keep: int,
    keep_best: int = 0,
    asynchronous: bool,
  ):
    if keep < 1 or keep_best < 0:
      raise ValueError(
        "config.keep_checkpoints is at least 1 and config.keep_best at least"
        f" 0, got {keep} and {keep_best}."
      )
    self.directory = Path(workdir).absolute() / "checkpoints"
    self.identity = _plain(identity)
    _report_unfinished(self.directory)
    policies = ocp.checkpoint_managers
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(
        [policies.LatestN(keep), BestHeldOut(keep_best)]
      ),
      # Orbax writes metrics where it has a function of them.
      best_fn=lambda metrics: metrics[HELDOUT],
      best_mode="min",
      enable_async_checkpointing=asynchronous,
      cleanup_tmp_directories=True,
    )
    self._manager = self._open()
    self._saving: int | None = None

  def _open(self) -> ocp.CheckpointManager:
    # The manager reads the figures of all checkpoints at once.
    for step in _complete_steps(self.directory):
      try:
        _read_metrics(self.directory / str(step))
      except ValueError as error:
        self._rename(step, error)
    return ocp.CheckpointManager(
      self.directory, options=self._options, item_names=ITEMS
    )

  def steps(self) -> list[int]:
    """Complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: TrainState,
    data: dict[str, Any],
    heldout: float | None = None,
  ) -> None:
    """Starts writing; a failure of the write before is reported here.

    Args:
      step: the number of the checkpoint.
      state: of the run.
      data: what JSON can hold.
      heldout: the held-out loss of this state, if it was measured.
    """
    try:
      self.wait()
      self._saving = step
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_stored(state)),
          data=ocp.args.JsonSave(data),
          identity=ocp.args.JsonSave(self.identity),
        ),
        metrics={} if heldout is None else {HELDOUT: heldout},
        force=True,
      )
      if not self._options.enable_async_checkpointing:
        self.wait()
    except SaveError:
      raise
    except Exception as error:
      raise self._save_error(error) from error

  def wait(self) -> None:
    """Blocks until the last save is on disk, or says why it is not."""
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._save_error(error) from error
    self._saving = None

  def _save_error(self, error: Exception) -> SaveError:
    step, self._saving = self._saving, None
    try:
      kept = _complete_steps(self.directory, without=step)
    except OSError:
      kept = []
    intact = (
      f"checkpoint {kept[-1]} there is intact"
      if kept
      else "there is no earlier checkpoint"
    )
    return SaveError(
      f"Checkpoint {step} could not be written to {self.directory}"
      f" ({_reason(error)}); {intact}."
    )

  def restore_latest(
    self, abstract_state: TrainState
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """State and data of the newest readable checkpoint, or None.

    A checkpoint that cannot be read is reported, set aside under another name
    and the one before it is tried.

    Raises:
      ValueError: the checkpoint belongs to another configuration.
    """
    for step in reversed(self.steps()):
      try:
        saved = self._manager.restore(
          step,
          args=ocp.args.Composite(
            data=ocp.args.JsonRestore(), identity=ocp.args.JsonRestore()
          ),
        )
      except Exception as error:
        self._set_aside(step, error)
        continue
      check_identity(self.directory / str(step), saved.identity, self.identity)
      if abstract_state.adversary is not None:
        self._check_adversary(step)
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_stored(abstract_state))
          ),
        )
      except Exception as error:
        self._set_aside(step, error)
        continue
      return TrainState(**restored.state), saved.data
    return None

  def _check_adversary(self, step: int) -> None:
    """ValueError where the moments of the adversary are missing."""
    path = self.directory / str(step)
    try:
      saved = _saved_tree(path).get("adversary") or {}
    except Exception:
      return  # A damaged checkpoint is for the restore to find.
    if saved.get("params") and not saved.get("opt_state"):
      raise ValueError(
        f"Checkpoint {path} holds a discriminator without its optimizer's"
        " state, so that the run cannot go on as it was; config.init_from takes"
        " the tokenizer into a new run with a fresh discriminator."
      )

  def _set_aside(self, step: int, error: Exception) -> None:
    if jax.process_count() > 1:
      # Others may have read it: they would go on from another step.
      raise ValueError(
        f"Checkpoint {self.directory / str(step)} is unreadable"
        f" ({_reason(error)}); move it away to go on from the one before."
      ) from error
    self._rename(step, error)
    self._manager.close()
    self._manager = self._open()

  def _rename(self, step: int, error: Exception) -> None:
    path = self.directory / str(step)
    aside = path.with_name(f"{step}{UNREADABLE}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    logging.warning(
      "Checkpoint %s is unreadable (%s); it is now %s and is not looked at.",
      path,
      _reason(error),
      aside.name,
    )

  def close(self) -> None:
    """Waits for the last save and releases the writer threads."""
    try:
      self.wait()
    finally:
      self._manager.close()


def quiet_storage() -> None:
  """For commands: `SaveError` says what each thread of Orbax tells.

  On a full disk those are dozens of tracebacks.
  """
  logging.get_absl_handler().addFilter(
    lambda record: (
      record.name != "asyncio"
      and f"{os.sep}orbax{os.sep}" not in record.pathname
    )
  )
  shown = sys.unraisablehook

  def hook(unraisable):
    # Of a write that ends after the thread which asked for it has given up.
    if str(unraisable.exc_value) != "Event loop is closed":
      shown(unraisable)

  sys.unraisablehook = hook


class BestHeldOut:
  """Keeps the `count` checkpoints of the lowest held-out loss.

  Orbax's own policy of this kind also keeps checkpoints without a figure.
  """

  def __init__(self, count: int):
    self._count = count

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Of Orbax's descriptions of checkpoints, oldest first."""
    del context
    losses = {c.step: (c.metrics or {}).get(HELDOUT) for c in checkpoints}
    measured = [
      step
      for step, loss in losses.items()
      if loss is not None and math.isfinite(loss)
    ]
    best = sorted(measured, key=losses.get)[: self._count]
    return [c.step in best for c in checkpoints]


class SaveError(OSError):
  """A checkpoint could not be written."""


def _reason(error: Exception) -> str:
  """Why, in a few words: the system's own where the storage layer quotes it."""
  text = " ".join(str(error).split())
  quoted = re.search(r"os_error_code='(\d+)'", text)
  if quoted:
    return os.strerror(int(quoted.group(1)))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return text[:200] or type(error).__name__


def _complete_steps(directory: Path, without: int | None = None) -> list[int]:
  if not directory.is_dir():
    return []
  names = [p.name for p in directory.iterdir() if p.name.isdigit()]
  return sorted(int(name) for name in names if int(name) != without)


def _stored(state: TrainState) -> dict[str, Any]:
  """A state as it is written: without an adversary as before there were any,
  so that checkpoints of that time are read, too."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  if state.adversary is None:
    del fields["adversary"]
  return fields


def _read_metrics(checkpoint: Path) -> dict[str, float]:
  """The figures of a checkpoint; ValueError: they are damaged."""
  path = checkpoint / "metrics" / "metrics"
  return json.loads(path.read_text()) if path.exists() else {}


def _report_unfinished(directory: Path) -> None:
  if not directory.is_dir():
    return
  for path in sorted(directory.iterdir()):
    if ".orbax-checkpoint-tmp" in path.name:
      logging.warning(
        "%s is a half-written checkpoint; it is ignored and removed.", path
      )


def find_run(run: str | Path) -> tuple[Path, dict]:
  """The newest checkpoint of another run, for `config.init_from`.

  Returns:
    Where it is; the identity it was saved with.

  Raises:
    ValueError: no checkpoint there.
  """
  directory = Path(run).absolute()
  if (directory / "checkpoints").is_dir():
    directory = directory / "checkpoints"
  steps = _complete_steps(directory)
  if not steps:
    raise ValueError(
      f"No checkpoint in {run}; config.init_from takes the workdir of a run"
      " that saved one."
    )
  path = directory / str(steps[-1])
  return path, json.loads((path / "identity" / "metadata").read_text())


def read_params(path: Path, like: PyTree | None = None) -> PyTree:
  """Parameters of a checkpoint and nothing else of it, the averaged ones where
  there are any.

  Args:
    path: of the checkpoint.
    like: abstract parameters with shardings; every device then reads its part.
      None: numpy arrays.
  """
  saved = _saved_tree(path)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    name = "ema_params" if saved.get("ema_params") else "params"
    if like is None:
      item = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved[name]
      )
      how = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), item)
    else:
      item, how = like, ocp.checkpoint_utils.construct_restore_args(like)
    found = reader.restore(
      path / "state",
      args=ocp.args.PyTreeRestore(
        {name: item}, restore_args={name: how}, partial_restore=True
      ),
    )
  return found[name]


def _saved_tree(path: Path) -> dict[str, Any]:
  """What Orbax wrote down of the state of a checkpoint: descriptions in place
  of arrays."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.metadata(path / "state").item_metadata.tree


def load_params(
  run: str | Path, abstract_params: PyTree, identity: dict
) -> PyTree:
  """Parameters of another run of the same configuration.

  Args:
    run: see `find_run`.
    abstract_params: see `read_params`.
    identity: of this run.

  Raises:
    ValueError: no checkpoint there, or one of another configuration.
  """
  path, saved = find_run(run)
  check_identity(path, saved, _plain(identity))
  return read_params(path, abstract_params)


def check_identity(path: Path, saved: dict, current: dict) -> None:
  """Refuses a checkpoint of another configuration, naming what differs."""
  old = traverse_util.flatten_dict(saved, sep=".", keep_empty_nodes=True)
  new = traverse_util.flatten_dict(current, sep=".", keep_empty_nodes=True)
  absent = "absent"
  differing = [
    f"{key} is {old.get(key, absent)!r} there and {new.get(key, absent)!r} here"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, absent) != new.get(key, absent)
  ]
  if differing:
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise ValueError(
      f"Checkpoint {path} was written by another configuration:"
      f" {'; '.join(differing[:3])}{more}; use another --workdir or the"
      " configuration of that run."
    )


def _plain(tree: Any) -> Any:
  """As JSON would give it back (tuples become lists, keys strings)."""
  return json.loads(json.dumps(tree))
