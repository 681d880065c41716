"""How fast products of few and many rows are, beside PyTorch's where it is.

  python -m star_jax.metrics.product_speed --width=1024 --layers=8

Products with the weights of an MLP, layer after layer: in a scan over stacked
weights, as the model runs them; with the weights of each layer in arrays of
their own, which a program of unrolled layers would have and which saves the
copy of a layer's weights out of the stack; and in PyTorch. What lies between
the columns is what the small scales of a sampler on a CPU lose.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.metrics.report import table

ROWS = (2, 8, 18, 32, 50, 72, 128, 200, 338, 512, 2048)
HEADER = ("rows", "in a scan", "arrays of their own", "PyTorch")


def ways(
  fc1: np.ndarray, fc2: np.ndarray, rows: int
) -> dict[str, Callable[[], object]]:
  """A call for each column, by its name.

  Args:
    fc1, fc2: float32 [layers, C, 4 C] and [layers, 4 C, C].
    rows: of the input.
  """
  x = jnp.ones((rows, fc1.shape[1]))
  stacked = jnp.asarray(fc1), jnp.asarray(fc2)
  own = [(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(fc1, fc2)]

  @jax.jit
  def scanned(x, weights):
    def layer(x, w):
      return jnp.tanh(x @ w[0]) @ w[1], None

    return jax.lax.scan(layer, x, weights)[0]

  @jax.jit
  def unrolled(x, weights):
    for first, second in weights:
      x = jnp.tanh(x @ first) @ second
    return x

  found = {
    HEADER[1]: lambda: jax.block_until_ready(scanned(x, stacked)),
    HEADER[2]: lambda: jax.block_until_ready(unrolled(x, own)),
  }
  try:
    import torch
  except ImportError:
    return found
  theirs = [
    [torch.from_numpy(w.T.copy()) for w in pair] for pair in zip(fc1, fc2)
  ]
  ones = torch.ones(x.shape)

  def run():
    linear, y = torch.nn.functional.linear, ones
    with torch.inference_mode():
      for first, second in theirs:
        y = linear(torch.tanh(linear(y, first)), second)
    return y

  return {**found, HEADER[3]: run}


def measure(
  width: int, layers: int, rows: Sequence[int], repeats: int
) -> list[dict[str, float]]:
  """Median seconds a layer of every way, in turns; a dict a number of rows."""
  rng = np.random.default_rng(0)
  shapes = (layers, width, 4 * width), (layers, 4 * width, width)
  weights = [0.02 * rng.standard_normal(s, dtype=np.float32) for s in shapes]
  found = []
  for count in rows:
    calls = ways(*weights, count)
    times = {name: [] for name in calls}
    for number in range(repeats + 1):
      for name, call in calls.items():
        start = time.perf_counter()
        call()
        if number:
          times[name].append((time.perf_counter() - start) / layers)
    found.append({n: statistics.median(t) for n, t in times.items()})
  return found


def to_markdown(
  width: int, rows: Sequence[int], found: Sequence[dict[str, float]]
) -> str:
  """Milliseconds and GFLOP/s."""

  def cell(seconds: float | None, count: int) -> str:
    if seconds is None:
      return "-"
    rate = 16 * count * width**2 / seconds / 1e9
    return f"{1e3 * seconds:.1f} ms, {rate:.0f} GFLOP/s"

  return table(
    [
      (count, *(cell(times.get(name), count) for name in HEADER[1:]))
      for count, times in zip(rows, found)
    ],
    HEADER,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--layers", type=int, default=8)
  parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
  parser.add_argument("--repeats", type=int, default=9)
  args = parser.parse_args()
  found = measure(args.width, args.layers, args.rows, args.repeats)
  print(to_markdown(args.width, args.rows, found))


if __name__ == "__main__":
  main()
