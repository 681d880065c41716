"""What a tokenizer loses under another schedule: tokens and reconstruction.

B: batch, N: pictures, L: tokens of all scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.bundle import load_bundle, save_bundle
from star_jax.data.art.store import load_art
from star_jax.data.scenes import SceneConfig, SceneGenerator
from star_jax.inputs import to_model_input
from star_jax.metrics.reconstruction import masked_mse, psnr, reconstruct
from star_jax.metrics.report import table, write_json
from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.growth import GrownTokenizer, grow_tokenizer
from star_jax.tokenizer.resize import shrink
from star_jax.tokenizer.vqvae import VQVAE

REPORT_FILE = "growth.json"


@dataclasses.dataclass(frozen=True)
class GrowthReport:
  """Attributes:
  pairs: (k of old, k of new, share of equal tokens) of each two scales with
    the same grid; the first of two such scales goes with the first.
  agreement: the share over all tokens of these scales; nan without any.
  psnr: "old" and "new": float64 [N], dB of each picture at that resolution.
  """

  pairs: tuple[tuple[int, int, float], ...]
  agreement: float
  psnr: dict[str, np.ndarray]

  def to_dict(self) -> dict[str, Any]:
    return {
      "n": len(self.psnr["old"]),
      "agreement": self.agreement,
      "agreement_by_scale": [list(pair) for pair in self.pairs],
      "psnr": {name: float(x.mean()) for name, x in self.psnr.items()},
    }

  def describe(self, old: VQVAEConfig, new: VQVAEConfig) -> str:
    """A table."""
    rows = [
      (
        f"tokens of {old.schedule.grids[i][0]} x {old.schedule.grids[i][1]}",
        f"{100 * share:.1f}%",
        f"equal, scale {i} of {old.schedule.num_scales} and {j} of"
        f" {new.schedule.num_scales}",
      )
      for i, j, share in self.pairs
    ]
    rows.append(("tokens of all of these", f"{100 * self.agreement:.1f}%", ""))
    for name, config in (("old", old), ("new", new)):
      h, w = config.image_size
      rows.append(
        (
          f"PSNR at {h} x {w} px",
          f"{self.psnr[name].mean():.2f} dB",
          f"{name} schedule, mean of {len(self.psnr[name])} pictures",
        )
      )
    return table(rows, ("measure", "value", "remark"))


def equal_scales(
  old: ScaleSchedule, new: ScaleSchedule
) -> list[tuple[int, int]]:
  """Pairs of scales with the same grid, the r-th of one size with the r-th."""
  pairs = []
  for j, grid in enumerate(new.grids):
    same = [i for i, other in enumerate(old.grids) if other == grid]
    rank = new.grids[:j].count(grid)
    if rank < len(same):
      pairs.append((same[rank], j))
  return pairs


def measure_growth(
  old: tuple[VQVAEConfig, Any],
  new: tuple[VQVAEConfig, Any],
  image_NHW3: np.ndarray,
  batch_size: int = 8,
) -> GrowthReport:
  """Both tokenizers on the same pictures, each at its own size.

  A token of one counts as equal where the other's token of the same place, on
  a scale of the same grid, is the same code: both stand for the same part of
  the picture.

  Args:
    old, new: settings and parameters.
    image_NHW3: uint8, not smaller than either size, of the aspect ratio of
      both; area averaging makes the smaller of it.
    batch_size: pictures at a time.

  Raises:
    ValueError: the two sizes have different aspect ratios.
  """
  check_aspects(old[0], new[0])
  tokens, errors = [], {}
  for name, (config, params) in (("old", old), ("new", new)):
    image = _at_size(image_NHW3, config.image_size)
    recon, idx_NL = reconstruct(VQVAE(config), params, batch_size)(image)
    mse = masked_mse(image / 255.0, recon / 255.0, np.ones(image.shape[:3]))
    errors[name] = psnr(mse)
    tokens.append(idx_NL)
  pairs, equal = [], []
  for i, j in equal_scales(old[0].schedule, new[0].schedule):
    parts = [
      idx_NL[:, slice(*config.schedule.begin_ends[k])]
      for idx_NL, config, k in zip(tokens, (old[0], new[0]), (i, j))
    ]
    equal.append((parts[0] == parts[1]).reshape(-1))
    pairs.append((i, j, float(equal[-1].mean())))
  agreement = float(np.concatenate(equal).mean()) if equal else float("nan")
  return GrowthReport(tuple(pairs), agreement, errors)


def check_aspects(old: VQVAEConfig, new: VQVAEConfig) -> None:
  """ValueError unless pictures of the two sizes have one shape."""
  (h, w), (new_h, new_w) = old.image_size, new.image_size
  if h * new_w != w * new_h:
    raise ValueError(
      f"The same pictures are measured at both sizes, but {h} x {w} and"
      f" {new_h} x {new_w} px differ in shape; --n=0 grows without measuring."
    )


def grow_bundle(
  ckpt: str | None,
  schedule: ScaleSchedule,
  phi: str,
  out: str | Path,
  *,
  n: int,
  images: Sequence[str] = (),
  scenes: SceneConfig,
) -> GrownTokenizer:
  """Writes the grown tokenizer of a bundle, prints what changed.

  Args:
    ckpt: bundle; None: the one that ships.
    schedule, phi: see `grow_tokenizer`.
    out: folder of the new bundle (a tokenizer alone) and of growth.json.
    n: how many scenes are measured on; 0: nothing is measured.
    images: pictures to measure on instead.
    scenes: of these; size and split are set here.

  Raises:
    ValueError: see `load_bundle`, `grow_tokenizer` and `check_aspects`.
    OSError: a picture cannot be read or `out` not be written.
  """
  bundle = load_bundle(ckpt)
  old = bundle.tokenizer_config, bundle.params["tokenizer"]
  grown = grow_tokenizer(*old, schedule, phi)
  print(grown.text, flush=True)
  report = None
  if n or images:
    check_aspects(old[0], grown.config)
    size = max(old[0].image_size, grown.config.image_size)
    pictures = (
      _read_pictures(images, size) if images else _scenes(scenes, size, n)
    )
    report = measure_growth(old, (grown.config, grown.params), pictures)
    print(report.describe(old[0], grown.config), flush=True)
  notes = {
    "grown_from": bundle.hash,
    "phi_old": list(grown.phi_old),
    "phi_new": list(grown.phi_new),
  }
  save_bundle(
    out,
    tokenizer_config=grown.config,
    tokenizer_params=grown.params,
    licence=bundle.licence,
    notes={**bundle.notes, **notes},
    # The weights of the bundle exactly, however it stores them.
    storage="float32",
  )
  if report is not None:
    write_json(Path(out) / REPORT_FILE, {**notes, **report.to_dict()})
  print(f"The grown tokenizer is in {out}.", flush=True)
  return grown


def _at_size(image_NHW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  return np.round(np.asarray(shrink(image_NHW3, size))).astype(np.uint8)


def _scenes(config: SceneConfig, size: tuple[int, int], n: int) -> np.ndarray:
  """uint8 [N, H, W, 3]: scenes of held-out combinations."""
  config = dataclasses.replace(config, size=size, split="heldout")
  generator = SceneGenerator(load_art(None), config)
  return np.stack([generator.render(generator.scene(i)) for i in range(n)])


def _read_pictures(paths: Sequence[str], size: tuple[int, int]) -> np.ndarray:
  pictures = [to_model_input(path, size) for path in paths]
  return np.round((np.stack(pictures) + 1) * 127.5).astype(np.uint8)
