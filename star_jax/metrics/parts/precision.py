"""--what=precision: the model in bfloat16 against float32, per scale."""

from __future__ import annotations

import jax
import numpy as np

from star_jax.metrics.context import Context
from star_jax.metrics.precision import compare_dtypes
from star_jax.metrics.report import Result
from star_jax.model.star import Star


def run(ctx: Context) -> Result:
  """Teacher-forced on held-out scenes; top-1 and KL per token."""
  c = ctx.config
  n = -(-min(c.precision.n, c.n) // c.batch_size) * c.batch_size
  generator = ctx.scenes("heldout")
  scenes = [generator.scene(i) for i in range(n)]
  _, tokens = ctx.reconstruct(np.stack([generator.render(s) for s in scenes]))
  agreement = compare_dtypes(
    Star(ctx.bundle.star_config),
    ctx.vqvae,
    jax.device_put(ctx.bundle.params),
    tokens,
    ctx.pipeline.text_encoder.encode([s.caption for s in scenes]),
    dtype=c.precision.dtype,
    batch_size=c.batch_size,
  )
  schedule = ctx.bundle.star_config.schedule
  values = {
    "n": n,
    "dtype": c.precision.dtype,
    "scales": agreement.per_scale(schedule.begin_ends),
    "all": agreement.per_scale([(0, schedule.num_tokens)])[0],
  }
  names = [f"scale {h} x {w}" for h, w in schedule.grids]
  rows = [
    (name, f"{s['kl']:.5f} nats", f"top-1 agrees {100 * s['top1']:.2f}%")
    for name, s in zip(
      [*names, "all tokens"], [*values["scales"], values["all"]]
    )
  ]
  return Result(values, rows)
