"""What `launch/compile_check.py` prints of FLOPs, roofline and collectives."""

from __future__ import annotations

from star_jax.compile_check.bounds import Bounds
from star_jax.compile_check.parts import PARTS
from star_jax.compile_check.report import print_row
from star_jax.compile_check.roofline import Sent

# Most that a step may compute beyond the formula, or less than it.
FLOPS_LIMIT = 0.08
# The same of a sampler.
SAMPLING_LIMIT = 0.10
# Most of the time that may pass with nothing but collectives.
EXPOSED_LIMIT = 0.10
_SHOWN = 12


def bounds_within_limits(
  bounds: Bounds, title: str, layer_bytes: int | None = None
) -> bool:
  """Prints all of it.

  Args:
    bounds: of the program.
    title: of the chip.
    layer_bytes: the weights of one layer, in the dtype that it computes in: no
      all-gather is larger; None: not looked at.

  Returns:
    Whether FLOPs, exposed collectives and all-gathers are within their limits.
  """
  within = _print_flops(bounds)
  _print_time(bounds, title)
  if bounds.roofline.sent:
    within &= _print_collectives(bounds, layer_bytes)
  return within


def _print_flops(bounds: Bounds) -> bool:
  found = bounds.roofline
  print("\nFLOPs of one device, trips of loops counted:\n")
  rows = {
    "formula, model (6ND and attention)": bounds.model_flops,
    "formula, with what remat computes again": bounds.executed_flops,
    "traced program": bounds.traced_flops,
  }
  if bounds.counted:
    rows["compiled program"] = found.flops
    rows["in tiles and passes of the matrix unit"] = found.padded_flops
  print_row(("counted on", "TFLOP"))
  print_row(["---"] * 2)
  for name, flops in rows.items():
    if flops is not None:
      print_row((name, f"{flops / 1e12:.4g}"))
  if bounds.excess is None:
    return True
  if bounds.parts:
    _print_parts(bounds)
  limit = SAMPLING_LIMIT if bounds.parts else FLOPS_LIMIT
  return _verdict(
    f"Difference to the formula: {bounds.excess:+.1%}",
    abs(bounds.excess) <= limit,
    f"{limit:.0%}",
  )


def _print_parts(bounds: Bounds) -> None:
  """Of a sampler; seconds without waiting for copies."""
  print("\nParts of one device:\n")
  print_row(("part", "TFLOP by formula", "TFLOP counted", "ratio", "ms"))
  print_row(["---"] * 5)
  for part in PARTS:
    formula = bounds.parts.get(part)
    flops, seconds = bounds.roofline.parts.get(part, (0, 0.0))
    known, ratio = "-", "-"
    if formula:
      known, ratio = f"{formula / 1e12:.3f}", f"{flops / formula:.3f}"
    print_row(
      (part, known, f"{flops / 1e12:.3f}", ratio, f"{1e3 * seconds:.1f}")
    )


def _print_time(bounds: Bounds, title: str) -> None:
  found = bounds.roofline
  note = "" if bounds.counted else " (traced products; without collectives)"
  print(f"\nRoofline of {title}{note}, ms of one run:\n")
  parts = (
    found.compute, found.memory, found.waited, found.exposed, found.seconds,
  )  # fmt: skip
  names = ("products", "HBM", "copies", "collectives", "all", "bound", "MFU")
  print_row(names)
  print_row(["---"] * len(names))
  mfu = "-" if bounds.mfu is None else f"at most {bounds.mfu:.1%}"
  print_row((*(f"{1e3 * x:.2f}" for x in parts), found.bound, mfu))


def _print_collectives(bounds: Bounds, layer_bytes: int | None) -> bool:
  print("\nCollectives of one device:\n")
  print_row(("kind", "bytes"))
  print_row(["---"] * 2)
  for kind, size in sorted(bounds.roofline.bytes_sent.items()):
    print_row((kind, f"{size / 1e9:.3f} GB"))
  print("\nThe longest waits, and the largest all-gather:\n")
  print_row(("waited, ms", "alone, ms", "runs", "what", "devices", "made by"))
  print_row(["---"] * 6)
  gathered = bounds.largest_all_gather
  for sent in sorted(bounds.roofline.sent, key=lambda s: -s.exposed)[:_SHOWN]:
    _print_sent(sent)
  if gathered is not None:
    _print_sent(gathered)
  within = _verdict(
    f"Time with nothing but collectives: {bounds.exposed:.1%}",
    bounds.exposed <= EXPOSED_LIMIT,
    f"{EXPOSED_LIMIT:.0%}",
  )
  if gathered is None or layer_bytes is None:
    return within
  within &= _verdict(
    f"The largest all-gather: {gathered.collective.size / 1e6:.1f} MB",
    gathered.collective.size <= layer_bytes,
    f"the weights of one layer, {layer_bytes / 1e6:.1f} MB",
  )
  return within


def _print_sent(sent: Sent) -> None:
  one = sent.collective
  arrays = " ".join(one.arrays[:2]) + (" …" if len(one.arrays) > 2 else "")
  place = "/".join(one.op_name.split("/")[-4:]) or "not named"
  print_row((
    f"{1e3 * sent.exposed:.3f}", f"{1e3 * sent.seconds:.3f}", sent.count,
    f"{one.kind} {arrays}", len(one.group), place.replace("|", "\\|"),
  ))  # fmt: skip


def _verdict(what: str, within: bool, limit: str) -> bool:
  print(f"\n{what}, {'within' if within else 'ABOVE'} {limit}.")
  return within
