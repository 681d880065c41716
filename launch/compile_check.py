"""Compiles our programs for a chip that is not here; prints their memory.

  python launch/compile_check.py --what=sample --batch=1,4,8,max
  python launch/compile_check.py --what=train --device=v5p
  python launch/compile_check.py --what=layer --device=v5e

Nothing is run and no weight is drawn. TPU programs need the package libtpu,
GPU programs jax-cuda13-plugin and jax-cuda13-pjrt (pip install --no-deps, the
version of jax); no such chip is needed. --what=train also looks through the
compiled program for the largest array of attention (0.5 GiB per image and layer
are allowed), --what=layer at the temporaries of one layer's attention (1 GB);
exit status 1 says that one is exceeded.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import app, flags

from star_jax.cli import run_main

_PRESET = flags.DEFINE_string(
  "preset",
  "star_d30_1024",
  "Model in configs/presets.py, or a .json file of settings.",
)
_DEVICE = flags.DEFINE_string(
  "device", "a100-80gb", "a100-80gb, v5e, v5p (one chip) or cpu."
)
_WHAT = flags.DEFINE_enum(
  "what", "sample", ["sample", "train", "layer"], "Which program."
)
_BATCH = flags.DEFINE_list(
  "batch", ["1"], "Pictures at once; max looks for the largest that fits."
)
_TEXT_TOKENS = flags.DEFINE_integer("text_tokens", 77, "Of a caption.", 1)
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
  from configs.star_256 import get_config
  from star_jax.compile_check import commands
  from star_jax.convert.preset import read_preset

  found = read_preset(
    _PRESET.value, PRESETS, TOKENIZERS["vae_ch160"], "", REFINE_HEADS
  )
  target = commands.Target.of(_DEVICE.value, _BATCH.value, _PRESET.value)
  if _WHAT.value == "train":
    within = commands.check_training(target, get_config("d30"), found.model)
  elif _WHAT.value == "layer":
    within = commands.check_layer(target, found.model, _TEXT_TOKENS.value)
  else:
    within = commands.check_sampler(
      target,
      found.model,
      found.tokenizer,
      text_tokens=_TEXT_TOKENS.value,
      refine=_REFINE.value,
      head=found.refine,
      storage=_STORAGE.value,
      one_by_one=_ONE_BY_ONE.value,
      decoder_dtype=_DECODER_DTYPE.value,
    )
  return 0 if within else 1


if __name__ == "__main__":
  run_main(main)
