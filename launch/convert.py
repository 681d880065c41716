"""Official checkpoints to bundles, and bundles to the official layout.

  python launch/convert.py --from=official_var --in=var_d16.pth \
    --vae=vae_ch160v4096z32.pth --preset=var_d16 --out=bundles/var_d16
  python launch/convert.py --from=official_vae --in=vae_ch160v4096z32.pth \
    --out=bundles/vae
  python launch/convert.py --from=bundle --in=bundles/var_d16 --out=official

.pth and .safetensors files are read without executing anything in them. The
first makes what launch/sample.py --ckpt=bundles/var_d16 draws classes with; the
last writes vae.safetensors and var.safetensors under the official names.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from star_jax.cli import run_main

KINDS = ("official_var", "official_vae", "bundle")
FROM = flags.DEFINE_string("from", None, f"One of {', '.join(KINDS)}.")
IN = flags.DEFINE_string("in", None, "The checkpoint, or the bundle.")
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
VAE = flags.DEFINE_string("vae", None, "The tokenizer of an official VAR.")
PRESET = flags.DEFINE_string(
  "preset", None, "Which VAR it is, of configs/presets.py: var_d16 ... var_d36."
)
STORAGE = flags.DEFINE_string("storage", "float16", "float16 or float32.")
LICENCE = flags.DEFINE_string(
  "licence", "that of the converted weights", "Of the weights, in words."
)


def main(argv):
  from configs.presets import PRESETS, TOKENIZERS
  from star_jax.convert import official

  del argv
  needed = {"--from": FROM.value, "--in": IN.value, "--out": OUT.value}
  if FROM.value == "official_var":
    needed |= {"--vae": VAE.value, "--preset": PRESET.value}
  if missing := [name for name, value in needed.items() if not value]:
    raise ValueError(f"{' and '.join(missing)} must be given.")
  common = {"licence": LICENCE.value, "storage": STORAGE.value}
  tokenizer = TOKENIZERS["vae_ch160"]
  if FROM.value == "official_var":
    known = [name for name in PRESETS if name.startswith("var_")]
    if PRESET.value not in known:
      raise ValueError(
        f"--preset is one of {', '.join(known)}, got {PRESET.value!r}."
      )
    official.convert_var(
      IN.value,
      VAE.value,
      OUT.value,
      model=PRESETS[PRESET.value],
      tokenizer=tokenizer,
      **common,
    )
  elif FROM.value == "official_vae":
    official.convert_vae(IN.value, OUT.value, tokenizer=tokenizer, **common)
  elif FROM.value == "bundle":
    for path in official.export_official(IN.value, OUT.value):
      print(path)
    return
  else:
    raise ValueError(
      f"--from is one of {', '.join(KINDS)}, got {FROM.value!r}."
    )
  print(OUT.value)


if __name__ == "__main__":
  run_main(main)
