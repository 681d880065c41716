"""Pictures a second over batch, resolution, dtype and attention backend.

Command:
  python launch/benchmark.py --config=configs/benchmark/throughput.py \
    --out=results/throughput

Time: about ten minutes on two cores. Result: docs/performance.md. On a GPU or
TPU take `--config=configs/benchmark/throughput.py:d16`, which samples with the
published sizes in bfloat16, with plain products and with the chip's kernel.
"""

from __future__ import annotations

from ml_collections import ConfigDict

SMALL = {"depth": 6, "width": 256, "heads": 4, "ch": 32}


def case(name: str, what: str, batch: int, **other) -> ConfigDict:
  return ConfigDict(
    dict(name=f"{name}, batch {batch}", what=what, batch=batch, **other)
  )


def get_config(arg: str | None = None) -> ConfigDict:
  c = ConfigDict()
  c.kind = "throughput"
  c.repeats = 5
  c.cases = _official() if arg == "d16" else _small()
  return c


def _small() -> tuple[ConfigDict, ...]:
  return (
    *(case("small, 256 px", "sample", n, **SMALL) for n in (1, 2, 4, 8)),
    case("small, 256 px, bfloat16", "sample", 1, dtype="bfloat16", **SMALL),
    case("small, 512 px", "sample", 1, schedule="512", **SMALL),
    case("small, training, 256 px", "train", 8, **SMALL),
    case("small, training, 512 px", "train", 2, schedule="512", **SMALL),
  )


def _official() -> tuple[ConfigDict, ...]:
  return tuple(
    case(
      f"VAR-d16, {attention}",
      "sample",
      batch,
      depth=16,
      dtype="bfloat16",
      attention=attention,
    )
    for attention in ("xla", "auto")
    for batch in (1, 4, 16, 64)
  )
