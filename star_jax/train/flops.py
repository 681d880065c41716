"""Floating point operations of a function, counted on its jaxpr.

XLA's own count visits the body of a loop once; here a scan over layers counts
as often as it runs. Only matrix products and convolutions count (2 per
multiply-add): they are what a model's FLOP/s are compared by.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax


def count_flops(fn: Callable, *args, **kwargs) -> int:
  """FLOPs of one call of `fn`; arguments may be ShapeDtypeStructs."""
  return jaxpr_flops(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def jaxpr_flops(jaxpr) -> int:
  """FLOPs of a jaxpr that is traced already."""
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> int:
  name = equation.primitive.name
  if name == "dot_general":
    return _dot_flops(equation)
  if name == "conv_general_dilated":
    return _conv_flops(equation)
  inner = [jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(equation)]
  if name == "scan":
    return equation.params["length"] * sum(inner)
  if name == "cond":
    return max(inner)
  # A while loop has no static count: its body is taken once.
  return sum(inner)


def _inner_jaxprs(equation):
  for value in equation.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      jaxpr = getattr(item, "jaxpr", item)
      if hasattr(jaxpr, "eqns"):
        yield jaxpr


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
