"""What a training step of a tokenizer costs, by what its objective asks.

The steps are those of launch/train.py, optimizer and average included, from the
one on at which the discriminator comes in. All programs stay warm; a round runs
one after the other, so that a slower minute of the machine meets all of them.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from star_jax.metrics.report import table
from star_jax.train.flops import count_flops
from star_jax.train.optimizer import run_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import train_step
from star_jax.train.tokenizer_task import TokenizerTask

HEADER = (
  "objective", "seconds (smallest to largest)", "images/s", "GFLOP", "GFLOP/s",
  "share of what is new", "first call",
)  # fmt: skip


class Step:
  """A program and the state that it moves.

  Attributes:
    flops: of one call.
  """

  def __init__(self, config: ConfigDict):
    task, optimizer = TokenizerTask(config), run_optimizer(config)
    key, begin = jax.random.key(config.seed), config.adversary.start
    create = jax.jit(lambda key: create_state(task, optimizer, key))
    self._state = create(key).replace(step=jnp.int32(begin))
    batch = next(task.train_batches())
    self._rest = jax.device_put((task.frozen, batch, key))
    self._program = functools.partial(
      train_step,
      loss_fn=task.loss_at(begin),
      optimizer=optimizer,
      accumulate=config.accumulate,
    )
    self.flops = count_flops(self._program, self._state, *self._rest)

  def run(self) -> float:
    """Seconds of one step, waited for."""
    start = time.perf_counter()
    out = self._program(self._state, *self._rest)
    jax.block_until_ready(out)
    seconds = time.perf_counter() - start
    self._state, _ = out
    return seconds


def measure(config: ConfigDict, say=print) -> dict[str, Any]:
  """All cases in turns; JSON-able.

  Args:
    config: configs/benchmark/tokenizer_step.py. Each case but the first adds to
      the one before it.
    say: where progress goes.
  """
  steps, first = {}, {}
  for case in config.cases:
    run = config.training.copy_and_resolve_references()
    run.update_from_flattened_dict(case["changes"])
    step = Step(run)
    steps[case["name"]], first[case["name"]] = step, step.run()
    say(f"{case['name']}: first call {first[case['name']]:.1f} s")
  seconds = {name: [] for name in steps}
  for number in range(config.rounds):
    for name, step in steps.items():
      seconds[name].append(step.run())
    last = ", ".join(f"{n} {t[-1]:.3f} s" for n, t in seconds.items())
    say(f"round {number + 1} of {config.rounds}: {last}")
  return {
    "batch": config.training.batch_size,
    "image_size": list(config.training.data_options.size),
    "cases": {
      name: {
        "seconds": times,
        "median": statistics.median(times),
        "images_per_second": (
          config.training.batch_size / statistics.median(times)
        ),
        "flops": steps[name].flops,
        "first_call_seconds": first[name],
      }
      for name, times in seconds.items()
    },
    "shares": added_shares(seconds),
  }


def added_shares(seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
  """Of every case but the first: what it adds to the one before it, as a share
  of its own step, in every round."""
  names = list(seconds)
  return {
    name: [1 - a / b for a, b in zip(seconds[before], seconds[name])]
    for before, name in itertools.pairwise(names)
  }


def to_markdown(found: Mapping[str, Any]) -> str:
  """A row a case, and under the table the share of the last addition."""
  rows = []
  for name, case in found["cases"].items():
    shares = found["shares"].get(name)
    rows.append(
      (
        name,
        f"{case['median']:.3f} ({min(case['seconds']):.3f} to"
        f" {max(case['seconds']):.3f})",
        f"{case['images_per_second']:.1f}",
        f"{case['flops'] / 1e9:.2f}",
        f"{case['flops'] / case['median'] / 1e9:.0f}",
        _share(shares) if shares else "-",
        f"{case['first_call_seconds']:.0f} s",
      )
    )
  height, width = found["image_size"]
  head = f"batch {found['batch']}, {height} x {width} px"
  *_, (name, shares) = found["shares"].items()
  last = f"Share of the step that the {name} takes: {_share(shares)}."
  return f"{head}\n\n{table(rows, HEADER)}\n\n{last}"


def _share(shares: list[float]) -> str:
  middle = statistics.median(shares)
  return f"{middle:.0%} ({min(shares):.0%} to {max(shares):.0%})"
