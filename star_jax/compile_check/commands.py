"""What `launch/compile_check.py` does, without its flags."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from star_jax import sharding
from star_jax.compilation import step_options
from star_jax.compile_check import programs, records, report
from star_jax.compile_check.analytic import (
  Analytic,
  layer_bytes,
  sampling_flops,
  training_flops,
)
from star_jax.compile_check.bounds import bounds_of
from star_jax.compile_check.bounds_report import bounds_within_limits
from star_jax.compile_check.devices import Target, find_target
from star_jax.metrics.benchmark import to_whole
from star_jax.model.attention_backends import AUTO, XLA, choose, platform_here
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig
from star_jax.sampling.rounds import REFINEMENTS
from star_jax.sampling.sampler import SamplerConfig
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.train.token_drop import TokenDrop

MAX = "max"
_REMAT_WORDS = {
  "none": "layers kept",
  "layer": "layers recomputed",
  "attention": "input and output of attention kept",
  "dots": "products with weights kept",
}


@dataclasses.dataclass(frozen=True)
class Request:
  """What to compile for.

  Attributes:
    target, mesh: the devices; no mesh on the backend at hand.
    batches: pictures at once, over all devices.
    largest: also the largest batch that fits.
    model: name of the model, for the tables.
    out: folder of the figures; None: they are printed only.
    attention: what is asked for, see `attention_backends`.
  """

  target: Target
  mesh: Mesh | None
  batches: tuple[int, ...]
  largest: bool
  model: str
  out: Path | None = None
  attention: str = AUTO

  @classmethod
  def of(
    cls,
    target: str,
    batches: Sequence[str],
    model: str,
    mesh: Mapping[str, int] | None = None,
    out: str | None = None,
    attention: str = AUTO,
  ) -> Request:
    """From the words of the flags; `mesh` as `config.mesh` has it.

    Raises:
      ValueError: an unknown target, a missing compiler, a mesh that does not
        divide the devices, or a bad batch.
    """
    found = find_target(target)
    sizes = tuple(to_whole("--batch", b) for b in batches if b != MAX)
    if MAX in batches and not found.memory:
      raise ValueError(f"--batch=max needs an accelerator, not {found.name}.")
    placed = None
    if found.platform:
      placed = sharding.make_mesh(mesh or {}, found.devices())
    folder = Path(out) if out else None
    return cls(found, placed, sizes, MAX in batches, model, folder, attention)

  def chosen(self, star: StarConfig) -> StarConfig:
    """With the attention of the target, which is not the device at hand.

    Raises:
      ValueError: see `attention_backends.choose`.
    """
    platform = self.target.platform or platform_here()
    backend = choose(self.attention, platform, star)
    return dataclasses.replace(star, attention=backend)

  @property
  def unit(self) -> int:
    """Parts that the mesh cuts a batch into."""
    if self.mesh is None:
      return 1
    return math.prod(self.mesh.shape[axis] for axis in sharding.BATCH)

  @property
  def where(self) -> str:
    """The mesh, for the tables; "" for one device."""
    if self.mesh is None or self.mesh.size == 1:
      return ""
    cut = ", ".join(f"{k}={n}" for k, n in self.mesh.shape.items() if n > 1)
    return f", mesh {cut}"

  def print_memory(self, name: str, make: report.Make):
    """See `report.print_memory`."""
    return report.print_memory(
      name,
      make,
      self.batches or (self.unit,),
      self.target,
      unit=self.unit,
      largest=self.largest,
    )

  def check(
    self,
    what: str,
    found: Mapping[int, report.Compiled],
    star: StarConfig,
    analytic=lambda batch: None,
  ) -> bool:
    """Prints and keeps what each compiled batch costs.

    Args:
      what: name of the program in the files.
      found: by batch.
      star: of the model.
      analytic: batch -> FLOPs by formula.

    Returns:
      Whether all are within the limits.
    """
    within = True
    weights = layer_bytes(star, jnp.dtype(star.dtype).itemsize)
    for batch, (program, memory) in found.items():
      bounds = bounds_of(
        program, memory, self.target, self.mesh, analytic(batch)
      )
      if self.out:
        remat = star.remat if what == "train" else ""
        records.write(self, what, batch, memory, bounds, remat)
      if bounds:
        print(f"\nBatch {batch}:")
        within &= bounds_within_limits(bounds, self.target.title, weights)
    return within


def check_sampler(
  request: Request,
  model: Mapping[str, Any],
  tokenizer: Mapping[str, Any],
  *,
  text_tokens: int,
  refine: str,
  head: Mapping[str, Any] | None,
  storage: str,
  one_by_one: bool,
  decoder_dtype: str,
) -> bool:
  """Memory and roofline of sampling with guidance.

  Args:
    request: devices and batches.
    model, tokenizer: settings.
    text_tokens: of a prompt.
    refine: a name in REFINEMENTS.
    head: settings of the refinement head; not needed where refine is "off".
    storage: dtype of the parameters on the chip.
    one_by_one, decoder_dtype: see `SamplerConfig`.

  Returns:
    Whether it is within the limits.

  Raises:
    ValueError: settings that do not go together.
  """
  if refine not in REFINEMENTS:
    raise ValueError(f"--refine is one of {list(REFINEMENTS)}, got {refine!r}.")
  if REFINEMENTS[refine] and head is None:
    raise ValueError(
      f"{request.model} has no refinement head: --refine=off, or a .json file"
      ' of settings with "refine".'
    )
  config = SamplerConfig(
    refine=REFINEMENTS[refine],
    decode_one_by_one=one_by_one,
    decoder_dtype=decoder_dtype,
  )
  star = request.chosen(StarConfig.from_dict(dict(model)))
  vqvae = VQVAEConfig.from_dict(tokenizer)
  refiner = RefineConfig(**head) if head else None

  def make(batch: int) -> programs.Program:
    return programs.sampler_program(
      star,
      vqvae,
      config,
      batch,
      text_tokens=text_tokens,
      refine=refiner,
      storage=storage,
      mesh=request.mesh,
    )

  def formula(batch: int) -> Analytic:
    return sampling_flops(
      star, vqvae, config, batch, text_tokens=text_tokens, refine=refiner
    )

  decoder = "one picture after the other" if one_by_one else "all at once"
  refined = ""
  if config.refine:
    refined = f" (scales from index {head['first_scale']})"
  report.print_head(
    request.target,
    f"Sampling with {request.model}{request.where}: guidance, refinement"
    f" {refine}{refined}, parameters in {storage}, layers in {star.dtype},"
    f" attention by {star.attention}, decoding {decoder} in {decoder_dtype}",
  )
  found = request.print_memory("sampling", make)
  within = request.check("sample", found, star, formula)
  for batch, (_, memory) in found.items():
    rows = batch // request.unit * (1 + config.guided)
    report.print_caches(memory, programs.cache_bytes(star, rows), batch)
  return within


def check_training(request: Request, config: ConfigDict) -> bool:
  """Memory and roofline of a training step, and the largest array of its
  attention.

  Args:
    request: devices and batches.
    config: of a run of the stage "transformer"; its batch size and data are
      replaced.

  Returns:
    Whether it is within the limits, arrays of attention at the first batch.
  """
  config = config.copy_and_resolve_references()
  config.data, config.classes = "synthetic", ()
  star = StarConfig.from_dict(config.model.to_dict())
  if request.mesh is not None and request.mesh.shape[sharding.SEQUENCE] > 1:
    # The only one of devices that share a picture's tokens.
    request = dataclasses.replace(request, attention=XLA)
  star = request.chosen(star)
  config.attention = star.attention
  lengths = TokenDrop(**config.token_drop).lengths(star.schedule)

  def make(batch: int) -> programs.Program:
    config.batch_size = batch
    return programs.training_program(config, request.mesh)

  remat = _REMAT_WORDS[star.remat]
  report.print_head(
    request.target,
    f"A training step of {request.model}{request.where}: {sum(lengths)} of"
    f" {star.schedule.num_tokens} tokens, {config.optimizer.name} and"
    f" {'an' if config.optimizer.ema_decay else 'no'} average of the"
    f" parameters, {remat}, layers in {star.dtype}, attention by"
    f" {star.attention}",
    step_options(request.mesh),
  )
  found = request.print_memory("training", make)
  if not found:
    print("\nNothing was compiled, so no array was looked at.")
    return False
  within = request.check(
    "train",
    found,
    star,
    lambda batch: training_flops(
      star, batch, text_tokens=config.text.max_tokens, lengths=lengths
    ),
  )
  batch, (_, memory) = next(iter(found.items()))
  pictures = -(-batch // request.unit)
  return report.attention_within_limit(star, pictures, memory) and within


def check_tokenizer(request: Request, config: ConfigDict) -> bool:
  """Memory of a training step of the image tokenizer, its discriminator and
  the networks of its losses among it.

  Args:
    request: devices and batches.
    config: of a run of the stage "tokenizer"; its batch size and data are
      replaced.

  Returns:
    Whether anything was compiled.
  """
  config = config.copy_and_resolve_references()
  config.data = "synthetic"

  def make(batch: int) -> programs.Program:
    config.batch_size = batch
    return programs.training_program(config, request.mesh)

  parts = [name for name, weight in config.loss.items() if weight]
  report.print_head(
    request.target,
    f"A training step of {request.model}{request.where}: losses"
    f" {', '.join(parts)}, layers in {config.tokenizer.dtype}",
    step_options(request.mesh),
  )
  found = request.print_memory("training", make)
  for batch, (program, _) in found.items():
    print(f"\nBatch {batch}: {program.flops / 1e12:.2f} TFLOP a step.")
  return bool(found)


def check_layer(
  request: Request, model: Mapping[str, Any], text_tokens: int
) -> bool:
  """Memory of one layer, forward and backward.

  Args:
    request: one device, and batches.
    model: settings.
    text_tokens: of a caption.

  Returns:
    Whether the temporaries of its self-attention alone are within the limit,
    in both dtypes, at the first batch.

  Raises:
    ValueError: several devices.
  """
  if request.mesh is not None and request.mesh.size > 1:
    raise ValueError(
      f"--what=layer is for one chip, not for {request.target.name}."
    )
  star = request.chosen(StarConfig.from_dict(dict(model)))
  report.print_head(
    request.target,
    f"One layer of {request.model}, forward and backward:"
    f" {star.schedule.num_tokens} tokens, blocks of {star.query_block} queries",
  )

  def layer(batch: int) -> programs.Program:
    return programs.layer_program(
      star, batch, text_tokens=text_tokens, mesh=request.mesh
    )

  within = True
  for dtype in ("float32", "bfloat16"):
    config = request.chosen(dataclasses.replace(star, dtype=dtype))
    make = functools.partial(
      programs.attention_program, config, mesh=request.mesh
    )
    found = request.print_memory(
      f"self-attention, {dtype}, {config.attention}", make
    )
    within &= bool(found) and report.layer_within_limit(
      next(iter(found.values())).memory
    )
    print()
  request.print_memory(f"whole layer, {star.dtype}, {star.attention}", layer)
  return within
