"""What drawing a picture costs: FLOPs, steps in a row, seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from star_jax.api import StarPipeline
from star_jax.bundle import load_bundle
from star_jax.model.star import Star
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.flops import count_flops

PROMPT = "a red heart"


def sampling_costs(
  rows: Mapping[str, tuple[Path, Mapping[str, Any]]],
  *,
  batch: int,
  repeats: int,
) -> dict[str, dict[str, float]]:
  """Costs of several models, timed in turn so that all see the same machine.

  Args:
    rows: name -> bundle and sampling knobs; guidance doubles the rows of the
      model's batch.
    batch: pictures drawn at once.
    repeats: timed rounds after one that is not counted.

  Returns:
    name -> gflop and seconds a picture (median), and steps, the number of
    passes through the transformer that cannot run side by side.
  """
  calls, out = {}, {}
  for name, (path, draw) in rows.items():
    calls[name], out[name] = _prepare(path, draw, batch)
  times: dict[str, list[float]] = {name: [] for name in rows}
  for _ in range(repeats + 1):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(time.perf_counter() - start)
  for name in rows:
    out[name]["seconds"] = statistics.median(times[name][1:]) / batch
  return out


def _prepare(path: Path, draw: Mapping[str, Any], batch: int):
  """A call that draws one batch, and what is known before it runs."""
  bundle = load_bundle(path)
  guided = draw["cfg_scale"] > 0
  sampler = build_sampler(
    Star(bundle.star_config),
    VQVAE(bundle.tokenizer_config),
    SamplerConfig(guided=guided),
  )
  encoder = StarPipeline(bundle).condition_encoder
  knobs = Knobs(
    cfg_scale=np.float32(draw["cfg_scale"]),
    top_k=np.int32(draw["top_k"]),
    top_p=np.float32(draw["top_p"]),
  )
  args = (
    jax.device_put(bundle.params),
    encoder.encode([PROMPT] * batch),
    encoder.null(),
    sample_keys(0, np.arange(batch)),
    knobs,
  )
  schedule = bundle.star_config.schedule
  one_by_one = bundle.star_config.prediction == "token"
  facts = {
    "gflop": count_flops(sampler, *args) / batch / 1e9,
    "steps": schedule.num_tokens if one_by_one else schedule.num_scales,
  }
  return (lambda: sampler(*args)), facts
