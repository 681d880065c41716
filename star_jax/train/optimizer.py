"""AdamW as VAR and STAR train with it: schedules, decay mask, clipping, EMA.

`muon` replaces Adam by orthogonalised momentum on the matrices of the layers
(arXiv 2502.16982), for short trainings.

The schedules are those of `utils/lr_control.py` in both official code bases
(golden README, rule 31), the decay mask is rule 32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import traverse_util

from star_jax.train.mup import scale_by_width

PyTree = Any
Schedule = Callable[[jax.Array | int], jax.Array]

# Substrings of a parameter's path that switch weight decay off (rule 32).
OFFICIAL_NO_DECAY = (
  "cls_token",
  "start_token",
  "task_token",
  "cfg_uncond",
  "pos_embed",
  "pos_1LC",
  "pos_start",
  "start_pos",
  "lvl_embed",
  "gamma",
  "beta",
  "ada_gss",
  "moe_bias",
  "scale_mul",
  "rate_KV",  # of our quantizer: not trained at all
  "log_gain_KCv",  # of our quantizers without a codebook
  "logvar_Cv",  # of our continuous autoencoder
)
# Collections whose arrays carry a leading layer axis (layers under nn.scan).
STACKED = ("blocks", "cross")
NAMES = ("adamw", "muon")
# Stacked matrices: axis 0 is the layer, 1 the input, -1 the output.
MATRICES = ("kernel", "qkv", "kv")
# Of a tokenizer; no token depends on its decoder.
PARTS = {
  "all": (),
  "decoder": ("decoder", "post_quant_conv"),
  "quantizer": ("quantizer",),
}
# Root mean square of an orthogonalised update, that of a typical Adam update,
# so that both take the same learning rate (arXiv 2502.16982, section 2.2).
UPDATE_RMS = 0.2
# Flat part of the linear schedules, as a share of the run after warm-up.
_FLAT = {"lin": 0.15, "lin0": 0.05, "lin00": 0.0, "exp": 0.15}
SCHEDULES = (
  "cos",
  "lin",
  "lin0",
  "lin00",
  "lin<share>",
  "exp",
  "constant",
  "wsd<share>",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Optimizer:
  """The update rule and what the log shows of it. Hashed by identity.

  ema_on_host: the average lies in the memory of the hosts, see
    `global_arrays.state_shardings`.
  adversary: of what is trained against the model, None without.
  """

  tx: optax.GradientTransformation
  learning_rate: Schedule
  weight_decay: Schedule
  ema_decay: float
  ema_on_host: bool = False
  adversary: Optimizer | None = None


def learning_rate_schedule(
  kind: str,
  *,
  peak: float,
  num_steps: int,
  warmup_steps: float,
  warmup_start: float,
  final_ratio: float,
) -> Schedule:
  """Learning rate of 0-based step `it`, float32.

  Rises linearly from `warmup_start * peak` over round(warmup_steps) steps and
  reaches `final_ratio * peak` at step num_steps - 1.

  Args:
    kind: "cos"; "lin", "lin0", "lin00": flat for the first 15%, 5%, 0% of what
      follows the warm-up, then linear; "lin0.3": two linear pieces that meet
      after that share; "exp": flat for 15%, then exponential; "constant";
      "wsd0.2": flat, then linear over the last 20% (warm-up, stable, decay: a
      run can be made longer from any checkpoint before the decay).
  """
  decay = _decay_of(kind, final_ratio)
  warmup = round(warmup_steps)
  span = max(num_steps - 1 - warmup, 1)

  def schedule(it):
    it = jnp.asarray(it, jnp.float32)
    rise = warmup_start + (1 - warmup_start) * it / max(warmup, 1)
    passed = jnp.clip((it - warmup) / span, 0.0, 1.0)
    return peak * jnp.where(it < warmup, rise, decay(passed))

  return schedule


def _decay_of(kind: str, end: float) -> Callable[[jax.Array], jax.Array]:
  """Factor after warm-up as a function of the passed share in [0, 1]."""
  if kind == "constant":
    return jnp.ones_like
  if kind == "cos":
    return lambda p: end + (1 - end) * (0.5 + 0.5 * jnp.cos(jnp.pi * p))
  if kind in ("lin", "lin0", "lin00"):
    flat = _FLAT[kind]
    return lambda p: jnp.where(
      p < flat, 1.0, end + (1 - end) * (1 - p) / (1 - flat)
    )
  if kind == "exp":
    flat = _FLAT[kind]
    return lambda p: jnp.where(
      p < flat, 1.0, jnp.exp((p - flat) / (1 - flat) * math.log(end))
    )
  if kind.startswith("wsd"):
    share = _share(kind, "wsd")
    return lambda p: 1 + (end - 1) * jnp.clip((p - 1 + share) / share, 0.0, 1.0)
  knee = _share(kind, "lin")
  # The knee lies half-way between 1 and the straight line from 1 to `end`.
  middle = (1 + end + (1 - end) * (1 - knee)) / 2
  return lambda p: jnp.where(
    p < knee,
    1 + (middle - 1) * p / knee,
    end + (middle - end) * (1 - p) / (1 - knee),
  )


def _share(kind: str, word: str) -> float:
  try:
    share = float(kind.removeprefix(word))
  except ValueError:
    share = -1.0
  if not (kind.startswith(word) and 0 < share < 1):
    raise ValueError(
      f"Unknown learning rate schedule {kind!r}; accepted are"
      f" {', '.join(SCHEDULES)}."
    )
  return share


def weight_decay_schedule(
  *, start: float, end: float, num_steps: int
) -> Schedule:
  """Cosine from `start` to `end` over the whole run, without warm-up."""

  def schedule(it):
    passed = jnp.asarray(it, jnp.float32) / max(num_steps - 1, 1)
    wave = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(passed, 0.0, 1.0))
    return end + (start - end) * wave

  return schedule


def decay_mask(
  params: PyTree, no_decay: Sequence[str] = OFFICIAL_NO_DECAY
) -> PyTree:
  """True where weight decay applies (golden README, rule 32).

  Not to vectors, not to names that end in "bias", and not to paths that
  contain one of `no_decay`. The layer axis of stacked blocks does not count
  as a dimension.
  """
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    {path: _decays(path, leaf, no_decay) for path, leaf in flat.items()}
  )


def _decays(path: tuple[str, ...], leaf: Any, no_decay: Sequence[str]) -> bool:
  rank = len(leaf.shape) - any(part in STACKED for part in path)
  name = "/".join(path)
  listed = any(word in name for word in no_decay)
  return rank > 1 and not name.endswith("bias") and not listed


def scheduled_weight_decay(
  schedule: Schedule, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
  """Adds `schedule(count) * param` to the update where the mask is True."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params):
    decay = schedule(state.count)
    updates = jax.tree.map(
      lambda u, p, on: u + decay * p if on else u,
      updates,
      params,
      mask(params),
    )
    return updates, optax.ScaleByScheduleState(count=state.count + 1)

  return optax.GradientTransformation(init, update)


