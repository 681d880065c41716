"""What a scaling sweep plans: sizes, budgets, jobs, refusals."""

import math

import pytest

from configs import scaling_law
from star_jax.scaling import plan


@pytest.fixture(scope="module")
def planned():
  return plan.plan_sweep(scaling_law.get_config())


@pytest.mark.long
def test_six_sizes_over_a_decade_and_a_half(planned):
  sizes = {job.size.name: job.size for job in planned.jobs}
  assert len(sizes) >= 6 and len(planned.jobs) == 2 * len(sizes)
  counts = [size.non_embedding for size in sizes.values()]
  assert counts == sorted(counts)
  assert math.log10(counts[-1] / counts[0]) >= 1.5
  for size in sizes.values():
    assert size.model.num_heads == size.depth
    assert size.model.width == 16 * size.depth
    assert size.model.drop_path_rate == pytest.approx(0.1 * size.depth / 24)
    assert size.model.base_width == 64
    assert {"head", "word_embed", "blocks", "cross"} <= set(size.parameters)


@pytest.mark.long
def test_budgets_branch_where_the_rate_is_still_flat(planned):
  config = scaling_law.get_config()
  assert len(planned.budgets) >= 4
  warmup = config.training.optimizer.warmup_steps
  for budget in planned.budgets:
    span = budget.num_steps - 1 - warmup
    assert (budget.branch_step - warmup) / span <= 1 - config.cooldown
    assert (budget.branch_step + 1 - warmup) / span > 1 - config.cooldown
  assert planned.budgets[-1].num_steps == config.num_steps
  # One run serves all budgets: far less than runs of their own.
  own = sum(budget.num_steps for budget in planned.budgets)
  assert planned.steps_of_job() < 0.7 * own


@pytest.mark.long
def test_the_plan_is_printed_with_the_numbers_of_the_jobs(planned):
  lines = plan.describe(planned, scaling_law.get_config()).splitlines()
  assert lines[1].split()[:3] == ["0", "d2", "0"]
  assert lines[-1].startswith("12 jobs, 1.8")
  facts = plan.facts_of(planned.jobs[0], planned.budgets[-1], 32)
  assert facts["examples"] == 4_992 * 32
  assert facts["tokens"] == facts["examples"] * 149


def test_rates_of_vars_readme():
  config = scaling_law.get_config()
  config.rates.rule = "var"
  assert plan.plan_size(config, 2).model.base_width == 0
  assert plan.var_rate(16, 768) == pytest.approx(3e-4)
  assert plan.var_rate(30, 1024) == pytest.approx(3.2e-4)


@pytest.mark.parametrize(
  "change, match",
  [
    ({"sizes": ()}, "name at least one each"),
    ({"fractions": (0.5, 0.25, 1.0)}, "rise from above 0 to 1"),
    ({"fractions": (0.25, 0.5)}, "rise from above 0 to 1"),
    ({"fractions": (0.01, 1.0)}, "A run of 50 steps .* has no room for 50"),
    ({"num_steps": 6_000}, "sees 192000 examples, and 160000 are cached"),
    ({"rates.rule": "best"}, "one of mup, var, same, got 'best'"),
    (
      {"training.optimizer.weight_decay_end": 0.1},
      "weight_decay_end is its weight_decay, 0.05, got 0.1",
    ),
  ],
)
def test_a_plan_that_makes_no_sense_is_refused(change, match):
  config = scaling_law.get_config()
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=match):
    plan.plan_sweep(config)
