"""How fast a model samples and trains on this machine, and what it needs.

Compile times come from ahead-of-time compilation with no cache; run times are
medians over repeats, each waited for until its arrays are there.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.bundle import Bundle
from star_jax.metrics.report import table
from star_jax.model.attention_backends import choose, platform_here
from star_jax.model.star import Star
from star_jax.sampling.memory import check_batch, sampler_memory, tree_bytes
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from star_jax.teacher_forcing import teacher_forcing_input
from star_jax.text.states import TextStates
from star_jax.tokenizer.vqvae import VQVAE
from star_jax.train.losses import head_losses, next_scale_loss
from star_jax.train.optimizer import Optimizer
from star_jax.train.state import Skipped, TrainState
from star_jax.train.step import train_step
from star_jax.train.token_drop import TokenDrop


def to_whole(flag: str, text: str) -> int:
  """A positive integer from a flag's text.

  Raises:
    ValueError: it is not one.
  """
  if not text.strip().isdigit() or int(text) < 1:
    raise ValueError(f"{flag} takes positive whole numbers, got {text!r}.")
  return int(text)


def machine() -> dict[str, Any]:
  """What results are only comparable on."""
  return {
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "processor": platform.processor() or platform.machine(),
    "cores": os.cpu_count(),
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def benchmark(
  bundle: Bundle,
  *,
  batches: Sequence[int],
  train_batch: int,
  optimizer: Optimizer,
  token_drop: TokenDrop,
  repeats: int,
) -> dict[str, Any]:
  """All timings of a bundle; JSON-able.

  Args:
    bundle: with a model in it.
    batches: sizes the sampler is timed at (guidance on, as by default).
    train_batch: size of the training batch (cached tokens and text).
    optimizer: of the training step.
    token_drop: which tokens the training step leaves out.
    repeats: runs per figure; the median is given.

  Raises:
    ValueError: a bundle of a tokenizer alone.
  """
  if bundle.star_config is None:
    raise ValueError(
      f"The bundle {bundle.path} holds a tokenizer alone; nothing to sample."
    )
  count = sum(np.size(x) for x in jax.tree.leaves(bundle.params["star"]))
  return {
    "machine": machine(),
    "attention": choose(
      bundle.star_config.attention, platform_here(), bundle.star_config
    ),
    "bundle": bundle.hash,
    "parameters": int(count),
    "image_size": list(bundle.tokenizer_config.image_size),
    "repeats": repeats,
    "sampling": [_time_sampler(bundle, b, repeats) for b in batches],
    "training": _time_training(
      bundle, optimizer, token_drop, train_batch, repeats
    ),
  }


def to_markdown(result: dict[str, Any]) -> str:
  """The figures as a table, the machine above it."""
  rows = [
    (
      f"sampling, batch {s['batch']}",
      f"{s['images_per_second']:.2f} images/s",
      f"{s['seconds']:.3f} s",
      f"{s['compile_seconds']:.1f} s",
      _memory(s),
    )
    for s in result["sampling"]
  ]
  t = result["training"]
  rows.append(
    (
      f"training step, batch {t['batch']}, {t['tokens']} tokens",
      f"{t['steps_per_second']:.2f} steps/s",
      f"{t['seconds']:.3f} s",
      f"{t['compile_seconds']:.1f} s",
      _memory(t),
    )
  )
  machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
  head = (
    f"{result['parameters'] / 1e6:.1f}M parameters,"
    f" {result['image_size'][0]} x {result['image_size'][1]} px; {machine};"
    f" attention {result['attention']}; medians of {result['repeats']}"
  )
  header = ("what", "speed", "time", "compile", "memory (peak; temporaries)")
  return f"{head}\n\n{table(rows, header)}"


def _memory(entry: dict[str, Any]) -> str:
  temporary = entry["temporary_bytes"]
  text = "-" if temporary is None else f"{temporary / 2**20:.0f} MiB"
  return f"{entry['peak_bytes'] / 2**20:.0f} MiB; {text}"


def peak_bytes() -> int:
  """Most memory used so far: of the device, on CPU of this process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return int(stats["peak_bytes_in_use"])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def _compile(jitted, *args, **kwargs) -> tuple[Any, dict[str, Any]]:
  """The compiled program with its compile time and temporaries."""
  lowered = jitted.lower(*args, **kwargs)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  analysis = compiled.memory_analysis()
  temporary = getattr(analysis, "temp_size_in_bytes", None)
  return compiled, {"compile_seconds": seconds, "temporary_bytes": temporary}


