"""Times a bundle on this machine, or what a config of configs/benchmark says.

  python launch/benchmark.py --ckpt=DIR --out=results/benchmark
  python launch/benchmark.py --config=configs/benchmark/authors_sampling.py \
    --official_code=VAR --out=results/authors_sampling

The first prints a markdown table and writes benchmark.md and benchmark.json:
sampling, training step, memory, compile. Every figure is the median of
--repeats runs after compilation; compile times are those of a process without
compilation cache. The training step is that of configs/star_scenes64.py: its
optimizer and, for a model of its schedule, its share of the tokens.

`--compare=A.json,B.json` puts two files of results side by side and warns where
they come from different machines.

The second runs the cases of a config: beside the authors' code in turns
(benchmarks/README.md: how to get it), by parts of the sampler (parts.py),
next-scale prediction beside raster order (complexity.py), or a tokenizer's
training step with and without its discriminator (tokenizer_step.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags
from ml_collections import config_flags

from star_jax.cli import run_main
from star_jax.large_pages import restart_with_large_pages

_CKPT = flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
_BATCHES = flags.DEFINE_list("batches", ["1", "4", "16"], "Sampler batches.")
_ATTENTION = flags.DEFINE_string(
  "attention", "auto", "xla, splash (TPU), cudnn (GPU), or auto."
)
_TRAIN_BATCH = flags.DEFINE_integer("train_batch", 32, "Training batch.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs per figure.", 1)
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Cases, see configs/benchmark; without it a bundle is timed."
)
_CODE = flags.DEFINE_string(
  "official_code", None, "Folder of the authors' VAR."
)
_COMPARE = flags.DEFINE_list(
  "compare", None, "Two files of results; nothing is timed."
)
_OUT = flags.DEFINE_string("out", "results/benchmark", "Folder for results.")


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
  if _COMPARE.value is not None:
    from star_jax.metrics.compare_results import compare_files

    if len(_COMPARE.value) != 2:
      raise ValueError(
        f"--compare takes two files, A.json,B.json, got {_COMPARE.value}."
      )
    print(compare_files(*map(Path, _COMPARE.value)))
    return
  if _CONFIG.value is not None:
    from star_jax.metrics.benchmark_configs import run_config

    code = Path(_CODE.value) if _CODE.value else None
    print(run_config(_CONFIG.value, Path(_OUT.value), code))
    return
  from configs import common, star_scenes64
  from star_jax.bundle import load_bundle
  from star_jax.metrics.benchmark import benchmark, to_markdown, to_whole
  from star_jax.metrics.report import write_json
  from star_jax.scales import ScaleSchedule
  from star_jax.train.optimizer import build_optimizer
  from star_jax.train.token_drop import TokenDrop

  batches = [to_whole("--batches", b) for b in _BATCHES.value]
  bundle, recipe = load_bundle(_CKPT.value), star_scenes64.get_config()
  schedule = ScaleSchedule.from_patch_nums(recipe.model.schedule)
  same = bundle.tokenizer_config.schedule == schedule
  drop = recipe.token_drop if same else common.token_drop()
  result = benchmark(
    bundle.with_attention(_ATTENTION.value),
    batches=batches,
    train_batch=_TRAIN_BATCH.value,
    optimizer=build_optimizer(recipe.optimizer, num_steps=1000),
    token_drop=TokenDrop(**drop),
    repeats=_REPEATS.value,
  )
  text = to_markdown(result)
  folder = Path(_OUT.value)
  write_json(folder / "benchmark.json", result)
  (folder / "benchmark.md").write_text(text + "\n", encoding="utf-8")
  print(text)


if __name__ == "__main__":
  restart_with_large_pages()
  run_main(main)
