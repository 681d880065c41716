"""Every product of the quantizer states HIGHEST precision on accelerators.

Without it TPUs compute float32 products in bfloat16 and GPUs in TF32, which
flips nearest-neighbour decisions. Read from the StableHLO that is lowered for
those platforms, so no accelerator is needed.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from star_jax.scales import ScaleSchedule
from star_jax.tokenizer.config import VQVAEConfig
from star_jax.tokenizer.quantizer import Quantizer

CONFIG = VQVAEConfig(
  schedule=ScaleSchedule.from_patch_nums([1, 2, 3]),
  vocab_size=8,
  code_dim=4,
  ch=8,
  ch_mult=(1,),
  num_res_blocks=1,
)
PRODUCT = re.compile(r"stablehlo\.(dot_general|convolution)\b.*")


def products(function, *args, platform):
  """The dot_general and convolution lines of the program for `platform`."""
  # The suite itself runs at "highest"; the code must not rely on it.
  with jax.default_matmul_precision("default"):
    lowered = (
      jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    )
  return [match.group(0) for match in PRODUCT.finditer(lowered.as_text())]


def is_highest(line):
  if "dot_general" in line:
    return "precision = [HIGHEST, HIGHEST]" in line
  return line.count("#stablehlo<precision HIGHEST>") == 2


def _train(quantizer, params, f, idx_BL):
  del idx_BL

  def loss(params, f):
    out = quantizer.apply({"params": params}, f)
    return out.vq_loss + jnp.sum(out.f_hat_BhwCv)

  return jax.grad(loss, argnums=(0, 1))(params, f)


def _infer(quantizer, params, f, idx_BL):
  variables = {"params": params}
  return (
    quantizer.apply(variables, f, method="encode"),
    quantizer.apply(variables, f, method="residuals"),
    quantizer.apply(variables, idx_BL, method="tokens_to_f_hats"),
    quantizer.apply(variables, idx_BL, method="tokens_to_growing_f_hat"),
    quantizer.apply(variables, idx_BL, method="teacher_forcing_input"),
  )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("using_znorm", [False, True])
@pytest.mark.parametrize("run", [_train, _infer])
def test_every_product_is_highest(run, using_znorm, platform):
  quantizer = Quantizer(dataclasses.replace(CONFIG, using_znorm=using_znorm))
  f = jax.ShapeDtypeStruct((2, 3, 3, 4), jnp.float32)
  idx_BL = jax.ShapeDtypeStruct((2, 14), jnp.int32)
  params = jax.eval_shape(quantizer.init, jax.random.key(0), f)["params"]
  lines = products(
    lambda *args: run(quantizer, *args), params, f, idx_BL, platform=platform
  )
  for name in ("dot_general", "convolution"):
    assert any(name in line for line in lines), name
  lowered_precision = [line for line in lines if not is_highest(line)]
  assert not lowered_precision


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_check_sees_a_product_without_precision(platform):
  x = jnp.ones((4, 4))
  lines = products(lambda x: x @ x, x, platform=platform)
  assert len(lines) == 1 and not is_highest(lines[0])