def repeated_seconds(run: Callable[[], Any], repeats: int) -> list[float]:
  """Of `repeats` runs, after one that is not counted."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - start)
  return times


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
  """The median of `repeated_seconds`."""
  return statistics.median(repeated_seconds(run, repeats))


def _text(batch: int, tokens: int, width: int) -> TextStates:
  """Text states of the right shapes; their values do not matter here."""
  rng = np.random.default_rng(0)
  return TextStates(
    text_BTD=rng.standard_normal((batch, tokens, width), np.float32),
    text_mask_BT=np.ones((batch, tokens), bool),
    pooled_BD=rng.standard_normal((batch, width), np.float32),
  )


def _time_sampler(bundle: Bundle, batch: int, repeats: int) -> dict[str, Any]:
  star, vqvae = Star(bundle.star_config), VQVAE(bundle.tokenizer_config)
  shape = (bundle.text.max_tokens, bundle.star_config.text_dim)
  knobs = Knobs.of(bundle.sampling)
  args = (
    jax.device_put(bundle.params),
    _text(batch, *shape),
    _text(1, *shape),
    sample_keys(0, np.arange(batch)),
    knobs,
  )
  config = SamplerConfig()
  memory = sampler_memory(
    star.config,
    vqvae.config,
    config,
    parameters=tree_bytes(bundle.params),
    text_tokens=bundle.text.max_tokens,
    platform=jax.default_backend(),
  )
  check_batch(memory, batch, jax.devices()[0])
  sampler = build_sampler(star, vqvae, config)
  compiled, out = _compile(sampler, *args)
  seconds = median_seconds(lambda: compiled(*args), repeats)
  return {
    "batch": batch,
    "seconds": seconds,
    "images_per_second": batch / seconds,
    "peak_bytes": peak_bytes(),
    **out,
  }


def _time_training(
  bundle: Bundle,
  optimizer: Optimizer,
  token_drop: TokenDrop,
  batch: int,
  repeats: int,
) -> dict[str, Any]:
  """One step on cached tokens and text."""
  config = bundle.star_config
  star, vqvae = Star(config), VQVAE(bundle.tokenizer_config)
  rng = np.random.default_rng(0)
  tokens = (batch, config.schedule.num_tokens)
  data = {
    "idx": rng.integers(0, config.vocab_size, tokens).astype(np.int32),
    "text": _text(batch, bundle.text.max_tokens, config.text_dim),
  }
  frozen = {"quantizer": bundle.params["tokenizer"]["quantizer"]}

  def loss_fn(params, extra, frozen, batch, key, step):
    del step
    kept = token_drop.draw(config.schedule, batch["idx"], key)
    x_BLCv = teacher_forcing_input(config, vqvae, frozen, batch["idx"])
    logits_BLV = star.apply(
      {"params": params},
      x_BLCv,
      batch["text"],
      kept=kept if token_drop.way else None,
      deterministic=False,
      rngs={"drop_path": key},
    )
    idx_BL = jnp.take_along_axis(batch["idx"], kept.index_BL, axis=1)
    loss, metrics = next_scale_loss(
      logits_BLV,
      idx_BL,
      kept.lengths,
      kept.weight_BL,
      losses=head_losses(config),
    )
    return loss, (metrics, extra)

  params = jax.tree.map(jnp.array, bundle.params["star"])
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=Skipped.none(),
    params=params,
    ema_params=None,
    opt_state=optimizer.tx.init(params),
    extra={},
  )
  key = jax.random.key(0)
  compiled, out = _compile(
    train_step,
    state,
    frozen,
    data,
    key,
    loss_fn=loss_fn,
    optimizer=optimizer,
  )

  def run():
    nonlocal state
    state, metrics = compiled(state, frozen, data, key)
    return metrics

  seconds = median_seconds(run, repeats)
  return {
    "batch": batch,
    "tokens": sum(token_drop.lengths(config.schedule)),
    "seconds": seconds,
    "steps_per_second": 1 / seconds,
    "peak_bytes": peak_bytes(),
    **out,
  }
