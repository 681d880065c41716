"""What `launch/compile_check.py` does, without its flags."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from star_jax.compile_check import programs, report
from star_jax.compile_check.devices import Chip, find_chip, sharding_of
from star_jax.metrics.benchmark import to_whole
from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineConfig
from star_jax.sampling.rounds import REFINEMENTS
from star_jax.sampling.sampler import SamplerConfig
from star_jax.tokenizer.config import VQVAEConfig

MAX = "max"
_REMAT_WORDS = {
  "none": "layers kept",
  "layer": "layers recomputed",
  "dots": "products with weights kept",
}


@dataclasses.dataclass(frozen=True)
class Target:
  """What to compile for.

  Attributes:
    chip, sharding: one chip and what puts arrays on it.
    batches: pictures at once.
    largest: also the largest batch that fits.
    model: name of the model, for the tables.
  """

  chip: Chip
  sharding: jax.sharding.Sharding | None
  batches: tuple[int, ...]
  largest: bool
  model: str

  @classmethod
  def of(cls, device: str, batches: Sequence[str], model: str) -> Target:
    """From the words of the flags.

    Raises:
      ValueError: an unknown chip, a missing compiler or a bad batch.
    """
    chip = find_chip(device)
    sizes = tuple(to_whole("--batch", b) for b in batches if b != MAX)
    if MAX in batches and not chip.memory:
      raise ValueError(f"--batch=max needs an accelerator, not {chip.name}.")
    return cls(chip, sharding_of(chip), sizes, MAX in batches, model)

  def print_memory(self, name: str, make: report.Make):
    """See `report.print_memory`."""
    return report.print_memory(
      name, make, self.batches, self.chip, largest=self.largest
    )


def check_sampler(
  target: Target,
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
  """Memory of sampling with guidance.

  Args:
    target: chip and batches.
    model, tokenizer: settings.
    text_tokens: of a prompt.
    refine: a name in REFINEMENTS.
    head: settings of the refinement head; not needed where refine is "off".
    storage: dtype of the parameters on the chip.
    one_by_one, decoder_dtype: see `SamplerConfig`.

  Returns:
    True.

  Raises:
    ValueError: settings that do not go together.
  """
  if refine not in REFINEMENTS:
    raise ValueError(f"--refine is one of {list(REFINEMENTS)}, got {refine!r}.")
  if REFINEMENTS[refine] and head is None:
    raise ValueError(
      f"{target.model} has no refinement head: --refine=off, or a .json file of"
      ' settings with "refine".'
    )
  config = SamplerConfig(
    refine=REFINEMENTS[refine],
    decode_one_by_one=one_by_one,
    decoder_dtype=decoder_dtype,
  )
  star = StarConfig.from_dict(dict(model))

  def make(batch: int) -> programs.Program:
    return programs.sampler_program(
      star,
      VQVAEConfig.from_dict(tokenizer),
      config,
      batch,
      text_tokens=text_tokens,
      refine=RefineConfig(**head) if head else None,
      storage=storage,
      sharding=target.sharding,
    )

  decoder = "one picture after the other" if one_by_one else "all at once"
  refined = ""
  if config.refine:
    refined = f" (scales from index {head['first_scale']})"
  report.print_head(
    target.chip,
    f"Sampling with {target.model}: guidance, refinement {refine}{refined},"
    f" parameters in {storage}, layers in {star.dtype}, decoding {decoder} in"
    f" {decoder_dtype}",
  )
  target.print_memory("sampling", make)
  return True


def check_training(target: Target, recipe, model: Mapping[str, Any]) -> bool:
  """Memory of a training step, and the largest array of its attention.

  Args:
    target: chip and batches.
    recipe: a training config of the stage "transformer"; its batch size, data
      and model are replaced.
    model: settings.

  Returns:
    Whether no attention array exceeds its limit, at the first batch.
  """
  config = recipe.copy_and_resolve_references()
  config.model = ConfigDict(dict(model))
  config.data, config.classes = "synthetic", ()

  def make(batch: int) -> programs.Program:
    config.batch_size = batch
    return programs.training_program(config, target.sharding)

  star = StarConfig.from_dict(dict(model))
  remat = _REMAT_WORDS[star.remat]
  report.print_head(
    target.chip,
    f"A training step of {target.model}: {star.schedule.num_tokens} tokens,"
    f" {config.optimizer.name} and an average of the parameters, {remat},"
    f" layers in {star.dtype}",
  )
  found = target.print_memory("training", make)
  if not found:
    print("\nNothing was compiled, so no array was looked at.")
    return False
  batch, memory = next(iter(found.items()))
  return report.attention_within_limit(star, batch, memory)


def check_layer(
  target: Target, model: Mapping[str, Any], text_tokens: int
) -> bool:
  """Memory of one layer, forward and backward.

  Args:
    target: chip and batches.
    model: settings.
    text_tokens: of a caption.

  Returns:
    Whether the temporaries of its self-attention alone are within the limit,
    in both dtypes, at the first batch.
  """
  star = StarConfig.from_dict(dict(model))
  report.print_head(
    target.chip,
    f"One layer of {target.model}, forward and backward:"
    f" {star.schedule.num_tokens} tokens, blocks of {star.query_block} queries",
  )

  def layer(batch: int) -> programs.Program:
    return programs.layer_program(
      star, batch, text_tokens=text_tokens, sharding=target.sharding
    )

  within = True
  for dtype in ("float32", "bfloat16"):
    config = dataclasses.replace(star, dtype=dtype)
    make = functools.partial(
      programs.attention_program, config, sharding=target.sharding
    )
    found = target.print_memory(f"self-attention, {dtype}", make)
    within &= bool(found) and report.layer_within_limit(
      *list(found.values())[:1]
    )
    print()
  target.print_memory(f"whole layer, {star.dtype}", layer)
  return within
