"""What a sweep plans: arms, equal budgets, refusals."""

import jax
import pytest

from configs import ablations
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.shapes import example_inputs
from star_jax.sweep import plan


@pytest.fixture(scope="module")
def arms():
  config = ablations.get_config()
  return {arm.name: arm for arm in plan.plan_arms(config)}


def changed(config, **values):
  config = config.copy_and_resolve_references()
  config.update(values)
  return config


@pytest.mark.long
def test_every_arm_spends_the_budget_and_none_more(arms):
  budget = ablations.get_config().budget_tflops * 1e12
  assert len(arms) == len(ablations.ARMS)
  for arm in arms.values():
    spent = arm.num_steps * arm.flops_per_step
    assert budget - arm.flops_per_step < spent <= budget
  assert arms["var_large"].num_steps < arms["var_qk_norm"].num_steps / 2


@pytest.mark.long
def test_an_arm_differs_from_the_first_in_what_it_says(arms):
  first = vars(arms["star"].model)
  for name, _, changes, _ in ablations.ARMS:
    model = vars(arms[name].model)
    different = {key for key in model if model[key] != first[key]}
    assert different == {
      key for key in changes if key == "schedule" or changes[key] != first[key]
    }
    assert bool(different) == (name != "star")


def test_a_step_costs_six_flops_a_weight_and_token():
  """6 N D (arXiv 2001.08361) for the products with weights, plus attention."""
  model = StarConfig.from_dict(
    {
      **ablations.model(),
      "cross_attention": False,
      "schedule": [1, 2, 4, 8],
      "width": 64,
      "num_heads": 1,
    }
  )
  star = Star(model)
  shapes = jax.eval_shape(star.init, jax.random.key(0), *example_inputs(star))[
    "params"
  ]
  per_token = sum(
    x.size for x in jax.tree.leaves((shapes["blocks"], shapes["head"]))
  )
  tokens = 2 * model.schedule.num_tokens
  weights = 6 * tokens * per_token
  counted = plan.step_flops(model, 2, 24)
  assert weights < counted < 1.25 * weights


@pytest.mark.parametrize(
  "change, match",
  [
    ({"budget_tflops": 0.001}, "buys 0 steps of the arm star"),
    ({"examples": {"multi": 100}}, "raise config.examples.multi or lower"),
    (
      {"arms": (dict(name="a", title="", tokenizer="x", model={}),)},
      "names the tokenizer 'x'; the sweep has multi, single",
    ),
    (
      {"arms": (dict(name="a", title="", tokenizer="multi", model={"q": 1}),)},
      "Unknown model settings .'q'.",
    ),
  ],
)
def test_a_plan_that_makes_no_sense_is_refused(change, match):
  with pytest.raises(ValueError, match=match):
    plan.plan_arms(changed(ablations.get_config(), **change))


def test_unknown_arms_are_named():
  with pytest.raises(ValueError, match="Unknown arms no_such; the sweep"):
    plan.plan_arms(ablations.get_config(), ["star", "no_such"])
