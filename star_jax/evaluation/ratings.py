"""launch/evaluate.py --rate: scores of pictures drawn for a benchmark.

The pictures lie as `exports` writes them. The figure of a benchmark is the
mean over its prompts of the mean over a prompt's pictures, as in
THUDM/ImageReward's test-benchmark.py.

P: prompts, N: pictures of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from star_jax.evaluation.best_of import Scorer
from star_jax.evaluation.bootstrap import mean_interval
from star_jax.evaluation.exports import PER_PROMPT, Task, read_tasks
from star_jax.evaluation.networks import file_hash
from star_jax.evaluation.scorers import WEIGHED, load_scorer
from star_jax.metrics import report
from star_jax.metrics.progress import Progress

# Raised when a measure changes, so that older results are told apart.
VERSION = 1
FILE = "ratings.json"
HEADER = ("score", "mean", "remark")
# Layouts with one picture a file.
LAYOUTS = ("geneval", "imagereward", "mjhq")
_PROMPTS = 8  # whose pictures are opened at once


def rate_pictures(
  names: Sequence[str],
  config: ConfigDict,
  images: str | Path,
  prompts: str | Path,
  out: str | Path,
  *,
  layout: str,
  per_prompt: int | None = None,
  limit: int | None = None,
  name: str = "",
  print_line: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Scores a folder, prints a table, writes ratings.json.

  Args:
    names: of scores, among `scorers.WEIGHED`.
    config: configs/evaluate.py; says where the weights lie.
    images: the folder.
    prompts: the benchmark's own file.
    out: gets the result.
    layout: one of LAYOUTS.
    per_prompt: pictures a prompt; None: as many as the benchmark takes.
    limit: only so many prompts; None for all.
    name: of the pictures in the result.
    print_line: receives the lines meant for the user.

  Raises:
    ValueError: one sentence about what is wrong with the input.
  """
  start = time.monotonic()
  for given in names:
    if given not in WEIGHED:
      raise ValueError(f"--rate is of {', '.join(WEIGHED)}, got {given!r}.")
  if layout not in LAYOUTS:
    raise ValueError(
      f"--layout is one of {', '.join(LAYOUTS)}, got {layout!r}."
    )
  n = PER_PROMPT[layout] if per_prompt is None else per_prompt
  tasks, images = read_tasks(layout, prompts, n)[:limit], Path(images)
  _need_pictures(tasks, images)
  scorers = {given: load_scorer(given, config) for given in names}
  protocol = {
    "version": VERSION,
    **{given: scorer.name for given, scorer in scorers.items()},
    "precision": "float32 products at highest precision",
    "images": str(images),
    "prompts": file_hash(prompts),
    "layout": layout,
    "pictures a prompt": n,
    "jax": jax.__version__,
    "backend": jax.default_backend(),
  }
  print_line(report.protocol_lines(protocol))
  scores = _scores(scorers, tasks, images)
  values, rows = {}, []
  for given, scores_PN in scores.items():
    mean_P = scores_PN.mean(1)
    mean, half = mean_interval(mean_P)
    values[given] = {"mean": mean, "half": half, "prompts": mean_P.tolist()}
    remark = f"+- {half:.2g} over {len(tasks)} prompts of {n} pictures"
    rows.append((scorers[given].name, f"{mean:.4g}", remark))
  result = {
    "name": name or images.name,
    "kind": "ratings",
    "protocol": protocol,
    "seconds": round(time.monotonic() - start, 1),
    "values": values,
    "table": [list(row) for row in rows],
  }
  report.write_json(Path(out) / FILE, result)
  print_line(report.table(rows, HEADER))
  print_line(f"written to {Path(out) / FILE}")
  return result


def _need_pictures(tasks: Sequence[Task], images: Path) -> None:
  files = [file for task in tasks for file in task.files]
  missing = [file for file in files if not (images / file).is_file()]
  if missing:
    raise ValueError(
      f"{images} lacks {len(missing)} of {len(files)} pictures, first"
      f" {missing[0]}: draw them with --export, or say how many there are of a"
      " prompt, --per_prompt."
    )


def _scores(
  scorers: dict[str, Scorer], tasks: Sequence[Task], images: Path
) -> dict[str, np.ndarray]:
  """Name -> float64 [P, pictures a prompt]."""
  out = {given: [] for given in scorers}
  progress = Progress("scores, prompts")
  for start in range(0, len(tasks), _PROMPTS):
    part = tasks[start : start + _PROMPTS]
    pairs = [(images / file, t.prompt) for t in part for file in t.files]
    pictures, words = [_open(path) for path, _ in pairs], [w for _, w in pairs]
    for given, scorer in scorers.items():
      found_N = np.asarray(scorer(pictures, words), np.float64)
      out[given].append(found_N.reshape(len(part), -1))
    progress(start + len(part), len(tasks))
  return {given: np.concatenate(parts) for given, parts in out.items()}


def _open(path: Path) -> Image.Image:
  try:
    with Image.open(path) as image:
      return image.convert("RGB")
  except OSError as error:
    raise ValueError(f"{path} is not a readable picture: {error}.") from error
