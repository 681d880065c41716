"""Where a run's figures go: the terminal, metrics.jsonl and TensorBoard.

metrics.jsonl holds one JSON object a line, {"step": n, "split": "train", ...};
vectors over scales are lists. Lines past the step that a run resumes from are
removed, and a row that is there already is not written again, so that every
step appears once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from star_jax.train.board import Board

METRICS_FILE = "metrics.jsonl"


class RunLog:
  """Writes the figures of one run; `step` is where it starts or resumes."""

  def __init__(self, workdir: Path, step: int):
    self.workdir = Path(workdir)
    self._path = self.workdir / METRICS_FILE
    self._samples = self.workdir / "samples"
    # A run that starts anew measures step 0 anew.
    before = read_metrics(self.workdir) if step else []
    kept = [r for r in before if r["step"] <= step]
    self._known = {(row["step"], row["split"]) for row in kept}
    text = "".join(json.dumps(row) + "\n" for row in kept)
    temporary = self._path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(self._path)
    self._board = Board(self.workdir / "tensorboard", step + 1 if step else 0)

  def scalars(self, step: int, split: str, metrics: Mapping) -> None:
    """Scalars and vectors [K]; a vector is one curve per scale.

    Raises:
      OSError: they cannot be written, in one sentence.
    """
    if self.has_scalars(step, split):
      return
    self._known.add((step, split))
    row = {"step": step, "split": split}
    values = {name: np.asarray(x, np.float64) for name, x in metrics.items()}
    row |= {name: value.tolist() for name, value in values.items()}
    with self._explained(step):
      with self._path.open("a") as f:
        f.write(json.dumps(row) + "\n")
      for name, value in values.items():
        if value.ndim == 0:
          self._board.scalar(step, f"{split}/{name}", float(value))
        for k in range(value.size if value.ndim else 0):
          self._board.scalar(step, f"{split}/{name}/{k}", float(value[k]))
      self._board.flush()

  def has_scalars(self, step: int, split: str) -> bool:
    """Whether the row is there, perhaps since before a restart."""
    return (step, split) in self._known

  def picture(self, step: int, name: str, image: Image.Image) -> Path:
    """Saves samples/<name>-<step>.png and shows it in TensorBoard.

    Raises:
      OSError: as of `scalars`.
    """
    path = self._samples / f"{name}-{step:07d}.png"
    with self._explained(step):
      self._samples.mkdir(exist_ok=True)
      image.save(path)
      self._board.picture(step, name, image)
      self._board.flush()
    return path

  def has_pictures(self, step: int) -> bool:
    """Whether there are any of this step."""
    return any(self._samples.glob(f"*-{step:07d}.png"))

  @contextlib.contextmanager
  def _explained(self, step: int) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise OSError(
        f"What step {step} gave could not be written to {self.workdir}"
        f" ({error.strerror or error}); the same command goes on from the last"
        " checkpoint there."
      ) from error

  def close(self) -> None:
    self._board.close()


class SilentLog:
  """What the processes beside the first have for a RunLog: figures and
  pictures are the same on all of them."""

  def scalars(self, step: int, split: str, metrics: Mapping) -> None:
    pass

  def picture(self, step: int, name: str, image: Image.Image) -> None:
    pass

  def has_scalars(self, step: int, split: str) -> bool:
    return False

  def has_pictures(self, step: int) -> bool:
    return False

  def close(self) -> None:
    pass


def read_metrics(workdir: str | Path) -> list[dict]:
  """All rows of a run; a last line that was cut off is left out."""
  path = Path(workdir) / METRICS_FILE
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


class Progress:
  """Rates and the time that is left, measured since the last line.

  Evaluation, sampling and saving are taken out through `pause`.
  """

  def __init__(self, first_step: int, num_steps: int, batch_size: int):
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._last_step = first_step
    self._last_time = time.perf_counter()
    self._paused = 0.0
    self._seconds_per_step = None

  def pause(self, seconds: float) -> None:
    """These seconds were not training."""
    self._paused += seconds

  def rates(self, step: int) -> dict[str, float]:
    """steps/s and images/s since the last call; starts the next interval."""
    now = time.perf_counter()
    steps = max(step - self._last_step, 1)
    seconds = max(now - self._last_time - self._paused, 1e-9) / steps
    self._last_step, self._last_time, self._paused = step, now, 0.0
    before = self._seconds_per_step or seconds
    # Smoothed, so that one slow interval does not double the shown ETA.
    self._seconds_per_step = 0.7 * before + 0.3 * seconds
    return {
      "steps_per_second": 1 / seconds,
      "images_per_second": self._batch_size / seconds,
    }

  def line(self, step: int, metrics: Mapping) -> str:
    """One line: where we are, the loss, the speed, what is left."""
    left = (self._num_steps - step) * (self._seconds_per_step or 0.0)
    shown = " ".join(
      f"{name} {float(metrics[name]):.4g}" for name in _SHOWN if name in metrics
    )
    mfu = f" ({metrics['mfu']:.1%} MFU)" if "mfu" in metrics else ""
    return (
      f"step {step}/{self._num_steps} ({step / self._num_steps:.1%}) {shown}"
      f" | {metrics['images_per_second']:.1f} images/s"
      f" {metrics['gflops_per_second']:.0f} GFLOP/s{mfu}, ETA"
      f" {format_seconds(left)}"
    )


_SHOWN = (
  "loss",
  "psnr",
  "vq_loss",
  "codebook_used",
  "acc",
  "loss_tail",
  "acc_tail",
  "grad_norm",
  "learning_rate",
)


def format_seconds(seconds: float) -> str:
  """12s, 3m12s, 5h03m or 2d04h."""
  seconds = int(seconds)
  if seconds < 60:
    return f"{seconds}s"
  minutes, seconds = divmod(seconds, 60)
  if minutes < 60:
    return f"{minutes}m{seconds:02d}s"
  hours, minutes = divmod(minutes, 60)
  if hours < 24:
    return f"{hours}h{minutes:02d}m"
  days, hours = divmod(hours, 24)
  return f"{days}d{hours:02d}h"
