"""Floating point operations of a function, counted on its jaxpr.

`count_flops` counts what is computed; `count_model_flops` what a training step
has to compute, which is what MFU is a share of (arXiv 2204.02311, appendix B).

XLA's own count visits the body of a loop once; here a scan over layers counts
as often as it runs. Only matrix products and convolutions count (2 per
multiply-add): they are what a model's FLOP/s are compared by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from star_jax.model.kernel_blocks import KernelBlocks

# Calls of cuDNN's attention, and their products for every query and key: the
# gradient computes the logits again.
_CUDNN_PRODUCTS = {
  "dot_product_attention_fwd_wrapper": 2,
  "dot_product_attention_bwd_wrapper": 5,
}


def count_flops(fn: Callable, *args, **kwargs) -> int:
  """FLOPs of one call of `fn`; arguments may be ShapeDtypeStructs."""
  return jaxpr_flops(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def count_model_flops(
  loss_fn: Callable, params, extra, frozen, batch, key, step
) -> int:
  """FLOPs of a loss (see `task.Task.loss`) and its gradient, each counted once
  whatever remat computes again. Arguments may be ShapeDtypeStructs."""

  def objective(params, *rest):
    return loss_fn(params, *rest)[0]

  args = (params, extra, frozen, batch, key, step)
  kept = jaxpr_as_fun(_keeping_all(jax.make_jaxpr(objective)(*args)))
  rest = jax.tree.leaves(args[1:])
  return count_flops(
    jax.grad(lambda params, *rest: kept(*params, *rest)[0]),
    jax.tree.leaves(params),
    *rest,
  )


def _keeping_all(program):
  """The same jaxpr, of whose checkpoints the backward pass keeps everything."""
  if isinstance(program, ClosedJaxpr):
    return program.replace(jaxpr=_keeping_all(program.jaxpr))
  if type(program) in (tuple, list):
    return type(program)(map(_keeping_all, program))
  if not isinstance(program, Jaxpr):
    return program
  eqns = []
  for equation in program.eqns:
    params = {k: _keeping_all(v) for k, v in equation.params.items()}
    if equation.primitive.name == "remat2":
      params["policy"] = jax.checkpoint_policies.everything_saveable
    eqns.append(equation.replace(params=params))
  return program.replace(eqns=eqns)


def jaxpr_flops(jaxpr, scope: str = "") -> int:
  """FLOPs of a jaxpr that is traced already; `scope`: names around it."""
  return sum(p.flops * p.times for p in traced_products(jaxpr, scope))


@dataclasses.dataclass(frozen=True)
class TracedProduct:
  """A matrix product, convolution or call of cuDNN's attention.

  Attributes:
    flops: of one of its runs.
    bytes: of what it reads and writes.
    times: that it runs, on all devices together.
    scope: names of the modules that it is in.
    dtype: of its first operand.
    exact: float32 is not to be rounded (precision "highest").
  """

  flops: int
  bytes: int
  times: int
  scope: str
  dtype: str
  exact: bool


def traced_products(jaxpr, scope: str = "") -> list[TracedProduct]:
  """Of a jaxpr, in order; of the branches of a condition those of the one with
  the most FLOPs."""
  found = []
  for equation in jaxpr.eqns:
    found += _equation_products(equation, scope)
  return found


def _equation_products(equation, scope: str) -> list[TracedProduct]:
  name = equation.primitive.name
  scope = f"{scope}/{equation.source_info.name_stack}"
  if name in _PRODUCTS:
    return [_product(equation, scope)]
  inner = [traced_products(jaxpr, scope) for jaxpr in _inner_jaxprs(equation)]
  if name == "cond":
    return max(inner, key=lambda ps: sum(p.flops * p.times for p in ps))
  # A while loop has no static count: its body is taken once.
  times = 1
  if name == "scan":
    times = equation.params["length"]
  elif name == "pallas_call":
    times = _kernel_calls(equation, scope)
  elif name == "shard_map":
    # What one device does.
    times = equation.params["mesh"].size
  return [
    dataclasses.replace(p, times=times * p.times) for ps in inner for p in ps
  ]


def _product(equation, scope: str) -> TracedProduct:
  arrays = [x.aval for x in (*equation.invars, *equation.outvars)]
  return TracedProduct(
    flops=_PRODUCTS[equation.primitive.name](equation),
    bytes=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
    times=1,
    scope=scope,
    dtype=arrays[0].dtype.name,
    exact="HIGHEST" in str(equation.params.get("precision")),
  )


def _kernel_calls(equation, scope: str) -> int:
  """How often the body of a kernel runs: once for each place of its grid, but
  for the blocks that it skips, which the name of its scope tells."""
  calls = math.prod(equation.params["grid_mapping"].grid)
  blocks = KernelBlocks.named(scope)
  return calls * blocks.run // blocks.all if blocks else calls


def _inner_jaxprs(equation):
  for value in equation.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      jaxpr = getattr(item, "jaxpr", item)
      if hasattr(jaxpr, "eqns"):
        yield jaxpr


def _cudnn_flops(equation) -> int:
  """Products of every query [B, T, N, d] and key [B, S, N, d]."""
  queries, keys = (x.aval.shape for x in equation.invars[:2])
  pairs = math.prod(queries[:3]) * keys[1]
  return 2 * _CUDNN_PRODUCTS[equation.primitive.name] * pairs * queries[-1]


def _dot_flops(equation) -> int:
  (contract, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contract)
  return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _conv_flops(equation) -> int:
  kernel = equation.invars[1].aval.shape
  numbers = equation.params["dimension_numbers"]
  taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
  # Inserted zeros (the gradient of a strided convolution) are no work.
  zeros = math.prod(equation.params["lhs_dilation"])
  products = math.prod(equation.outvars[0].aval.shape) * taps
  return 2 * products // zeros


_PRODUCTS = {
  "dot_general": _dot_flops,
  "conv_general_dilated": _conv_flops,
  **dict.fromkeys(_CUDNN_PRODUCTS, _cudnn_flops),
}
