"""Measures a model, or any pictures: distances, likelihood, prompt following.

  python launch/evaluate.py --what=tokenizer --ckpt=DIR --out=results/x
  python launch/evaluate.py --what=all --n=1000
  python launch/evaluate.py --what=distribution --best_of=4 --n=1000
  python launch/evaluate.py --images=FOLDER --reference=FOLDER_OR_NPZ
  python launch/evaluate.py --export=geneval --prompts=FILE --out=FOLDER
  python launch/evaluate.py --rate=imagereward --images=FOLDER --prompts=FILE
  python launch/evaluate.py --report=results/a,results/b --out=results/report

Prints a table for each part and writes <part>.json and pictures to --out. A
part whose result is already there with the same bundle and settings is kept;
one that was stopped goes on. docs/evaluation.md states the protocol.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags
from ml_collections import config_flags

from star_jax.cli import run_main

_DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs/evaluate.py"
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Settings of all parts, configs/evaluate.py if absent; single ones change"
  " with --config.scenes.num_ceiling=50.",
)
_WHAT = flags.DEFINE_string(
  "what",
  "all",
  "tokenizer, precision, scenes, icons, copy, ranking (several with commas)"
  " or all of these; likelihood (bits an image and a scale), alignment (scenes"
  " by three seeds), distribution (drawn against real pictures); shapes, for a"
  " model that draws every ratio; refinement, for one with a refinement head.",
)
_CKPT = flags.DEFINE_string("ckpt", None, "Bundle; the shipped one if absent.")
_N = flags.DEFINE_integer("n", None, "Pictures to measure on, where counted.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of prompts and samples.")
_CEILING = flags.DEFINE_string(
  "ceiling", None, "Bundle of a continuous autoencoder, for --what=tokenizer."
)
_OUT = flags.DEFINE_string("out", "results/evaluate", "Folder for results.")
_REDO = flags.DEFINE_boolean("redo", False, "Measure what is there again.")
_BEST_OF = flags.DEFINE_integer(
  "best_of", None, "Draw so many pictures a prompt and keep the best."
)
_SCORE = flags.DEFINE_string(
  "score",
  None,
  "What is best: scene, classifier, clip, aesthetic or imagereward.",
)
_IMAGES = flags.DEFINE_string(
  "images", None, "Compare these pictures instead of a model: folder or .npz."
)
_REFERENCE = flags.DEFINE_string(
  "reference", None, "With --images: folder, .npz of pictures or statistics."
)
_NAME = flags.DEFINE_string("name", "", "With --images: name of the result.")
_PER_CATEGORY = flags.DEFINE_boolean(
  "per_category", False, "With --images: subfolders apart too, as MJHQ-30K."
)
_EXPORT = flags.DEFINE_string(
  "export", None, "Draw for a benchmark: geneval, dpg, imagereward or mjhq."
)
_RATE = flags.DEFINE_list(
  "rate",
  None,
  "Score the pictures of --images with their prompts: clip, aesthetic,"
  " imagereward (several with commas).",
)
_LAYOUT = flags.DEFINE_string(
  "layout",
  "imagereward",
  "With --rate: the --export that the pictures lie as, not dpg.",
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, "With --export and --rate: the benchmark's own prompts."
)
_PER_PROMPT = flags.DEFINE_integer(
  "per_prompt", None, "With --prompts: pictures a prompt, if not the usual."
)
_REPORT = flags.DEFINE_list(
  "report", None, "Draw tables and figures from these results instead."
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
  if _REPORT.value:
    from star_jax.evaluation.exhibits import write_report

    write_report(_REPORT.value, _OUT.value)
    return
  from star_jax.bundle import load_bundle
  from star_jax.compilation import use_compilation_cache

  use_compilation_cache()
  config = _config()
  if _RATE.value:
    rate(config)
    return
  if _IMAGES.value:
    compare_pictures(config)
    return
  bundle = load_bundle(_CKPT.value)
  print(f"bundle {bundle.path} ({bundle.hash}), n {config.n}")
  if _EXPORT.value:
    export_pictures(bundle, config)
    return
  from star_jax.metrics.evaluate import evaluate

  evaluate(_WHAT.value, bundle, config, _OUT.value, redo=_REDO.value)


def _config():
  """The config with what single flags say."""
  config = _CONFIG.value
  for name, flag in (("n", _N), ("seed", _SEED)):
    if flag.value is not None:
      config[name] = flag.value
  for name, flag in (("n", _BEST_OF), ("score", _SCORE)):
    if flag.value is not None:
      config.best_of[name] = flag.value
  if _CEILING.value is not None:
    config.tokenizer.ceiling = _CEILING.value
  return config


def compare_pictures(config) -> None:
  from star_jax.evaluation.command import evaluate_pictures

  if not _REFERENCE.value:
    raise ValueError(
      "--images is compared with --reference: a folder of real pictures, or a"
      " .npz of pictures or statistics."
    )
  evaluate_pictures(
    _IMAGES.value,
    _REFERENCE.value,
    config.pictures,
    _OUT.value,
    name=_NAME.value,
    per_category=_PER_CATEGORY.value,
  )


def rate(config) -> None:
  from star_jax.evaluation.ratings import rate_pictures

  if not _IMAGES.value or not _PROMPTS.value:
    raise ValueError(
      "--rate needs --images, a folder of pictures, and --prompts, what they"
      " were drawn from."
    )
  rate_pictures(
    _RATE.value,
    config,
    _IMAGES.value,
    _PROMPTS.value,
    _OUT.value,
    layout=_LAYOUT.value,
    per_prompt=_PER_PROMPT.value,
    limit=_N.value,
    name=_NAME.value,
  )


def export_pictures(bundle, config) -> None:
  from star_jax.evaluation.exports import export
  from star_jax.metrics.context import Context

  if not _PROMPTS.value:
    raise ValueError(f"--export={_EXPORT.value} needs --prompts, its prompts.")
  drawn = export(
    _EXPORT.value,
    Context(bundle, config, Path(_OUT.value)).pipeline,
    _PROMPTS.value,
    _OUT.value,
    per_prompt=_PER_PROMPT.value,
    seed=config.seed,
    batch=config.batch_size,
    settings=config.sampling.to_dict(),
    limit=_N.value,
  )
  print(f"{drawn} prompts drawn to {_OUT.value}")


def with_config(argv: list[str]) -> list[str]:
  """The arguments with --config at its default where it is not given.

  A default of the flag itself would be read while this file is imported, and
  an unknown key would end in a traceback.
  """
  if any(arg.lstrip("-").split("=")[0] == "config" for arg in argv[1:]):
    return argv
  return [argv[0], f"--config={_DEFAULT_CONFIG}", *argv[1:]]


if __name__ == "__main__":
  sys.argv = with_config(sys.argv)
  run_main(main)
