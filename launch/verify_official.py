"""The acceptance test of official checkpoints, for whoever has the files.

  python launch/verify_official.py --ckpt=star_d30.pth \
    --vae=vae_ch160v4096z32.pth --text=stable-diffusion-2-1 \
    --preset=star_d30 --image=photo.jpg --out=verified
  python launch/verify_official.py --ckpt=var_d16.pth \
    --vae=vae_ch160v4096z32.pth --preset=var_d16 --image=photo.jpg \
    --official_code=VAR

Converts the files and writes into --out: report.json; reconstruction.png, the
picture before and after the tokenizer; contact_sheet.png, pictures drawn from
the conditional and from the null half, of STAR with both kinds of
cross-attention; and the bundle. With torch and --official_code tokens and
logits are compared with the authors'. The exit status is 0 if every check
passed, 1 if not.

Which cross-attention STAR's weights need shows on the contact sheet: with the
right one every conditional picture shows its own prompt and no null picture
does; give the other with --mode=batch0, and the bundle records it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from absl import flags

from star_jax.cli import run_main

CKPT = flags.DEFINE_string("ckpt", None, "The transformer, VAR or STAR.")
VAE = flags.DEFINE_string("vae", None, "Its tokenizer.")
TEXT = flags.DEFINE_string(
  "text", None, "STAR's text encoder: its folder, or the name of one."
)
PRESET = flags.DEFINE_string(
  "preset", None, "Which model it is: see launch/convert.py."
)
IMAGE = flags.DEFINE_string("image", None, "A picture to reconstruct.")
OUT = flags.DEFINE_string("out", "verified", "Folder to write to.")
PROMPTS = flags.DEFINE_multi_string(
  "prompt", None, "What to draw; several times for several. Default: four."
)
MODE = flags.DEFINE_string("mode", "per_sample", "per_sample or batch0.")
OFFICIAL_CODE = flags.DEFINE_string(
  "official_code", None, "Folder of the authors' code, to compare with."
)
MIN_PSNR = flags.DEFINE_float(
  "min_psnr", 18.0, "dB that the reconstruction must reach."
)
SEED = flags.DEFINE_integer("seed", 0, "Of the pictures.")

TEXTS = (
  "a red car", "a cute dog", "a blue bird on a tree",
  "a green apple on the table",
)  # fmt: skip
CLASSES = ("0", "207", "417", "980")


def main(argv):
  from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS
  from star_jax.convert import verify
  from star_jax.convert.preset import read_preset

  del argv
  needed = {"--ckpt": CKPT.value, "--vae": VAE.value, "--image": IMAGE.value}
  if missing := [name for name, value in needed.items() if not value]:
    raise ValueError(f"{' and '.join(missing)} must be given.")
  found = read_preset(
    PRESET.value, PRESETS, TOKENIZERS["vae_ch160"], "", REFINE_HEADS
  )
  prompts = CLASSES if found.model.get("num_classes") else TEXTS
  report = verify.verify(
    verify.Request(
      ckpt=Path(CKPT.value),
      vae=Path(VAE.value),
      model=found.model,
      tokenizer=found.tokenizer,
      refine=found.refine,
      image=Path(IMAGE.value),
      prompts=PROMPTS.value or prompts,
      out=Path(OUT.value),
      text=TEXT.value,
      mode=MODE.value,
      official_code=OFFICIAL_CODE.value and Path(OFFICIAL_CODE.value),
      min_psnr=MIN_PSNR.value,
      seed=SEED.value,
    )
  )
  print(verify.summary(report))
  print(Path(OUT.value) / "report.json")
  return 0 if report["passed"] else 1


if __name__ == "__main__":
  run_main(main)
