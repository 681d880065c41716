"""Pictures in the folder layouts that the benchmark tools read.

  geneval      OUT/00000/metadata.jsonl, OUT/00000/samples/0000.png ...
               (djghosh13/geneval; prompts: its evaluation_metadata.jsonl)
  dpg          OUT/NAME.png, the pictures of a prompt in a square
               (TencentQQGYLab/ELLA dpg_bench; prompts: its folder of .txt)
  imagereward  OUT/ID_0.png ... (THUDM/ImageReward; prompts: its
               benchmark-prompts.json with id and prompt)
  mjhq         OUT/CATEGORY/ID.png (MJHQ-30K; prompts: its meta_data.json with
               category and prompt)

A folder that was begun goes on with the first prompt that is not there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from star_jax.metrics.progress import Progress

KINDS = ("geneval", "dpg", "imagereward", "mjhq")
# Pictures a prompt in the benchmarks' own protocols.
PER_PROMPT = {"geneval": 4, "dpg": 4, "imagereward": 10, "mjhq": 1}


@dataclasses.dataclass(frozen=True)
class Task:
  """One prompt.

  Attributes:
    prompt: to draw.
    files: where its pictures go, relative to the folder.
    side: more than 1: all in one file, a square of side x side pictures.
    metadata: written as metadata.jsonl in the folder above the pictures.
  """

  prompt: str
  files: tuple[str, ...]
  side: int = 1
  metadata: str | None = None


def read_tasks(kind: str, path: str | Path, per_prompt: int) -> list[Task]:
  """The prompts of a benchmark.

  Args:
    kind: one of KINDS.
    path: the benchmark's own file or folder of prompts, see above.
    per_prompt: pictures a prompt.

  Raises:
    ValueError: an unknown kind, or prompts in another form.
  """
  if kind not in KINDS:
    raise ValueError(f"--export is one of {', '.join(KINDS)}, got {kind!r}.")
  if per_prompt < 1:
    raise ValueError(f"--per_prompt is at least 1, got {per_prompt}.")
  path = Path(path)
  if not path.exists():
    raise ValueError(f"There are no prompts for {kind} at {path}.")
  try:
    tasks = _READERS[kind](path, per_prompt)
  except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
    raise ValueError(_bad(kind, path)) from error
  except json.JSONDecodeError as error:
    raise ValueError(_bad(kind, path)) from error
  if not tasks:
    raise ValueError(f"{path} holds no prompts for {kind}.")
  for task in tasks:
    for name in task.files:
      if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{path} names a file outside of the folder: {name}.")
  return tasks


def _bad(kind: str, path: Path) -> str:
  return f"{path} does not hold prompts in the form of {kind}."


def _geneval(path: Path, n: int) -> list[Task]:
  out = []
  lines = path.read_text("utf-8").splitlines()
  for i, line in enumerate(line for line in lines if line.strip()):
    entry = json.loads(line)
    names = tuple(f"{i:05d}/samples/{j:05d}.png" for j in range(n))
    out.append(Task(entry["prompt"], names, metadata=json.dumps(entry)))
  return out


def _dpg(path: Path, n: int) -> list[Task]:
  side = math.isqrt(n)
  if side * side != n:
    raise ValueError(
      f"DPG-Bench reads the pictures of a prompt in a square: --per_prompt is"
      f" 1, 4 or 9, got {n}."
    )
  files = sorted(path.glob("*.txt"))
  return [
    Task(f.read_text("utf-8").strip(), (f"{f.stem}.png",), side) for f in files
  ]


def _imagereward(path: Path, n: int) -> list[Task]:
  return [
    Task(e["prompt"], tuple(f"{e['id']}_{j}.png" for j in range(n)))
    for e in json.loads(path.read_text("utf-8"))
  ]


def _mjhq(path: Path, n: int) -> list[Task]:
  if n != 1:
    raise ValueError(f"MJHQ-30K has one picture a prompt, got {n}.")
  entries = json.loads(path.read_text("utf-8"))
  return [
    Task(e["prompt"], (f"{e['category']}/{name}.png",))
    for name, e in sorted(entries.items())
  ]


_READERS: dict[str, Callable[[Path, int], list[Task]]] = {
  "geneval": _geneval,
  "dpg": _dpg,
  "imagereward": _imagereward,
  "mjhq": _mjhq,
}


def export(
  kind: str,
  pipeline: Any,
  prompts: str | Path,
  out: str | Path,
  *,
  per_prompt: int | None,
  seed: int,
  batch: int,
  settings: dict[str, Any],
  limit: int | None = None,
) -> int:
  """Draws the prompts of a benchmark into the folder that its tool reads.

  Args:
    kind: one of KINDS.
    pipeline: the model.
    prompts: of the benchmark.
    out: the folder.
    per_prompt: pictures a prompt; None: as many as the benchmark takes.
    seed: prompt i draws with a seed made from this one and i, whatever is
      there already.
    batch: most pictures drawn at once.
    settings: sampling knobs.
    limit: only so many prompts; None for all.

  Returns:
    How many prompts were drawn now.
  """
  n = PER_PROMPT.get(kind, 1) if per_prompt is None else per_prompt
  tasks = read_tasks(kind, prompts, n)[:limit]
  out = Path(out)
  missing = [
    i
    for i, task in enumerate(tasks)
    if not all((out / name).is_file() for name in task.files)
  ]
  progress = Progress(f"{kind}, prompts")
  for done, i in enumerate(missing):
    words = [tasks[i].prompt] * n
    drawn = pipeline.sample_all(words, _seed(seed, i), batch=batch, **settings)
    _write(tasks[i], drawn.images, out)
    progress(done + 1, len(missing))
  return len(missing)


def _seed(seed: int, i: int) -> int:
  return int(np.random.SeedSequence((seed, i)).generate_state(1)[0])


def _write(task: Task, images: Sequence[Image.Image], out: Path) -> None:
  if task.side > 1:
    images = [_square(images, task.side)]
  if task.metadata is not None:
    folder = (out / task.files[0]).parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text(task.metadata + "\n", "utf-8")
  for name, image in zip(task.files, images):
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.png")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)


def _square(images: Sequence[Image.Image], side: int) -> Image.Image:
  width, height = images[0].size
  sheet = Image.new("RGB", (side * width, side * height))
  for i, image in enumerate(images):
    sheet.paste(image, (i % side * width, i // side * height))
  return sheet
