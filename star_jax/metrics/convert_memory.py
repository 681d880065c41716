"""How much memory a conversion needs, of a file made for it.

  python -m star_jax.metrics.convert_memory --preset=var_d30

writes an official checkpoint of that size (8.2 GB in float32), converts it to a
bundle and back with launch/convert.py, and prints the peaks of each. Two of
them: all memory the process held at once, which counts what it had looked at of
the mapped file (`ru_maxrss`), and what it had allocated (sampled every 20 ms).
The files are deleted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import star_jax
from star_jax.convert.block import transformer_template
from star_jax.convert.preset import read_preset
from star_jax.convert.pth_write import write_pth
from star_jax.convert.star import star_rules
from star_jax.convert.state_dict import Restored, Rule
from star_jax.convert.var import var_rules
from star_jax.convert.vqvae import template as vqvae_template
from star_jax.convert.vqvae import vqvae_rules
from star_jax.model.config import StarConfig
from star_jax.tokenizer.config import VQVAEConfig

CONVERT = Path(star_jax.__file__).parents[1] / "launch" / "convert.py"
_PIECE = 1 << 20  # values written at once
_INTERVAL = 0.02  # seconds


@dataclasses.dataclass(frozen=True)
class Peak:
  """Bytes: of the files read, of all memory, of what was allocated."""

  files: int
  resident: int
  allocated: int

  def __str__(self) -> str:
    return (
      f"files {self.files / 1e9:.2f} GB, peak {self.resident / 1e9:.2f} GB"
      f" ({self.resident / self.files:.2f}x), allocated"
      f" {self.allocated / 1e9:.2f} GB ({self.allocated / self.files:.2f}x)"
    )


def write_checkpoint(
  path: Path, params, rules: tuple[Rule, ...], dtype: str, nests=()
) -> int:
  """A .pth file of the official layout with random numbers: its bytes.

  Args:
    path: of the file.
    params: tree of anything with shapes.
    rules: official names.
    dtype: of what is not an integer.
    nests: dicts that the state dict lies in.
  """
  views = jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), params
  )
  facts = {
    key: (shape, kind if kind == "int64" else dtype)
    for key, (shape, kind) in Restored(views, rules).facts.items()
  }
  rng = np.random.default_rng(0)
  noise = rng.normal(size=_PIECE).astype(np.float32)

  def pieces(key: str) -> Iterator[bytes]:
    shape, kind = facts[key]
    left, block = int(np.prod(shape)), noise.astype(kind).tobytes()
    size = len(block) // _PIECE
    while left > 0:
      yield block[: min(left, _PIECE) * size]
      left -= _PIECE

  write_pth(path, facts, pieces, nests)
  return path.stat().st_size


def peak_of(command: list[str], files: int) -> Peak:
  """Runs a command to its end.

  Raises:
    ValueError: it failed.
  """
  child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  allocated = 0
  while True:
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid:
      break
    allocated = max(allocated, _allocated(child.pid))
    time.sleep(_INTERVAL)
  child.returncode = os.waitstatus_to_exitcode(status)
  if child.returncode:
    raise ValueError(f"{' '.join(command)} ended with {child.returncode}.")
  return Peak(files, usage.ru_maxrss * 1024, allocated)


def measure(
  preset: str, model: dict, tokenizer: dict, dtype: str, folder: Path
) -> tuple[Peak, Peak]:
  """Peaks of a conversion to a bundle of float32, and of the way back.

  Args:
    preset: what --preset of launch/convert.py gets.
    model, tokenizer: the settings that it stands for.
    dtype: of the official files.
    folder: for all files; they stay.
  """
  star = StarConfig.from_dict(model)
  vae = VQVAEConfig.from_dict(tokenizer)
  kind = "official_var" if star.num_classes else "official_star"
  rules = var_rules(star) if star.num_classes else star_rules(star)
  files = write_checkpoint(
    folder / "model.pth",
    transformer_template(star),
    rules,
    dtype,
    ("trainer", "var_wo_ddp"),
  )
  files += write_checkpoint(
    folder / "vae.pth", vqvae_template(vae), vqvae_rules(vae), dtype
  )
  command = [sys.executable, str(CONVERT)]
  there = [
    *command,
    f"--from={kind}",
    f"--in={folder / 'model.pth'}",
    f"--vae={folder / 'vae.pth'}",
    f"--preset={preset}",
    f"--out={folder / 'bundle'}",
    "--storage=float32",
  ]
  first = peak_of(there, files)
  for name in ("model.pth", "vae.pth"):
    (folder / name).unlink()
  size = sum(
    file.stat().st_size for file in (folder / "bundle").glob("*.safetensors")
  )
  back = [
    *command,
    "--from=bundle",
    f"--in={folder / 'bundle'}",
    f"--out={folder / 'official'}",
  ]
  return first, peak_of(back, size)


def _allocated(pid: int) -> int:
  """Bytes of memory of a process with no file behind it; 0 once it ended."""
  try:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
      if line.startswith("RssAnon:"):
        return int(line.split()[1]) * 1024
  except OSError:
    pass
  return 0


def main(argv: list[str] | None = None) -> None:
  from configs.presets import PRESETS, REFINE_HEADS, TOKENIZERS

  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--preset", default="var_d30", help="Name or .json file.")
  parser.add_argument("--dtype", default="float32", help="Of the checkpoint.")
  parser.add_argument("--folder", help="Where the files go for the time being.")
  args = parser.parse_args(argv)
  model, tokenizer, _ = read_preset(
    args.preset, PRESETS, TOKENIZERS["vae_ch160"], "", REFINE_HEADS
  )
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    there, back = measure(
      args.preset, model, tokenizer, args.dtype, Path(folder)
    )
  print(f"official to bundle: {there}")
  print(f"bundle to official: {back}")


if __name__ == "__main__":
  main()