def _direction(config) -> optax.GradientTransformation:
  """The update before decay and learning rate."""
  adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
  if config.name == "adamw":
    return adam
  if config.name != "muon":
    raise ValueError(
      f"optimizer.name is one of {', '.join(NAMES)}, got {config.name!r}."
    )
  axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=-1)
  muon = optax.chain(
    optax.contrib.scale_by_muon(
      beta=config.muon_beta,
      weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: axes, tree),
    ),
    optax.stateless(
      lambda updates, params: jax.tree.map(
        lambda u: u * UPDATE_RMS * max(u.shape[1], u.shape[-1]) ** 0.5, updates
      )
    ),
  )
  return optax.partition({"adam": adam, "muon": muon}, muon_labels)


def _updates(config, width_ratio: float) -> list[optax.GradientTransformation]:
  """The update before decay, which muP leaves as it is, and learning rate."""
  if width_ratio == 1.0:
    return [_direction(config)]
  labels = None if config.name == "adamw" else muon_labels
  return [_direction(config), scale_by_width(width_ratio, labels)]


def muon_labels(params: PyTree) -> PyTree:
  """ "muon" for the matrices of the stacked layers, "adam" for the rest."""
  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict(
    {
      path: "muon"
      if path[0] in STACKED and path[-1] in MATRICES and leaf.ndim > 2
      else "adam"
      for path, leaf in flat.items()
    }
  )


