"""Renaming PyTorch state dicts into our parameter trees and back.

A conversion is an ordered tuple of `Rule`s. Each names one family of keys on
both sides with templates:

  Rule("blocks.{layer}.attn.proj.weight", "blocks/attn/proj/kernel", LINEAR)
  Rule("encoder.down.{i}.conv.bias", "encoder/down_{i}/conv/bias", COPY)
  ignore("quantize.ema_vocab_hit_SV", shape=(4, 64))

`{layer}` on the left only means that our side stacks the layers along a
leading axis; every other placeholder stands for the same word on both sides
(no dots, no slashes). The first rule that matches wins. Nothing is skipped in
silence: an unknown key, a missing key, a parameter without a rule and a shape
that differs are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from star_jax.tensor_file import drop_pages

LAYER = "layer"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Transform:
  """A change of layout; `rank` is the rank on the PyTorch side (None: any)."""

  name: str
  to_jax: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray], np.ndarray]
  rank: int | None = None


COPY = Transform("copy", lambda x: x, lambda x: x)
# (out, in) <-> (in, out)
LINEAR = Transform("linear", lambda x: x.T, lambda x: x.T, rank=2)
# (out, in, h, w) <-> (h, w, in, out)
CONV = Transform(
  "conv",
  lambda x: x.transpose(2, 3, 1, 0),
  lambda x: x.transpose(3, 2, 0, 1),
  rank=4,
)
# A 1x1 convolution that our side writes as a matrix: (out, in, 1, 1) <->
# (in, out).
CONV_1X1 = Transform(
  "conv_1x1",
  lambda x: x[:, :, 0, 0].T,
  lambda x: x.T[:, :, None, None],
  rank=4,
)


def squeeze(*axes: int) -> Transform:
  """Drops axes of length 1 that only PyTorch keeps (`scale_mul_1H11`)."""
  return Transform(
    f"squeeze{axes}",
    lambda x: np.squeeze(x, axes),
    lambda x: np.expand_dims(x, axes),
  )


@dataclasses.dataclass(frozen=True)
class Rule:
  """One family of keys; `path` None marks keys that have no counterpart.

  Attributes:
    key: template of the PyTorch key.
    path: template of our path, '/'-joined, or None to ignore the key.
    transform: change of layout between the two.
    shape: of ignored keys only: what `jax_to_torch` writes zeros of (None:
      the key is not written).
    layers: of ignored keys with `{layer}` only: how many are written.
    dtype: of ignored keys only: what is written.
    make: of ignored keys only: what is written instead of zeros.
  """

  key: str
  path: str | None
  transform: Transform = COPY
  shape: tuple[int, ...] | None = None
  layers: int | None = None
  dtype: str = "float32"
  make: Callable[[], np.ndarray] | None = None

  @property
  def stacked(self) -> bool:
    """Whether our side holds all layers of this family in one array."""
    return (
      self.path is not None
      and f"{{{LAYER}}}" in self.key
      and f"{{{LAYER}}}" not in self.path
    )

  def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The PyTorch shape of what is `shape` here (one layer, if stacked)."""
    # A view without memory: only its shape is of interest.
    view = np.broadcast_to(np.float32(0), shape)
    return self.transform.to_torch(view).shape


def ignore(
  key: str,
  shape: Sequence[int] | None = None,
  layers: int | None = None,
  dtype: str = "float32",
) -> Rule:
  """A key of the state dict without a counterpart on our side.

  Args:
    key: template of the PyTorch key.
    shape: if given, `jax_to_torch` writes zeros of it, so that PyTorch's
      strict loading accepts the result.
    layers: number of copies to write when the key contains `{layer}`.
    dtype: of these zeros.
  """
  shape = None if shape is None else tuple(shape)
  return Rule(key, None, shape=shape, layers=layers, dtype=dtype)


def linear(key: str, path: str) -> tuple[Rule, Rule]:
  """Weight and bias of a linear layer."""
  return (
    Rule(f"{key}.weight", f"{path}/kernel", LINEAR),
    Rule(f"{key}.bias", f"{path}/bias", COPY),
  )


