"""The acceptance test of official checkpoints: what a person who has the files
runs first, and what the report says.

B: samples, L: tokens of all scales, H W: pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from star_jax import api, pictures
from star_jax.convert import side_by_side
from star_jax.convert.official import (
  MODES,
  convert_star,
  convert_var,
  converted_head,
)
from star_jax.convert.source import read_official, sizes_of
from star_jax.convert.star import converted_star
from star_jax.convert.state_dict import Converted
from star_jax.convert.var import converted_var
from star_jax.convert.vqvae import converted_vqvae
from star_jax.inputs import to_model_input
from star_jax.metrics.reconstruction import psnr
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.sampling.sampler import (
  Knobs,
  SamplerConfig,
  build_sampler,
  build_scale_decoder,
  sample_keys,
)
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.vqvae import VQVAE

# Guidance that leaves one half of the batch [prompts; null] to draw from.
HALVES = {"conditional": 0.0, "null half": -1.0}
NO_CLIP = "not computed: it needs a CLIP image tower, and none is at hand"


@dataclasses.dataclass(frozen=True)
class Request:
  """What to verify.

  Attributes:
    ckpt, vae: official files of a transformer and its tokenizer.
    model, tokenizer: their settings.
    image: a picture to reconstruct.
    prompts: texts, or classes by number.
    out: folder of report, pictures and the bundle that is made.
    refine, text: see `convert_star`.
    mode: cross-attention of the bundle that is made.
    official_code: folder of the authors' code, None: no comparison with it.
    min_psnr: dB that the reconstruction must reach.
    seed: of the pictures.
  """

  ckpt: Path
  vae: Path
  model: Mapping[str, Any]
  tokenizer: Mapping[str, Any]
  image: Path
  prompts: Sequence[str]
  out: Path
  refine: Mapping[str, Any] | None = None
  text: str | None = None
  mode: str = "per_sample"
  official_code: Path | None = None
  min_psnr: float = 18.0
  seed: int = 0

  @property
  def kind(self) -> str:
    """Of star_jax.convert.source.KINDS, as the settings say."""
    return "var" if self.model.get("num_classes") else "star"


def verify(request: Request) -> dict[str, Any]:
  """Runs everything, writes report.json and the pictures: the report.

  `report["passed"]` says whether every check passed; one that could not run
  says so in words and does not count. What is wrong with the files themselves
  ends the run: the report then has one check, "keys".

  Raises:
    ValueError: picture, prompts or settings cannot be used.
    OSError: a file cannot be read or written.
  """
  out = Path(request.out)
  out.mkdir(parents=True, exist_ok=True)
  report: dict[str, Any] = {"checks": {}}
  try:
    report["keys"] = key_report(request)
    report["checks"]["keys"] = True
  except ValueError as error:
    report["keys"] = {"error": str(error)}
    report["checks"]["keys"] = False
    return _finish(report, out)
  options = {
    "model": request.model,
    "tokenizer": request.tokenizer,
    "licence": "that of the converted weights",
    "storage": "float32",
  }
  files = request.ckpt, request.vae, out / "bundle"
  if request.kind == "var":
    convert_var(*files, **options)
  else:
    convert_star(
      *files,
      refine=request.refine,
      text=request.text,
      mode=request.mode,
      **options,
    )
  star = api.load(out / "bundle")
  report["reconstruction"] = reconstruct(star, request.image, out)
  report["checks"]["reconstruction"] = (
    report["reconstruction"]["psnr_db"] >= request.min_psnr
  )
  report["runs"] = draw_runs(star, request.prompts, request.seed, out)
  report["checks"]["runs"] = all(run["finite"] for run in report["runs"])
  report["mode_of_the_bundle"] = request.mode if request.kind == "star" else ""
  report["clip_score"] = NO_CLIP
  report["torch"] = compare_with_torch(star, request)
  if "agrees" in report["torch"]:
    report["checks"]["torch"] = report["torch"]["agrees"]
  return _finish(report, out)


def key_report(request: Request) -> dict[str, Any]:
  """How the tensors of both files were understood.

  Raises:
    ValueError: a file is damaged or of another kind, or a key is unknown,
      missing, or of another shape.
  """
  star_config = StarConfig.from_dict(dict(request.model))
  vqvae_config = VQVAEConfig.from_dict(dict(request.tokenizer))
  state = read_official(request.ckpt, request.kind)
  vae = read_official(request.vae, "vae")
  out = {"vae": _part(vae, [converted_vqvae(vae, vqvae_config)])}
  if request.kind == "var":
    return {"var": _part(state, [converted_var(state, star_config)]), **out}
  head, without = converted_head(state, star_config, request.refine)
  parts = [converted_star(state, star_config), *([head.params] if head else [])]
  return {"star": _part(state, parts, without), **out}


def _part(
  state: Mapping[str, np.ndarray], converted: Sequence[Converted], without=()
) -> dict[str, Any]:
  """Counts of one file."""
  ignored = [key for part in converted for key in part.ignored]
  shapes = [s for part in converted for s in part.shapes.values()]
  return {
    "tensors": len(state),
    "matched": len(state) - len(ignored) - len(without),
    "without_use": len(ignored),
    "left_out": list(without),
    "parameters": sum(int(np.prod(s)) for s in shapes),
    "dtypes": sorted({str(x.dtype) for x in state.values()}),
    "sizes": sizes_of(state),
  }


def reconstruct(star, image: Path, out: Path) -> dict[str, Any]:
  """A picture through the tokenizer; writes before and after side by side."""
  before_HW3 = to_model_input(image, star.image_size)
  tokens = star.encode(image)
  after = star.decode(tokens)
  after_HW3 = np.asarray(after, np.float64) / 255
  error = np.square((before_HW3.astype(np.float64) + 1) / 2 - after_HW3).mean()
  value = float(psnr(error))
  pictures.contact_sheet(
    [pictures.to_pil(before_HW3), after],
    ["before", f"after: {value:.1f} dB"],
    columns=2,
    cell=max(192, *star.image_size),
  ).save(out / "reconstruction.png")
  used = len(np.unique(tokens))
  return {"psnr_db": value, "tokens": len(tokens), "different_tokens": used}


def draw_runs(
  star, prompts: Sequence[str], seed: int, out: Path
) -> list[dict[str, Any]]:
  """One run for each half of the batch and, of STAR, each cross-attention.

  In every run the model sees [prompts; null] and both halves the same tokens;
  they are drawn from the logits of one half. With the published cross-attention
  all rows get what row 0 attends to, so that weights made for it draw the first
  prompt in the null half too; weights made for one of its own per sample draw
  every prompt in the conditional half and none in the null half.
  """
  config = star.bundle.star_config
  modes = MODES if config.cross_attention else MODES[:1]
  given = star.condition_encoder.encode(list(prompts))
  null = star.condition_encoder.null()
  keys = sample_keys(seed, np.arange(len(prompts)))
  params = jax.device_put(star.bundle.params)
  settings = star.settings()
  decode = build_scale_decoder(VQVAE(star.bundle.tokenizer_config))
  images, labels, report = [], [], []
  for mode in modes:
    legacy = mode == "batch0"
    run = build_sampler(
      Star(dataclasses.replace(config, legacy_batch0_cross_attention=legacy)),
      VQVAE(star.bundle.tokenizer_config),
      SamplerConfig(cfg_ramp=False, return_image=False, return_logits=True),
    )
    for half, cfg_scale in HALVES.items():
      knobs = Knobs(
        np.float32(cfg_scale),
        np.float32(settings["temperature"]),
        np.int32(settings["top_k"]),
        np.float32(settings["top_p"]),
      )
      drawn = run(params, given, null, keys, knobs)
      name = half if len(modes) == 1 else f"{half}, {mode}"
      image_BHW3 = np.asarray(decode(params, drawn.f_hats_KBhwCv[-1:]))[0]
      images += [pictures.to_pil(x) for x in image_BHW3]
      labels += [f"{name}: {prompt}" for prompt in prompts]
      report.append(_facts(name, drawn))
  pictures.contact_sheet(images, labels, columns=len(prompts)).save(
    out / "contact_sheet.png"
  )
  return report


def _facts(name: str, drawn) -> dict[str, Any]:
  """Numbers of one run: a broken model shows in them before a picture does."""
  logits_BLV = np.asarray(drawn.logits_BLV, np.float64)
  log_p = logits_BLV - logits_BLV.max(-1, keepdims=True)
  p = np.exp(log_p)
  p /= p.sum(-1, keepdims=True)
  entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
  return {
    "run": name,
    "finite": bool(np.isfinite(logits_BLV).all()),
    "mean_entropy_nats": float(entropy.mean()),
    "different_tokens": len(np.unique(np.asarray(drawn.idx_BL))),
  }


def compare_with_torch(star, request: Request) -> dict[str, Any]:
  """Tokens and teacher-forced logits beside the authors' code."""
  if reason := side_by_side.missing(request.official_code):
    return {"skipped": reason}
  return side_by_side.compare(
    star, request.official_code, request.image, request.prompts[0]
  )


