"""How many pictures a second, over batch, resolution, dtype and backend.

Every case is one compiled program, warmed up, timed as a whole and waited for.
Beside it stands the rate of one large matrix product on the same machine in the
same process: the limit that products with weights can come near to.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.metrics.benchmark import peak_bytes, repeated_seconds
from star_jax.metrics.report import table
from star_jax.metrics.versus.case import DECODE, SAMPLE, Case
from star_jax.metrics.versus.ours import Ours
from star_jax.model.attention_backends import choose, platform_here
from star_jax.sampling.memory import tree_bytes
from star_jax.train.flops import count_flops

# Side of the product that gives the machine's peak.
PEAK_SIDE = 2048
HEADER = (
  "case", "attention", "seconds (smallest to largest)", "pictures/s", "TFLOP",
  "GFLOP/s", "of the peak", "weights read", "memory", "first call",
)  # fmt: skip


def matmul_peak(dtype: str, repeats: int) -> float:
  """FLOP/s of the fastest of `repeats` large products of that dtype."""
  x = jnp.ones((PEAK_SIDE, PEAK_SIDE), dtype)
  product = jax.jit(lambda x: x @ x)
  times = repeated_seconds(lambda: product(x), repeats)
  return 2 * PEAK_SIDE**3 / min(times)


def measure(case: Case, repeats: int, say=print) -> dict[str, Any]:
  """One case; JSON-able.

  Args:
    case: what to do, with which model, dtype and attention.
    repeats: calls that count, after one that does not.
    say: where progress goes.
  """
  start = time.perf_counter()
  ours = Ours(case, Path())
  jax.block_until_ready(ours.run())
  first = time.perf_counter() - start
  times = repeated_seconds(ours.run, repeats)
  median = statistics.median(times)
  flops = count_flops(ours.program, *ours.arguments)
  say(f"{case.name}: {median:.3f} s")
  return {
    "case": dataclasses.asdict(case),
    "attention": choose(case.star.attention, platform_here(), case.star),
    "seconds": times,
    "median": median,
    "pictures_per_second": case.batch / median,
    "flops": flops,
    "peak": flops / median / matmul_peak(case.dtype, repeats),
    "weight_bytes": _weight_bytes(case, ours.params),
    "peak_bytes": peak_bytes(),
    "first_call_seconds": first,
  }


def _weight_bytes(case: Case, params: Mapping[str, Any]) -> int:
  """What has to be read at least: the transformer once a scale, or once a step;
  the decoder once."""
  if case.what == DECODE:
    return tree_bytes(params["tokenizer"]["decoder"])
  passes = case.star.schedule.num_scales if case.what == SAMPLE else 1
  return passes * tree_bytes(params["star"])


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
  """A row a case."""
  rows = [
    (
      found["case"]["name"],
      found["attention"],
      f"{found['median']:.3f} ({min(found['seconds']):.3f} to"
      f" {max(found['seconds']):.3f})",
      f"{found['pictures_per_second']:.2f}",
      f"{found['flops'] / 1e12:.3f}",
      f"{found['flops'] / found['median'] / 1e9:.0f}",
      f"{found['peak']:.0%}",
      f"{found['weight_bytes'] / 1e9:.2f} GB",
      f"{found['peak_bytes'] / 1e9:.1f} GB",
      f"{found['first_call_seconds']:.0f} s",
    )
    for found in results
  ]
  return table(rows, HEADER)


def draw_figure(results: Sequence[Mapping[str, Any]], path: Path) -> None:
  """Pictures a second against the batch, a line for each program."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, panel = pyplot.subplots(figsize=(5.5, 3.8))
  lines: dict[str, list[tuple[int, float]]] = {}
  for found in results:
    name = found["case"]["name"].rsplit(", batch", 1)[0]
    lines.setdefault(name, []).append(
      (found["case"]["batch"], found["pictures_per_second"])
    )
  for name, points in lines.items():
    panel.plot(*zip(*sorted(points)), marker="o", label=name)
  panel.set_xscale("log", base=2)
  panel.set_yscale("log")
  panel.set_xlabel("batch")
  panel.set_ylabel("pictures a second")
  panel.legend(fontsize=7)
  panel.grid(alpha=0.3)
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)
