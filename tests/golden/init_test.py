"""Freshly drawn weights against the official statistics, STAR and VAR."""

import jax
import numpy as np
import pytest

from star_jax.convert.star import star_to_torch
from star_jax.convert.var import var_to_torch
from star_jax.model.config import StarConfig
from star_jax.model.star import Star
from star_jax.scales import ScaleSchedule
from star_jax.shapes import example_inputs
from tests.cases import long_but
from tests.golden.conftest import cases_of
from tests.golden.star_cases import QUICK


def init_tables():
  """Every model of the tables of initial weights."""
  out = []
  for param in cases_of("table"):
    name, case = param.values
    if param.marks:
      return [pytest.param(name, {}, marks=param.marks)]
    for model, stats in case.get("stats", {}).items():
      out.append(pytest.param(name, stats, id=model))
  return out


def model_of(build: dict) -> StarConfig:
  """The configuration of a table, with a text or with classes."""
  if "in_dim_cross" in build:
    kind = {
      "text_dim": build["in_dim_cross"],
      "rope_norm": 16.0,
      "adaptive_norm": "level" if build["shared_aln"] else "none",
    }
  else:
    kind = {
      "num_classes": build["num_classes"],
      "rope_norm": -1.0,
      "position": "absolute",
      "cross_attention": False,
      "adaptive_norm": "shared" if build["shared_aln"] else "block",
    }
  return StarConfig(
    schedule=ScaleSchedule.from_patch_nums(build["patch_nums"]),
    vocab_size=build["V"],
    code_dim=build["Cvae"],
    depth=build["depth"],
    width=build["width"],
    num_heads=build["heads"],
    attn_l2_norm=build["attn_l2_norm"],
    init_std=float(build["init_std"]),
    init_head=build["init_head"],
    init_adaln=build["init_adaln"],
    init_adaln_gamma=build.get("init_adaln_gamma", 1e-5),
    drop_path_rate=0.0,
    **kind,
  )


def fresh_state(build: dict) -> dict[str, np.ndarray]:
  """Official names and layouts of freshly drawn parameters."""
  config = model_of(build)
  if "init_std_resolved" in build:
    np.testing.assert_allclose(config.weight_std, build["init_std_resolved"])
  star = Star(config)
  init = jax.jit(star.init, compiler_options=QUICK)
  params = init(jax.random.key(0), *example_inputs(star))["params"]
  to_torch = var_to_torch if config.num_classes else star_to_torch
  return to_torch(params, config)


@pytest.mark.parametrize(("name", "stats"), long_but(1, init_tables()))
def test_initial_weights_have_the_official_statistics(name, stats):
  build = stats["build"]
  state = fresh_state(build)
  if not build.get("enable_adaptive_norm"):
    assert stats["params"].keys() <= state.keys()
  for key, theirs in stats["params"].items():
    unused = key == "class_emb.weight" and "in_dim_cross" in build
    if unused or key not in state:  # or a part of the refinement head
      continue
    ours = state[key]
    assert list(ours.shape) == theirs["shape"], key
    if theirs["std"] == 0:
      np.testing.assert_allclose(ours, theirs["mean"], rtol=1e-6, err_msg=key)
      continue
    # Two draws of n numbers: five standard errors of their difference. What
    # modulates is a mixture of two widths, hence the wider margin.
    mixed = "ada_gss" in key or "ada_lin" in key
    error = 5 * np.sqrt(2 / (ours.size / (2 if mixed else 1)))
    np.testing.assert_allclose(
      ours.std(), theirs["std"], rtol=error / np.sqrt(2), err_msg=key
    )
    assert abs(ours.mean() - theirs["mean"]) < error * theirs["std"], key
    for part, rows in (("gamma", slice(2)), ("scale_shift", slice(2, None))):
      std = theirs.get(f"std_{part}", theirs.get(f"std_{part}_rows"))
      if std is not None:
        six = np.squeeze(ours) if "ada_gss" in key else np.split(ours, 6)
        np.testing.assert_allclose(
          np.std(six[rows]), std, rtol=error, err_msg=f"{key}, {part}"
        )
