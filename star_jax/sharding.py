"""Where every array of a run lies: the mesh, and one ordered table of rules.

A rule is a pattern of paths and, for each axis of the array, the mesh axes
that it is cut over. The first rule that matches counts; a parameter without a
rule is an error. Optimizer moments and averages end in the path of their
parameter and so lie where it does. Activations have rules in the same table,
under the names that `constrain` is called with, so that the model itself knows
of no mesh.

Mesh axes: `data` cuts the batch and keeps parameters whole; `fsdp` cuts the
batch and the parameters, which are gathered layer by layer; `tensor` cuts heads
and hidden channels; `sequence` cuts the tokens of a picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")
SEQUENCE = "sequence"
# An axis with this mark is left out where it does not divide the array.
OPTIONAL = "?"

# First match wins. Layers are stacked along the first axis of "blocks" and of
# "cross", which is never cut: a step of the scan then reads one layer's part.
RULES: tuple[tuple[str, tuple], ...] = (
  # Activations.
  (r"^activations/x_BLC$", (BATCH, "sequence", None)),
  (r"^activations/heads_BNLd$", (BATCH, "tensor", None, None)),
  (r"^activations/queries_BNLd$", (BATCH, "tensor", "sequence", None)),
  (r"^activations/weights_BL$", (BATCH, None)),
  (r"^activations/inputs_BLCv$", (BATCH, None, None)),
  (r"^activations/cross_LBTC$", (None, BATCH, None, "tensor")),
  (r"^activations/logits_BLV$", (BATCH, "sequence", "tensor")),
  (r"^activations/cache_LBSC$", (None, BATCH, None, "tensor")),
  (r"^activations/image_BHW3$", (BATCH, None, None, None)),
  # Text encoders.
  (r"^text/.*(kernel|embedding)$", (..., "fsdp?")),
  # Frozen networks of losses, and discriminators: by the outputs.
  (r"(^|/)(vgg16|efficientnet|dino)/(.*/)?kernel$", (..., "fsdp?")),
  (r"(^|/)dino/(cls_token|pos_embed)$", ()),
  (r"^networks/", ()),
  (r"(^|/)(discriminator|adversary)/(.*/)?kernel$", (..., "fsdp?")),
  (r"(^|/)adversary/", ()),
  # Transformer and refinement head.
  (r"blocks/attn/qkv$", (None, "fsdp", None, "tensor")),
  (r"blocks/attn/[qv]_bias$", (None, "tensor")),
  (r"blocks/(cross_)?attn/scale_mul$", ()),
  (r"blocks/(cross_)?attn/proj/kernel$", (None, "tensor", "fsdp")),
  (r"blocks/cross_attn/q/kernel$", (None, "fsdp", "tensor")),
  (r"blocks/cross_attn/q/bias$", (None, "tensor")),
  (r"blocks/mlp/fc1/kernel$", (None, "fsdp", "tensor")),
  (r"blocks/mlp/fc1/bias$", (None, "tensor")),
  (r"blocks/mlp/fc2/kernel$", (None, "tensor", "fsdp")),
  (r"blocks/(.*/)?(proj|fc2)/bias$", ()),
  (r"blocks/modulation/ada_gss$", ()),
  (r"cross/kv$", (None, "fsdp?", None, "tensor")),
  (r"cross/v_bias$", (None, "tensor")),
  (r"adaptive_norm/kernel$", ("fsdp?", None, None)),
  (r"head_norm/kernel$", ("fsdp?", None, None)),
  (r"(adaptive_norm|head_norm)/bias$", ()),
  (r"class_embed/embedding$", (None, "fsdp")),
  (r"(^|/)pos_embed$", (None, "fsdp")),
  (r"(^|/)(pos_start|lvl_embed)$", ()),
  # Small ones are not worth a gather.
  (r"(start_proj|text_proj|word_embed)/kernel$", ()),
  (r"(lvl_embed_proj|lvl_embed_adaln)/kernel$", ("fsdp", None)),
  (r"(^|/)head/kernel$", ("fsdp", "tensor?")),
  (r"(^|/)proj/kernel$", ("fsdp", None)),
  # Image tokenizer: by the outputs.
  (r"(^|/)quantizer/", ()),
  (r"(encoder|decoder)/.*/kernel$", (..., "fsdp?")),
  (r"(linear_path/.*|(post_)?quant_conv)/kernel$", ()),
  (r"(^|/)usage_KV$", ()),
  # Vectors, and what belongs to a text.
  (r"(bias|scale|logit_scale|weight)$", ()),
  (r"(^|/)null(/|$)", ()),
  (r"(^|/)(step|count|ns_coeffs)$", ()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many parts each axis cuts into; -1, at most once: what is left over."""

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  tensor: int = 1

  def sizes(self, devices: int) -> tuple[int, ...]:
    """The axes in order, for this many devices.

    Raises:
      ValueError: an axis below 1 that is not -1, several of -1, or sizes whose
        product does not divide the devices.
    """
    given = dataclasses.astuple(self)
    text = ", ".join(f"{name}={x}" for name, x in zip(AXES, given))
    if any(x != int(x) or (x < 1 and x != -1) for x in given):
      raise ValueError(
        "An axis of config.mesh is a whole number from 1 on, or -1, got"
        f" {text}."
      )
    if given.count(-1) > 1:
      raise ValueError(f"One axis of config.mesh at most is -1, got {text}.")
    fixed = math.prod(x for x in given if x != -1)
    if devices % fixed:
      raise ValueError(
        f"config.mesh ({text}) needs a multiple of {fixed} devices, here are"
        f" {devices}."
      )
    return tuple(devices // fixed if x == -1 else x for x in given)


def make_mesh(
  config: MeshConfig | Mapping[str, int], devices: Sequence | None = None
) -> Mesh:
  """The mesh of a run.

  Args:
    config: the axes; sizes whose product is smaller than the number of devices
      take the first of them.
    devices: instead of all there are.

  Raises:
    ValueError: see `MeshConfig.sizes`; several processes of which the mesh
      would leave one without a device.
  """
  if not isinstance(config, MeshConfig):
    config = MeshConfig(**config)
  devices = list(jax.devices() if devices is None else devices)
  sizes = config.sizes(len(devices))
  count = math.prod(sizes)
  used = {d.process_index for d in devices[:count]}
  if idle := {d.process_index for d in devices} - used:
    raise ValueError(
      f"config.mesh takes {count} of {len(devices)} devices, which leaves"
      f" process {min(idle)} without one; give an axis -1."
    )
  types, devices = (AxisType.Auto,) * len(AXES), devices[:count]
  try:
    return jax.make_mesh(sizes, AXES, types, devices=devices)
  except NotImplementedError:
    # On a TPU, where an axis of its torus has to be cut for these sizes.
    placed = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=types)