def derived(key: str, make: Callable[[], np.ndarray]) -> Rule:
  """A key that PyTorch stores and that we compute, such as a mask.

  Args:
    key: the PyTorch key.
    make: returns what `jax_to_torch` writes.
  """
  return Rule(key, None, make=make)


class Converted(Mapping):
  """Our parameters by '/'-joined path, each made when it is asked for.

  So a checkpoint that is mapped into memory can be written elsewhere with no
  more of it in memory than one parameter.

  Args:
    state: arrays by official key name, PyTorch layouts.
    rules: see the module docstring.
    template: tree of arrays or `ShapeDtypeStruct`s, the tree to fill, as
      `jax.eval_shape(module.init, ...)["params"]` gives it.

  Attributes:
    shapes: of every parameter, by path.
    ignored: the keys of the state dict that have no counterpart here.

  Raises:
    ValueError: keys unknown or missing, or a shape that differs; every one of
      them is named.
  """

  def __init__(
    self,
    state: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    template: Mapping[str, Any],
  ):
    self._state = state
    self._leaves = traverse_util.flatten_dict(template, sep="/")
    self.shapes = {path: leaf.shape for path, leaf in self._leaves.items()}
    self._plan = {
      path: _locate(path, shape, rules) for path, shape in self.shapes.items()
    }
    expected = {key for _, keys in self._plan.values() for key in keys}
    _check_keys(set(state), expected, rules)
    self.ignored = sorted(set(state) - expected)
    for path, (rule, keys) in self._plan.items():
      for key in keys:
        _check_shape(state[key], key, rule, self._shape(path))

  def __iter__(self):
    return iter(self._plan)

  def __len__(self) -> int:
    return len(self._plan)

  def __getitem__(self, path: str) -> np.ndarray:
    """A contiguous array with the shape and dtype of the template."""
    leaf = self._leaves[path]
    out = np.empty(leaf.shape, leaf.dtype)
    for i, piece in enumerate(self.pieces(path)):
      out[i if self._plan[path][0].stacked else ...] = piece
    return out

  def pieces(self, path: str) -> Iterator[np.ndarray]:
    """The same array, layer by layer where our side stacks them."""
    rule, keys = self._plan[path]
    dtype = self._leaves[path].dtype
    for key in keys:
      source = np.asarray(self._state[key])
      piece = np.array(rule.transform.to_jax(source), dtype, order="C")
      drop_pages(source)
      yield piece

  def tree(self) -> dict[str, Any]:
    """All parameters, a nested dict of numpy arrays."""
    return traverse_util.unflatten_dict(dict(self), sep="/")

  def _shape(self, path: str) -> tuple[int, ...]:
    """Of one layer where our side stacks them."""
    return self.shapes[path][1 if self._plan[path][0].stacked else 0 :]


def torch_to_jax(
  state: Mapping[str, np.ndarray],
  rules: Sequence[Rule],
  template: Mapping[str, Any],
) -> dict[str, Any]:
  """Our parameters from a PyTorch state dict, a nested dict of numpy arrays.

  Arguments and errors are those of `Converted`.
  """
  return Converted(state, rules, template).tree()


class Restored(Mapping):
  """The inverse of `Converted`: official names, each array made when asked for.

  Keys that our side does not have are zeros where their rule states a shape.

  Args:
    params: nested dict of arrays, or of views of a mapped file. What is
      narrower than float32 becomes float32.
    rules: the rules that read the state dict.

  Attributes:
    facts: key -> (shape, dtype) of every array.

  Raises:
    ValueError: a parameter has no rule, or two give the same key.
  """

  def __init__(self, params: Mapping[str, Any], rules: Sequence[Rule]):
    self._made: dict[str, Callable[[], np.ndarray]] = {}
    self.facts: dict[str, tuple[tuple[int, ...], str]] = {}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
      shape = tuple(np.shape(value))
      rule, keys = _locate(path, shape, rules)
      dtype = str(np.promote_types(value.dtype, np.float32))
      wanted = rule.torch_shape(shape[1 if rule.stacked else 0 :])
      for i, key in enumerate(keys):
        if key in self.facts:
          raise ValueError(f"Two parameters are written to the key {key!r}.")
        self.facts[key] = wanted, dtype
        self._made[key] = _part_maker(value, rule, i, dtype)
    for rule in rules:
      if rule.make is not None:
        made = rule.make()
        self._add(rule.key, made.shape, str(made.dtype), rule.make)
      elif rule.path is None and rule.shape is not None:
        for key in _ignored_keys(rule):
          zeros = functools.partial(np.zeros, rule.shape, rule.dtype)
          self._add(key, rule.shape, rule.dtype, zeros)

  def _add(self, key, shape, dtype, make) -> None:
    if key not in self.facts:
      self.facts[key], self._made[key] = (tuple(shape), dtype), make

  def __iter__(self):
    return iter(self.facts)

  def __len__(self) -> int:
    return len(self.facts)

  def __getitem__(self, key: str) -> np.ndarray:
    return self._made[key]()


