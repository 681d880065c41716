"""Quantizers at equal bits: VQ, FSQ, LFQ, BSQ, and a continuous ceiling.

  python launch/train.py --config=configs/tokenizer_quantizers.py \
    --workdir=runs/quantizers/vq
  python launch/train.py --config=configs/tokenizer_quantizers.py:bsq \
    --workdir=runs/quantizers/bsq

After the colon: vq, fsq, lfq, bsq or kl, and with `,runlocal` behind it (as in
bsq,runlocal) for a few steps at 6 bits a token. Data, scales and decoder are
those of the shipped tokenizer (configs/tokenizer_scenes64.py), with the
convolutional encoder beside the linear one. A token has 10 bits in every arm;
the code is as wide as that allows: 32 channels of VQ, 5 of FSQ with 4 levels
each, 10 of LFQ and BSQ with one bit each. Gains of the scales are learned,
since codes of one size serve residuals that shrink from scale to scale badly.
`kl` has no tokens: what its reconstructions lose, no quantizer can keep
(`launch/evaluate.py --what=tokenizer --ceiling=runs/quantizers/kl/bundle`).

Beside the loss: vq_codebook, vq_commitment and, of LFQ and BSQ, vq_entropy, or
vq_kl. Expected: not known, it was not run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_scenes64

BITS, RUNLOCAL_BITS = 10, 6
ARMS = ("vq", "fsq", "lfq", "bsq", "kl")


def get_config(arg: str | None = None) -> ConfigDict:
  arm, _, rest = (arg or "").partition(",")
  if arm not in ARMS:
    arm, rest = ARMS[0], arg
  runlocal = common.parse_arg(
    rest, also=(*ARMS, *(f"{name},{common.RUNLOCAL}" for name in ARMS))
  )
  bits = RUNLOCAL_BITS if runlocal else BITS
  c = tokenizer_scenes64.get_config(common.RUNLOCAL if runlocal else None)
  c.tokenizer.update(deep_encoder=True, rate_weight=(), vocab_size=2**bits)
  c.tokenizer.update(quantizer(arm, bits))
  return c


def quantizer(arm: str, bits: int) -> dict:
  """Settings of an arm whose tokens have so many bits, an even number."""
  signs = dict(code_dim=bits, learned_gains=True, entropy_weight=0.1)
  levels = (4,) * (bits // 2)
  # Residuals are compared at unit gain: a quarter of the squared distance
  # between codes that differ in one bit is 1 for LFQ and 1 / bits on the sphere
  # of BSQ.
  return {
    "vq": dict(quantizer="vq", code_dim=32),
    "fsq": dict(
      quantizer="fsq", levels=levels, code_dim=len(levels), learned_gains=True
    ),
    "lfq": dict(
      quantizer="lfq", entropy_temperature=1.0, entropy_group=bits, **signs
    ),
    "bsq": dict(
      quantizer="bsq", entropy_temperature=1 / bits, entropy_group=1, **signs
    ),
    "kl": dict(quantizer="none", code_dim=32, kl_weight=1e-6),
  }[arm]
