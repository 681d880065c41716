"""A trained tokenizer as the start of a run: fine-tuning, and more scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_jax.bundle import load_bundle
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.growth import PHI_WAYS, grow_tokenizer
from star_jax.train.checkpoint import find_run, read_params
from star_jax.train.task import TRAINED_AGAINST

# What may differ: how it is trained and computed, not what it is.
FREE = (
  "beta", "dropout", "dtype", "rate_weight", "vq_loss_reduction",
  "scale_dropout", "entropy_weight", "entropy_gamma", "entropy_temperature",
  "entropy_group", "kl_weight",
)  # fmt: skip
RATES = "rate_KV"


def inherit_tokenizer(
  run: str, new: VQVAEConfig, fresh: Mapping[str, Any], grow: str
) -> dict[str, Any]:
  """Parameters of `new` from a run, or from a bundle such as an official one.

  Args:
    run: workdir of the run, or folder of the bundle.
    new: of the tokenizer that is trained now.
    fresh: freshly drawn parameters of it.
    grow: which phi the scales of another schedule use, see `grow_tokenizer`;
      "": the schedules are the same.

  Returns:
    The parameters; rates of codes (`rate_weight`) stay fresh where there were
    none.

  Raises:
    ValueError: nothing there, no tokenizer, or another one.
  """
  old, params = _trained(run)
  if old.schedule != new.schedule:
    if grow not in PHI_WAYS:
      raise ValueError(
        f"The tokenizer in {run} has the grids {old.schedule.describe()}, this"
        f" run's has {new.schedule.describe()}; config.grow takes it there, one"
        f" of {', '.join(PHI_WAYS)}, got {grow!r}."
      )
    grown = grow_tokenizer(old, params, new.schedule, grow)
    print(grown.text, flush=True)
    old, params = grown.config, grown.params
  _check_same(run, old, new)
  quantizer = {**params["quantizer"]}
  if not new.rate_weight:
    quantizer.pop(RATES, None)
  elif RATES not in quantizer:
    quantizer[RATES] = fresh["quantizer"][RATES]
  return {**params, "quantizer": quantizer}


def trained_against(run: str) -> list[str]:
  """Networks in the losses that a tokenizer has met, its ancestors' included.

  Args:
    run: see `inherit_tokenizer`; "": none.

  Raises:
    ValueError: nothing there.
  """
  if not run:
    return []
  if (Path(run) / "bundle.json").is_file():
    return list(load_bundle(run).notes.get(TRAINED_AGAINST, ()))
  return find_run(run)[1].get(TRAINED_AGAINST, [])


def _trained(run: str) -> tuple[VQVAEConfig, Mapping[str, Any]]:
  if (Path(run) / "bundle.json").is_file():
    bundle = load_bundle(run)
    return bundle.tokenizer_config, bundle.params["tokenizer"]
  path, saved = find_run(run)
  if saved.get("stage") != "tokenizer":
    raise ValueError(
      f"{path} holds a {saved.get('stage', 'run of another kind')};"
      " config.init_from of a tokenizer takes a tokenizer or a bundle."
    )
  return VQVAEConfig.from_dict(saved["tokenizer"]), read_params(path)


def _check_same(run: str, old: VQVAEConfig, new: VQVAEConfig) -> None:
  """ValueError where the settings differ in more than FREE ones."""
  ours, theirs = vars(new), vars(old)
  differing = [
    f"{field.name} is {theirs[field.name]!r} there and {ours[field.name]!r}"
    " here"
    for field in dataclasses.fields(VQVAEConfig)
    if field.name not in FREE and ours[field.name] != theirs[field.name]
  ]
  if differing:
    raise ValueError(
      f"The tokenizer in {run} is another one: {'; '.join(differing)}."
    )
