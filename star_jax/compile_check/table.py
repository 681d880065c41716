"""The table in docs/targets.md: every preset on every target.

  python -m star_jax.compile_check.table --runs=runs/targets \
    --write=docs/targets.md

compiles what is not in the folder yet, one program after the other, each by
launch/compile_check.py in a process of its own, and writes the table of all
that is there, and what is missing. A program may take an hour: it can be
stopped at any time and goes on with the next one. --only=v5p takes the targets
and models of that name, --only=none compiles nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import star_jax
from star_jax.compile_check import records
from star_jax.compile_check.memory import USABLE

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COMMAND = Path(star_jax.__file__).parents[1] / "launch" / "compile_check.py"
# Slices and cards, and pictures of a part of the mesh by the side of a picture;
# the first come first.
_TARGETS = ("v5e:16x16", "v5p:4x4x4", "a100", "h100", "v6e:16x16")
_PICTURES = {256: 8, 512: 2, 1024: 1}
# Those with memory for four times as many (1024 px: the official batch of 64),
# and for what products with weights put out.
_MORE_PICTURES, _KEEP_PRODUCTS = ("v5p",), ("v5p", "v6e")
_256, _512, _1024 = (f"configs/star_{side}.py" for side in _PICTURES)
# Name in configs/presets.py: config of its training.
_MODELS = {
  "star_d30_1024": _1024,
  "star_d30": f"{_256}:d30",
  "star_d30_512": _512,
  "star_d16": _256,
  "var_d30": _256,
  "var_d16": _256,
  "var_d36": _512,
  "var_d24": _256,
  "var_d20": _256,
}
_HEADER = (
  "model", "what", "target", "mesh", "remat", "batch", "peak", "of memory",
  "fits a batch part", "TFLOP", "to formula", "roofline", "bound",
  "collectives alone", "MFU at most", "largest all-gather",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
  """One call of the command.

  Attributes:
    model: a name in configs/presets.py.
    config: of its training.
    target: as the command has it.
    mesh: sizes of the axes.
    parts: that the mesh cuts a batch into.
    pictures: of each part.
    remat: of its layers.
  """

  model: str
  config: str
  target: str
  mesh: tuple[tuple[str, int], ...] = ()
  parts: int = 1
  pictures: int = 1
  remat: str = "attention"

  @property
  def name(self) -> str:
    return f"{self.model}_{self.target.replace(':', '-')}"

  def command(self, folder: Path) -> list[str]:
    """One batch: a second one would double hours of compilation."""
    axes = [f"--config.mesh.{axis}={size}" for axis, size in self.mesh]
    return [
      sys.executable,
      str(COMMAND),
      f"--config={self.config}",
      f"--preset={self.model}",
      f"--target={self.target}",
      f"--batch={self.parts * self.pictures}",
      f"--remat={self.remat}",
      f"--out={folder}",
      *axes,
    ]


def jobs() -> list[Job]:
  """Every published model on every target.

  Parameters are cut over 16 devices, which divides a width of 1920 into whole
  tiles; at 1024 px four devices share the tokens of a picture on the slices of
  256 chips, since the official batch is 64.
  """
  found = []
  for (model, config), target in itertools.product(_MODELS.items(), _TARGETS):
    side = next(n for n in _PICTURES if f"star_{n}.py" in config)
    mesh, parts = (), 1
    if ":" in target:
      shared = 4 if side == 1024 and target.endswith("16x16") else 1
      chips = 256 if target.endswith("16x16") else 64
      mesh = (("fsdp", 16), ("sequence", shared))
      parts = chips // shared
    pictures = _PICTURES[side]
    if target.startswith(_MORE_PICTURES) and side < 1024:
      pictures *= 4
    remat = "dots" if target.startswith(_KEEP_PRODUCTS) else "attention"
    found.append(Job(model, config, target, mesh, parts, pictures, remat))
  return found


def fill(folder: Path, wanted: Iterable[Job]) -> None:
  """Runs what has not ended yet; the output of each is kept beside it."""
  folder.mkdir(parents=True, exist_ok=True)
  for job in wanted:
    log = folder / f"{job.name}.md"
    if log.exists():
      continue
    print(f"{job.name} …", flush=True)
    ran = subprocess.run(
      job.command(folder), capture_output=True, text=True, check=False
    )
    # 1: a limit is exceeded, which the table says too.
    if ran.returncode in (0, 1):
      log.write_text(ran.stdout, "utf-8")
    else:
      print(ran.stderr.strip().splitlines()[-1], file=sys.stderr, flush=True)


def rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
  """A row a program and mesh, at the largest batch that was compiled."""

  def key(record):
    mesh = ", ".join(f"{k}={n}" for k, n in record["mesh"].items())
    names = (record[k] for k in ("model", "what", "target"))
    return *names, mesh or "-", record["remat"] or "-"

  out = []
  for names, group in itertools.groupby(sorted(found, key=key), key):
    batches = sorted(group, key=lambda record: record["batch"])
    out.append((*names, *_cells(batches)))
  return out


def _cells(batches: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  last = batches[-1]
  memory, bounds = last["memory"], last["bounds"]

  def share(value: float | None, form: str = ".1%") -> str:
    return "-" if value is None else format(value, form)

  gathered = bounds["largest_all_gather"]
  exposed = bounds["exposed"] / bounds["seconds"] if bounds["counted"] else None
  flops = bounds["flops"] if bounds["counted"] else bounds["traced_flops"]
  return (
    str(last["batch"]),
    f"{memory['peak'] / 1e9:.2f} GB",
    f"{memory['peak'] / memory['of']:.0%}",
    fitting(batches),
    f"{flops / 1e12:.2f}",
    share(bounds["excess"], "+.1%"),
    f"{1e3 * bounds['seconds']:.1f} ms",
    bounds["bound"],
    share(exposed),
    share(bounds["mfu"]),
    f"{gathered['size'] / 1e6:.0f} MB" if gathered else "-",
  )


def fitting(batches: Sequence[Mapping[str, Any]]) -> str:
  """Pictures of one part of the mesh within USABLE of the memory, by the line
  through the smallest and the largest batch.

  Of one batch alone the arguments are known and all else is taken to grow with
  the batch. A part of it does not: more pictures than were compiled are at
  least so many (">="), fewer at most ("<=").
  """
  first, last = batches[0], batches[-1]
  parts, memory = last["parts"], last["memory"]
  one, two = (x["batch"] / parts for x in (first, last))
  if one == two:
    slope = (memory["peak"] - memory["arguments"] - memory["unread"]) / two
  else:
    slope = (memory["peak"] - first["memory"]["peak"]) / (two - one)
  if slope <= 0:
    return "-"
  most = int(two + (USABLE * memory["of"] - memory["peak"]) / slope)
  if one < two:
    return str(most)
  return f"{'>=' if most >= two else '<='} {most}"


def missing(
  found: Sequence[Mapping[str, Any]], wanted: Iterable[Job]
) -> list[str]:
  """Lines of markdown that name the jobs without a row, by target."""
  have = {(record["model"], record["target"]) for record in found}
  left: dict[str, list[str]] = {}
  for job in wanted:
    if (job.model, job.target) not in have:
      left.setdefault(job.target, []).append(job.model)
  return [f"- {target}: {', '.join(names)}" for target, names in left.items()]


def write(
  path: Path, found: Sequence[Mapping[str, Any]], wanted: Iterable[Job] = ()
) -> None:
  """Puts the table, and what is missing of it, between its two marks in a file.

  Raises:
    ValueError: the file has no such marks.
  """
  text = path.read_text("utf-8")
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise ValueError(f"{path} has no place for a table: {BEGIN} and {END}.")
  lines = [_HEADER, ["---"] * len(_HEADER), *rows(found)]
  table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
  if left := missing(found, wanted):
    table += "\n\n" + "\n".join(["Not compiled yet:", "", *left])
  path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--runs", type=Path, default=Path("runs/targets"))
  parser.add_argument("--write", type=Path)
  parser.add_argument("--only", default="", help="part of model or target")
  args = parser.parse_args(argv)
  fill(args.runs, [job for job in jobs() if args.only in job.name])
  if args.write:
    write(args.write, records.read(args.runs), jobs())


if __name__ == "__main__":
  main()
