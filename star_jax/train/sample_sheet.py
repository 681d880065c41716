"""Sample sheets of a training run, and how its bundle says to draw."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from PIL import Image

from star_jax.data.buckets import folder_name
from star_jax.model.refine import RefineConfig, RefineHead
from star_jax.model.star import Star
from star_jax.pictures import contact_sheet, to_pil
from star_jax.sampling.rounds import RefineSampling
from star_jax.sampling.sampler import (
  Knobs,
  SampleFn,
  SamplerConfig,
  build_sampler,
  sample_keys,
)
from star_jax.scales import OWN_ASPECT
from star_jax.text.settings import TextSettings
from star_jax.train.global_arrays import fetch
from star_jax.train.token_data import TokenData


class SampleSheet:
  """One picture for each prompt of `config.sampling.prompts` and each shape.

  Args:
    config: of the run.
    data: what it reads; knows the model and its shapes.
    head: of a refinement head.
    rounds: how that is used.
  """

  def __init__(
    self,
    config,
    data: TokenData,
    head: RefineConfig | None = None,
    rounds: RefineSampling | None = None,
  ):
    self._config = config
    self._data = data
    self._samplers = {
      aspect: build_sampler(
        Star(shape.star_config),
        shape.tokenizer.vqvae,
        SamplerConfig(guided=config.sampling.cfg_scale > 0, refine=rounds),
        RefineHead(shape.star_config, head) if head else None,
      )
      for aspect, shape in data.shapes.items()
    }

  def draw(self, params: dict[str, Any]) -> dict[str, Image.Image]:
    """{"samples": the sheet}, or nothing without prompts; of several shapes
    {"samples_16x9": ...}.

    Args:
      params: {"star": ...}, and "refine" with a head.
    """
    if not self._config.sampling.prompts:
      return {}
    sheets = {
      aspect: self._draw_shape(sampler, params)
      for aspect, sampler in self._samplers.items()
    }
    if not self._config.aspects:
      return {"samples": sheets[OWN_ASPECT]}
    return {f"samples_{folder_name(a)}": s for a, s in sheets.items()}

  def _draw_shape(
    self, sampler: SampleFn, params: dict[str, Any]
  ) -> Image.Image:
    options, condition = self._config.sampling, self._data.condition
    prompts = list(options.prompts)
    out = sampler(
      {"tokenizer": self._data.tokenizer.params, **params},
      condition.encode(prompts),
      condition.null(),
      sample_keys(self._config.seed, jnp.arange(len(prompts))),
      Knobs.of(options),
    )
    images = [to_pil(image) for image in fetch(out.image_BHW3)]
    return contact_sheet(images, prompts, cell=128)


def sampling_of_bundle(config, classes: bool) -> dict[str, Any]:
  """The sampling defaults of an exported model."""
  options = config.sampling
  return {
    "cfg_scale": options.cfg_scale,
    "top_k": options.top_k,
    "top_p": options.top_p,
    "temperature": options.temperature,
    "gumbel_smooth": False,
    # As in VAR, and as in STAR.
    "smooth_filtered": classes,
    "refine": "off",
    "aspect": OWN_ASPECT,
  }


def condition_of_bundle(data: TokenData) -> dict[str, Any]:
  """Text encoder or class names of an exported model."""
  if data.classes:
    return {"text": None, "class_names": data.condition.names}
  return {"text": TextSettings.of(data.condition), "class_names": None}
