"""Official checkpoints to bundles, and bundles to the official layout.

  python launch/convert.py --from=official_var --in=var_d16.pth \
    --vae=vae_ch160v4096z32.pth --preset=var_d16 --out=bundles/var_d16
  python launch/convert.py --from=official_star --in=star_d30.pth \
    --vae=vae_ch160v4096z32.pth --preset=star_d30 --text=stable-diffusion-2-1 \
    --out=bundles/star_d30
  python launch/convert.py --from=official_vae --in=vae_ch160v4096z32.pth \
    --out=bundles/vae
  python launch/convert.py --from=hf_clip --in=stable-diffusion-2-1 \
    --out=bundles/star_d30/text
  python launch/convert.py --from=bundle --in=bundles/var_d16 --out=official

.pth and .safetensors files are read without executing anything in them. What
the first two make needs nothing more for launch/sample.py --ckpt=BUNDLE; the
last writes vae.safetensors and var.safetensors or star.safetensors under the
official names.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from star_jax.cli import run_main

KINDS = (
  "official_var", "official_star", "official_vae", "hf_clip", "hf_t5", "bundle",
)  # fmt: skip
FROM = flags.DEFINE_string("from", None, f"One of {', '.join(KINDS)}.")
IN = flags.DEFINE_string("in", None, "The checkpoint, or the bundle.")
OUT = flags.DEFINE_string("out", None, "Folder to write to.")
VAE = flags.DEFINE_string("vae", None, "The tokenizer of VAR or STAR.")
PRESET = flags.DEFINE_string(
  "preset",
  None,
  "Which model it is, of configs/presets.py (var_d16 ... star_d30_1024), or a"
  ' .json file {"model": ..., "tokenizer": ...} with such settings, and'
  ' "refine": {"first_scale": ..., "depth": ...} of a refinement head.',
)
TEXT = flags.DEFINE_string(
  "text",
  None,
  "STAR's text encoder: its folder, which is taken into the bundle, or the"
  " name of an installed one. Without it the bundle says the name alone.",
)
MODE = flags.DEFINE_string(
  "mode",
  "per_sample",
  "Cross-attention that STAR's weights need: per_sample, or batch0, the"
  " published one. launch/verify_official.py shows which it is.",
)
STORAGE = flags.DEFINE_string("storage", "float16", "float16 or float32.")
LICENCE = flags.DEFINE_string(
  "licence", "that of the converted weights", "Of the weights, in words."
)


def main(argv):
  from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS
  from star_jax.convert import official
  from star_jax.convert.export import export_official
  from star_jax.convert.preset import read_preset

  del argv
  kind = FROM.value
  if kind is not None and kind not in KINDS:
    raise ValueError(f"--from is one of {', '.join(KINDS)}, got {kind!r}.")
  needed = {"--from": kind, "--in": IN.value, "--out": OUT.value}
  if kind in ("official_var", "official_star"):
    needed |= {"--vae": VAE.value}
  if missing := [name for name, value in needed.items() if not value]:
    raise ValueError(f"{' and '.join(missing)} must be given.")
  if kind == "bundle":
    for path in export_official(IN.value, OUT.value):
      print(path)
    return
  if kind.startswith("hf_"):
    from star_jax.convert.hf_text import convert_text, family_of

    if f"hf_{family_of(IN.value).name}" != kind:
      raise ValueError(
        f"{IN.value} holds a text encoder of the kind"
        f" {family_of(IN.value).name}, --from={kind} was asked for."
      )
    convert_text(IN.value, OUT.value, storage=STORAGE.value)
    print(OUT.value)
    return
  common = {"licence": LICENCE.value, "storage": STORAGE.value}
  tokenizer = TOKENIZERS["vae_ch160"]
  if kind == "official_vae":
    if PRESET.value:
      tokenizer = read_preset(
        PRESET.value, PRESETS, tokenizer, "", REFINE_HEADS
      ).tokenizer
    done = official.convert_vae(
      IN.value, OUT.value, tokenizer=tokenizer, **common
    )
  else:
    prefix = kind.removeprefix("official_") + "_"
    found = read_preset(PRESET.value, PRESETS, tokenizer, prefix, REFINE_HEADS)
    common |= {"model": found.model, "tokenizer": found.tokenizer}
    files = IN.value, VAE.value, OUT.value
    if kind == "official_var":
      done = official.convert_var(*files, **common)
    else:
      done = official.convert_star(
        *files,
        refine=found.refine,
        text=TEXT.value,
        mode=MODE.value,
        **common,
      )
  print(OUT.value)
  if done.remark():
    print(done.remark())


if __name__ == "__main__":
  run_main(main)