def _finish(report: dict[str, Any], out: Path) -> dict[str, Any]:
  report["passed"] = all(report["checks"].values())
  text = json.dumps(report, indent=1, sort_keys=True)
  (out / "report.json").write_text(text + "\n", "utf-8")
  return report


def summary(report: Mapping[str, Any]) -> str:
  """The report in a few lines."""
  lines = []
  for name, part in report["keys"].items():
    if name == "error":
      lines.append(f"keys: {part}")
      continue
    words = f"{part['matched']} of {part['tensors']} tensors in use"
    words += f", {part['without_use']} that nothing reads"
    if part["left_out"]:
      words += f", {len(part['left_out'])} of the refinement head left out"
    lines.append(f"{name}: {words}, {part['parameters'] / 1e6:.0f}M parameters")
  if "runs" in report:
    value = report["reconstruction"]["psnr_db"]
    lines.append(f"reconstruction: {value:.2f} dB")
    lines += [
      f"{run['run']}: {run['mean_entropy_nats']:.2f} nats a token"
      for run in report["runs"]
    ]
    lines.append(f"CLIP score: {report['clip_score']}")
    torch = report["torch"]
    lines.append(f"torch: {torch.get('skipped') or torch.get('sentence')}")
  lines += [
    f"{'passed' if passed else 'FAILED'}: {name}"
    for name, passed in report["checks"].items()
  ]
  return "\n".join(lines)
