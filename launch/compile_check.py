"""Compiles our programs for chips that are not here: memory, FLOPs, roofline.

  python launch/compile_check.py --config=configs/star_1024.py \
    --target=v5e:16x16 --config.mesh.fsdp=64 --config.mesh.sequence=4
  python launch/compile_check.py --what=sample --target=a100 --batch=1,4,8,max
  python launch/compile_check.py --what=layer --target=v5e
  python launch/compile_check.py --config=configs/tokenizer_256.py \
    --target=v5e:4x4 --config.mesh.fsdp=4

Nothing is run and no weight is drawn. TPU programs need the package libtpu,
GPU programs jax-cuda13-plugin and jax-cuda13-pjrt (pip install --no-deps, the
version of jax); no such chip is needed. A training step of the config is cut
over config.mesh. Exit status 1 says that a limit is exceeded: an all-gather
larger than the weights of one layer, more than 10% of the time with nothing but
collectives, more than 8% between FLOPs by formula and compiled (10% for a
sampler), an array of attention above 0.5 GiB per image and layer, with
--what=layer 1 GB of temporaries.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from star_jax.cli import run_main

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  "configs/star_1024.py",
  "Training config; keys change with --config.key=value.",
)
_PRESET = flags.DEFINE_string(
  "preset",
  None,
  "Model in configs/presets.py, or a .json file of settings, instead of the"
  " config's.",
)
_TARGET = flags.DEFINE_string(
  "target",
  "a100",
  "v5e, v5p, v6e (one chip), a slice such as v5e:16x16 or v5p:4x4x4, a100, h100"
  " or cpu.",
)
_WHAT = flags.DEFINE_enum(
  "what", "train", ["sample", "train", "layer"], "Which program."
)
_BATCH = flags.DEFINE_list(
  "batch",
  [],
  "Pictures at once over all devices; max looks for the largest that fits. By"
  " default the config's for training on a slice, else one a part of the mesh.",
)
_REMAT = flags.DEFINE_enum(
  "remat",
  None,
  ["none", "attention", "dots", "layer"],
  "Of the training step, instead of the model's.",
)
_OUT = flags.DEFINE_string("out", None, "Folder for the figures, as JSON.")
_REFINE = flags.DEFINE_string(
  "refine", "transformer_first", "Stable sampling: off, head or that."
)
_STORAGE = flags.DEFINE_enum(
  "storage", "float32", ["float32", "bfloat16"], "Parameters of the sampler."
)
_ONE_BY_ONE = flags.DEFINE_boolean(
  "decode_one_by_one", True, "The decoder sees one picture after the other."
)
_DECODER_DTYPE = flags.DEFINE_enum(
  "decoder_dtype", "float32", ["float32", "bfloat16"], "Of the decoder."
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
  import jax

  # Constants are made here; only the programs are for the other chip.
  jax.config.update("jax_platforms", "cpu")
  from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS
  from star_jax.compile_check import commands
  from star_jax.convert.preset import read_preset

  config = _CONFIG.value
  if config.stage == "tokenizer":
    return 0 if _tokenizer(config) else 1
  own = config.model.to_dict()
  name = _PRESET.value or next(
    (n for n, model in PRESETS.items() if ConfigDict(model).to_dict() == own),
    Path(flags.FLAGS["config"].config_filename).stem,
  )
  found = read_preset(
    name,
    PRESETS if _PRESET.value else {**PRESETS, name: own},
    TOKENIZERS["vae_ch160"],
    "",
    REFINE_HEADS,
  )
  batches = _BATCH.value
  if not batches and _WHAT.value == "train" and ":" in _TARGET.value:
    batches = [str(config.batch_size)]
  request = commands.Request.of(
    _TARGET.value,
    batches,
    Path(name).stem,
    config.mesh,
    _OUT.value,
    config.attention,
  )
  if _WHAT.value == "train":
    config.unlock()
    config.model = ConfigDict(found.model)
    if _REMAT.value:
      config.model.remat = _REMAT.value
    within = commands.check_training(request, config)
  elif _WHAT.value == "layer":
    within = commands.check_layer(request, found.model, config.text.max_tokens)
  else:
    within = commands.check_sampler(
      request,
      found.model,
      found.tokenizer,
      text_tokens=config.text.max_tokens,
      refine=_REFINE.value,
      head=found.refine,
      storage=_STORAGE.value,
      one_by_one=_ONE_BY_ONE.value,
      decoder_dtype=_DECODER_DTYPE.value,
    )
  return 0 if within else 1


def _tokenizer(config) -> bool:
  """A training step of stage 1, which has neither sampler nor layers."""
  if _WHAT.value != "train" or _PRESET.value:
    raise ValueError(
      "Of a tokenizer's config the training step alone is compiled: leave"
      " --what and --preset out."
    )
  from star_jax.compile_check import commands

  request = commands.Request.of(
    _TARGET.value,
    _BATCH.value or [str(config.batch_size)],
    Path(flags.FLAGS["config"].config_filename).stem,
    config.mesh,
    _OUT.value,
  )
  return commands.check_tokenizer(request, config)


if __name__ == "__main__":
  run_main(main)