def _part_maker(value, rule: Rule, i: int, dtype: str):
  """What makes layer i of a parameter (all of it where none are stacked)."""

  def make() -> np.ndarray:
    part = np.asarray(value[i] if rule.stacked else value)
    made = np.array(rule.transform.to_torch(part), dtype, order="C")
    drop_pages(part)
    return made

  return make


def jax_to_torch(
  params: Mapping[str, Any], rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
  """The inverse of `torch_to_jax`: all arrays of `Restored`."""
  return dict(Restored(params, rules))


def _locate(
  path: str, shape: tuple[int, ...], rules: Sequence[Rule]
) -> tuple[Rule, list[str]]:
  """The rule of one of our parameters and the key(s) it corresponds to."""
  for rule in rules:
    if rule.path is None:
      continue
    match = _regex(rule.path).fullmatch(path)
    if match is None:
      continue
    words = match.groupdict()
    if not rule.stacked:
      return rule, [rule.key.format(**words)]
    layers = range(shape[0])
    return rule, [rule.key.format(**words, **{LAYER: i}) for i in layers]
  raise ValueError(f"No conversion rule for our parameter {path!r}.")


def _regex(template: str) -> re.Pattern[str]:
  """Matches the strings a template stands for; a word is a named group."""
  seen: set[str] = set()
  out, end = [], 0
  for match in _PLACEHOLDER.finditer(template):
    name = match.group(1)
    out.append(re.escape(template[end : match.start()]))
    out.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^./]+?)")
    seen.add(name)
    end = match.end()
  out.append(re.escape(template[end:]))
  return re.compile("".join(out))


def _check_keys(given: set[str], expected: set[str], rules: Sequence[Rule]):
  """Raises unless every key is known and none is missing."""
  ignored = [_regex(rule.key) for rule in rules if rule.path is None]
  unknown = sorted(
    key
    for key in given - expected
    if not any(regex.fullmatch(key) for regex in ignored)
  )
  missing = sorted(expected - given)
  problems = []
  if unknown:
    problems.append(f"{len(unknown)} unknown key(s): {_shorten(unknown)}")
  if missing:
    problems.append(f"{len(missing)} missing key(s): {_shorten(missing)}")
  if problems:
    raise ValueError(
      f"The state dict does not fit this model: {'; '.join(problems)}."
    )


def _shorten(keys: list[str], most: int = 8) -> str:
  listed = ", ".join(keys[:most])
  return listed if len(keys) <= most else f"{listed}, ..."


def _check_shape(
  value: np.ndarray, key: str, rule: Rule, shape: tuple[int, ...]
) -> None:
  """Raises unless the array has the PyTorch layout of our `shape`."""
  wanted = rule.torch_shape(shape)
  if np.shape(value) != wanted:
    raise ValueError(
      f"{key!r} has shape {np.shape(value)}, this model needs {wanted}."
    )


def _ignored_keys(rule: Rule) -> list[str]:
  if f"{{{LAYER}}}" not in rule.key:
    return [rule.key]
  if rule.layers is None:
    raise ValueError(
      f"The ignored key {rule.key!r} has a shape but no number of layers."
    )
  return [rule.key.format(**{LAYER: i}) for i in range(rule.layers)]