def check_rules(rules: Sequence[tuple[str, tuple]] = RULES) -> None:
  """ValueError for a rule that names no mesh axis, or one twice."""
  for pattern, axes in rules:
    names = [name for axis in axes for name in _names(axis)]
    bare = [name.removesuffix(OPTIONAL) for name in names]
    if unknown := set(bare) - set(AXES):
      raise ValueError(
        f"The sharding rule {pattern!r} names {sorted(unknown)}; mesh axes are"
        f" {', '.join(AXES)}."
      )
    if len(set(bare)) < len(bare):
      raise ValueError(
        f"The sharding rule {pattern!r} uses a mesh axis twice: {axes}."
      )


def spec_of(
  path: str,
  shape: Sequence[int],
  mesh: Mesh,
  rules: Sequence[tuple[str, tuple]] = RULES,
) -> PartitionSpec:
  """Of the array at that path.

  Args:
    path: names joined by "/".
    shape: of the array; scalars are whole everywhere.
    mesh: a mesh, or its abstract form.
    rules: the table.

  Raises:
    ValueError: no rule, one for arrays of another rank, or an axis that does
      not divide the array.
  """
  if not shape:
    return PartitionSpec()
  axes = _padded(_find(path, rules), path, shape)
  cut = []
  for i, (axis, length) in enumerate(zip(axes, shape)):
    names, left = [], length
    for name in _names(axis):
      size = mesh.shape[name.removesuffix(OPTIONAL)]
      if left % size == 0:
        names.append(name.removesuffix(OPTIONAL))
        left //= size
      elif not name.endswith(OPTIONAL):
        raise ValueError(
          f"config.mesh.{name} = {size} does not divide {path}, whose axis {i}"
          f" has {length} entries."
        )
    cut.append(tuple(n for n in names if mesh.shape[n] > 1) or None)
  while cut and cut[-1] is None:
    cut.pop()
  return PartitionSpec(*cut)


