"""The parts of a sampler, told by the names of its modules.

jax writes them into every operation of a traced program, and the compilers keep
them.
"""

from __future__ import annotations

BACKBONE, REFINEMENT = "backbone", "refinement"
QUANTIZER, DECODER, OTHER = "quantizer", "decoder", "other"
PARTS = (BACKBONE, REFINEMENT, QUANTIZER, DECODER, OTHER)
# First match wins.
_MODULES = (
  ("RefineHead", REFINEMENT),
  ("VQVAE.decode/", DECODER),
  ("VQVAE.", QUANTIZER),
  ("Star.", BACKBONE),
)


def part_of(scope: str) -> str:
  """One of PARTS, of an operation in modules of these names."""
  return next((part for name, part in _MODULES if name in scope), OTHER)
