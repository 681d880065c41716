"""Causal-driven stable sampling: a scale is drawn in rounds (STAR, arXiv
2406.10797, section 3.4; golden README, rules 26 to 30).

Each round draws every token of the scale from the refinement head, which sees
those already fixed, and fixes some more: the most confident ones, at random in
the first rounds, where all are equally unsure. Two official variants, by what
they do: in "head" all rounds ask the head; in "transformer first" the first
rounds of all but the finest scales draw from the transformer's own logits and
fix its most confident tokens as well.

B: samples, l: tokens of a scale, V: vocabulary, S: rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.model.config import StarConfig
from star_jax.model.refine import RefineHead

# Rounds whose tokens are chosen at random.
RANDOM_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class RefineSampling:
  """How many rounds, and whom they ask.

  Attributes:
    rounds: of every refined scale.
    fine_rounds: of scales from index `fine_from` on.
    fine_from: see there; also the first scale whose early rounds ask the head
      in spite of `transformer_first`.
    transformer_first: the first RANDOM_ROUNDS rounds draw from the transformer.
  """

  rounds: int = 8
  fine_rounds: int = 15
  fine_from: int = 13
  transformer_first: bool = False

  def rounds_of(self, k: int) -> int:
    """Rounds of scale k."""
    return self.fine_rounds if k >= self.fine_from else self.rounds

  def asks_transformer(self, k: int) -> bool:
    """Whether the first rounds of scale k draw from the transformer."""
    return self.transformer_first and k < self.fine_from


# The official settings for 256 and 512 px ('new') and for 1024 px ('1024').
HEAD = RefineSampling(fine_rounds=8)
TRANSFORMER_FIRST = RefineSampling(transformer_first=True)
# By the names that users give.
REFINEMENTS = {
  "off": None,
  "head": HEAD,
  "transformer_first": TRANSFORMER_FIRST,
}


def tokens_per_round(num_tokens: int, rounds: int) -> np.ndarray:
  """int32 [S]: how many tokens each round fixes.

  Shares arccos(r), r falling from 1 to 0, scaled to `num_tokens` and rounded,
  halves to even; at least one a round, the last takes what is left.

  Raises:
    ValueError: more rounds than the scale has tokens for.
  """
  share = np.arccos(np.linspace(1.0, 0.0, rounds))
  count = np.round(share / share.sum() * num_tokens).astype(np.int32)
  count = np.maximum(count, 1)
  count[-1] += num_tokens - count.sum()
  if count[-1] < 1:
    raise ValueError(
      f"{rounds} rounds of refinement are too many for a scale of"
      f" {num_tokens} tokens: each round has to fix at least one."
    )
  return count


def check_refine(
  config: StarConfig,
  sampling: RefineSampling | None,
  head: RefineHead | None,
) -> None:
  """ValueError unless `sampling` can be done with this head and schedule."""
  if sampling is None:
    return
  if head is None:
    raise ValueError(
      "Refinement was asked for, this model has no refinement head."
    )
  head.refine.check(config)
  for k in range(head.refine.first_scale, config.schedule.num_scales):
    tokens_per_round(config.schedule.lengths[k], sampling.rounds_of(k))


def random_confidence(keys_B: jax.Array, num_tokens: int) -> jax.Array:
  """float32 [RANDOM_ROUNDS, B, l] in [0, 1): of the first rounds."""
  shape = (RANDOM_ROUNDS, num_tokens)
  draw = jax.vmap(
    lambda key: jax.random.uniform(jax.random.fold_in(key, 0), shape)
  )
  return jnp.swapaxes(draw(keys_B), 0, 1)


# (visible [B, l], tokens [B, l]) -> guided logits [B, l, V] of the head.
HeadFn = Callable[[jax.Array, jax.Array], jax.Array]
# (round, logits [B, l, V]) -> filtered logits and what was drawn [B, l].
DrawFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def draw_in_rounds(
  head: HeadFn,
  draw: DrawFn,
  transformer_BlV: jax.Array | None,
  uniform_SBl: jax.Array,
  rounds: int,
  *,
  return_rounds: bool = False,
):
  """All tokens of one scale.

  Args:
    head: asked once a round.
    draw: filters and draws.
    transformer_BlV: guided logits that the first rounds draw from; None: they
      ask the head too.
    uniform_SBl: float32 [RANDOM_ROUNDS, B, l] in (0, 1), the confidence of the
      first rounds.
    rounds: S, static.
    return_rounds: also return tokens, confidences and masks of every round,
      for tests.

  Returns:
    int32 [B, l]; with `return_rounds` also dicts of arrays of the first and of
    the other rounds.
  """
  batch, length = uniform_SBl.shape[1:]
  counts = jnp.asarray(tokens_per_round(length, rounds))
  early = min(RANDOM_ROUNDS, rounds)

  def one_round(state, inputs, is_early: bool):
    visible_Bl, fixed_Bl = state
    number, count, uniform_Bl = inputs
    if is_early and transformer_BlV is not None:
      logits_BlV = transformer_BlV
    else:
      logits_BlV = head(visible_Bl, fixed_Bl)
    filtered_BlV, idx_Bl = draw(number, logits_BlV)
    confidence_Bl = _probability(filtered_BlV, idx_Bl)
    seen = {"tokens": idx_Bl, "confidence": confidence_Bl}
    if is_early and transformer_BlV is not None:
      # The most confident ones, whether fixed before or not.
      visible_Bl, fixed_Bl = _fix(
        confidence_Bl, count, visible_Bl, fixed_Bl, idx_Bl, True
      )
      seen["middle"] = visible_Bl
    if is_early:
      confidence_Bl = uniform_Bl
    # Where nothing is left to choose, what is fixed stays as it is.
    hidden_Bl = ~visible_Bl
    visible_Bl, fixed_Bl = _fix(
      jnp.where(hidden_Bl, confidence_Bl, 0.0),
      count,
      visible_Bl,
      fixed_Bl,
      idx_Bl,
      hidden_Bl,
    )
    seen["visible"] = visible_Bl
    return (visible_Bl, fixed_Bl), seen if return_rounds else None

  state = (
    jnp.zeros((batch, length), bool),
    jnp.zeros((batch, length), jnp.int32),
  )
  state, first = jax.lax.scan(
    lambda s, x: one_round(s, x, True),
    state,
    (jnp.arange(early), counts[:early], uniform_SBl[:early]),
  )
  rest = rounds - early
  state, others = jax.lax.scan(
    lambda s, x: one_round(s, x, False),
    state,
    (early + jnp.arange(rest), counts[early:], jnp.zeros((rest, batch, 1))),
  )
  return (state[1], first, others) if return_rounds else state[1]


def _probability(filtered_BlV: jax.Array, idx_Bl: jax.Array) -> jax.Array:
  """Of the drawn tokens, among those that the filters left."""
  log_p_BlV = jax.nn.log_softmax(filtered_BlV, axis=-1)
  picked = jnp.take_along_axis(log_p_BlV, idx_Bl[..., None], axis=-1)
  return jnp.exp(picked[..., 0])


def _fix(confidence_Bl, count, visible_Bl, fixed_Bl, idx_Bl, allowed_Bl):
  """Fixes the `count` most confident places with their tokens, those of them
  that are allowed; of equal ones the first."""
  order_Bl = jnp.argsort(-confidence_Bl, axis=-1, stable=True)
  rank_Bl = jnp.argsort(order_Bl, axis=-1)
  chosen_Bl = (rank_Bl < count) & allowed_Bl
  return visible_Bl | chosen_Bl, jnp.where(chosen_Bl, idx_Bl, fixed_Bl)