def _find(path: str, rules) -> tuple:
  for pattern, axes in rules:
    if re.search(pattern, path):
      return axes
  raise ValueError(
    f"No sharding rule in star_jax/sharding.py matches the parameter {path}."
  )


def _padded(axes: tuple, path: str, shape: Sequence[int]) -> tuple:
  """One entry an axis; (): whole, `...` stands for all axes before the last."""
  if not axes:
    return (None,) * len(shape)
  if axes[0] is ...:
    return (None,) * (len(shape) - len(axes) + 1) + axes[1:]
  # A stack of layers has one axis more than what it is a stack of.
  axes = (None,) * (len(shape) - len(axes)) + axes
  if len(axes) != len(shape):
    raise ValueError(
      f"The sharding rule of {path} is for {len(axes)} axes, it has the shape"
      f" {tuple(shape)}."
    )
  return axes


def _names(axis) -> tuple[str, ...]:
  if axis is None or axis is ...:
    return ()
  return (axis,) if isinstance(axis, str) else tuple(axis)


def shardings_of(tree: PyTree, mesh: Mesh) -> PyTree:
  """NamedShardings of parameters, or of a whole training state.

  Raises:
    ValueError: see `spec_of`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(
      mesh, spec_of(path_name(path), x.shape, mesh)
    ),
    tree,
  )


def path_name(path) -> str:
  """Names joined by "/", as rules match them."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
  """ValueError unless each device of a batch axis gets as many pictures, in
  each of the parts that a step looks at one after the other."""
  if accumulate < 1 or accumulate != int(accumulate):
    raise ValueError(
      f"config.accumulate is a whole number from 1 on, got {accumulate}."
    )
  parts = math.prod(mesh.shape[name] for name in BATCH)
  if batch_size % (parts * accumulate):
    times = f"config.accumulate = {accumulate} times " * (accumulate > 1)
    raise ValueError(
      f"config.batch_size = {batch_size} is not a multiple of {times}the"
      f" {parts} parts that config.mesh cuts a batch into"
      f" (data={mesh.shape['data']} times fsdp={mesh.shape['fsdp']})."
    )


def check_heads(mesh: Mesh, num_heads: int) -> None:
  """ValueError unless each device of the tensor axis gets whole heads."""
  if num_heads % mesh.shape["tensor"]:
    raise ValueError(
      f"config.mesh.tensor = {mesh.shape['tensor']} does not divide the"
      f" {num_heads} heads of the model."
    )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def use_mesh(mesh: Mesh | None):
  """Context in which a traced function calls `constrain`; None: no mesh.

  It is for the trace alone: arrays made outside of a program, such as those of
  a text encoder, go on living on one device.
  """
  if mesh is None or mesh.size == 1:
    return contextlib.nullcontext()
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain_tree(tree: PyTree) -> PyTree:
  """Parameters, or a whole training state, where the rules have them."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.lax.with_sharding_constraint(
      x, spec_of(path_name(path), x.shape, mesh)
    ),
    tree,
  )


def constrain_rows(tree: PyTree, axis: int) -> PyTree:
  """Arrays whose axis of that number is the batch, or a part of it."""
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  spec = PartitionSpec(*(None,) * axis, BATCH)
  return jax.lax.with_sharding_constraint(tree, spec)


def constrain_whole(tree: PyTree) -> PyTree:
  """The same on every device: figures that every process reads."""
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def constrain(x: jax.Array, name: str) -> jax.Array:
  """Says where an activation lies, by its rule; nothing outside `use_mesh`.

  Args:
    x: inside of a traced function.
    name: of the rule, with the shape as its suffix.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, name))


def activation_spec(shape: Sequence[int], name: str) -> PartitionSpec:
  """Where an activation lies on the mesh of `use_mesh`.

  Unlike a parameter, one that an axis does not divide (a batch of one picture)
  is left whole along it.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = _find(f"activations/{name}", RULES)
  optional = tuple(
    tuple(f"{n.removesuffix(OPTIONAL)}{OPTIONAL}" for n in _names(axis))
    for axis in axes
  )
  return spec_of(name, shape[: len(axes)], mesh, ((name, optional),))


def axis_size(name: str) -> int:
  """Parts that the mesh of `use_mesh` cuts this axis into; 1 without."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[name]


def platform() -> str:
  """Of the devices of `use_mesh`, such as "tpu"; "" without."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else ""


check_rules()