def only(
  tx: optax.GradientTransformation, starts: Sequence[str]
) -> optax.GradientTransformation:
  """`tx` for the parameters whose paths begin with one of `starts`; the others
  stay as they are and have no moments.

  Raises:
    ValueError: in `init`, one of them is no parameter.
  """

  def part(tree):
    flat = traverse_util.flatten_dict(tree, sep="/")
    chosen = {p: x for p, x in flat.items() if p.startswith(tuple(starts))}
    return traverse_util.unflatten_dict(chosen, sep="/")

  def init(params):
    _check_starts(params, starts)
    return tx.init(part(params))

  def update(updates, state, params):
    changed, state = tx.update(part(updates), state, part(params))
    changed = traverse_util.flatten_dict(changed, sep="/")
    flat = traverse_util.flatten_dict(updates, sep="/")
    out = {p: changed.get(p, jnp.zeros_like(x)) for p, x in flat.items()}
    return traverse_util.unflatten_dict(out, sep="/"), state

  return optax.GradientTransformation(init, update)


def _check_starts(params: PyTree, starts: Sequence[str]) -> None:
  flat = traverse_util.flatten_dict(params, sep="/")
  for start in starts:
    if not any(path.startswith(start) for path in flat):
      known = sorted({path.split("/")[0] for path in flat})
      raise ValueError(
        f"optimizer.train_only names {start!r}, but the parameters are"
        f" {', '.join(known)}."
      )


def build_optimizer(
  config, num_steps: int, width_ratio: float = 1.0
) -> Optimizer:
  """From `config.optimizer` (the keys are listed in configs/common.py).

  Args:
    config: of the optimizer.
    num_steps: of the run.
    width_ratio: of the model to muP's base, see mup.py.
  """
  learning_rate = learning_rate_schedule(
    config.schedule,
    peak=config.learning_rate,
    num_steps=num_steps,
    warmup_steps=config.warmup_steps,
    warmup_start=config.warmup_start,
    final_ratio=config.final_ratio,
  )
  weight_decay = weight_decay_schedule(
    start=config.weight_decay, end=config.weight_decay_end, num_steps=num_steps
  )
  no_decay = OFFICIAL_NO_DECAY + tuple(config.no_decay)
  tx = optax.chain(
    optax.clip_by_global_norm(config.clip_norm)
    if config.clip_norm > 0
    else optax.identity(),
    *_updates(config, width_ratio),
    scheduled_weight_decay(weight_decay, lambda p: decay_mask(p, no_decay)),
    optax.scale_by_learning_rate(learning_rate),
  )
  if config.train_only:
    tx = only(tx, tuple(config.train_only))
  return Optimizer(
    tx,
    learning_rate,
    weight_decay,
    config.ema_decay,
    bool(config.ema_on_host),
  )


def run_optimizer(config, width_ratio: float = 1.0) -> Optimizer:
  """Of a run: its model's, and its adversary's where the objective has one.

  `width_ratio`: see `build_optimizer`.

  Raises:
    ValueError: config.train_only names no part of a tokenizer.
  """
  if config.stage != "tokenizer":
    return build_optimizer(config.optimizer, config.num_steps, width_ratio)
  options = config.optimizer.copy_and_resolve_references()
  options.train_only = (*options.train_only, *trained_parts(config))
  adversary = None
  if config.loss.adversarial:
    adversary = build_optimizer(config.adversary.optimizer, config.num_steps)
  return dataclasses.replace(
    build_optimizer(options, config.num_steps), adversary=adversary
  )


def trained_parts(config) -> tuple[str, ...]:
  """Beginnings of the paths that config.train_only of a tokenizer stands for;
  (): all.

  Raises:
    ValueError: an unknown word.
  """
  if config.train_only not in PARTS:
    raise ValueError(
      f"config.train_only is one of {', '.join(PARTS)}, got"
      f" {config.train_only!r}."
    )
  parts = PARTS[config.train_only]
  if config.train_only == "decoder" and config.tokenizer.linear_path:
    parts += ("linear_path/out",)
  return parts


def update_ema(ema: PyTree, params: PyTree, step, decay: float) -> PyTree:
  """Moving average whose memory grows with the run until it reaches `decay`.

  The factor min(decay, (1 + step) / (10 + step)) forgets the initial draw
  quickly, so that averaged parameters are usable early.
  """
  step = jnp.asarray(step, jnp.float32)
  factor = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - factor) * (p - e), ema, params)
