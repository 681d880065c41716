"""Quantizers at equal bits: VQ, FSQ, LFQ, BSQ, and a continuous ceiling.

  python launch/train.py --config=configs/tokenizer_quantizers.py \
    --workdir=runs/quantizers/vq
  python launch/train.py --config=configs/tokenizer_quantizers.py:bsq \
    --workdir=runs/quantizers/bsq

After the colon: vq, fsq, lfq, bsq or kl. Data, scales and decoder are those of
the shipped tokenizer (configs/tokenizer_scenes64.py), with the convolutional
encoder beside the linear one. A token has 10 bits in every arm; the code is as
wide as that allows: 32 channels of VQ, 5 of FSQ with 4 levels each, 10 of LFQ
and BSQ with one bit each. Gains of the scales are learned, since codes of one
size serve residuals that shrink from scale to scale badly. `kl` has no tokens:
what its reconstructions lose, no quantizer can keep.

Beside the loss: vq_codebook, vq_commitment and, of LFQ and BSQ, vq_entropy, or
vq_kl. Expected: not known, it was not run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_scenes64

BITS = 10
# Residuals are compared at unit gain: a quarter of the squared distance between
# codes that differ in one bit is 1 for LFQ and 1 / BITS on the sphere of BSQ.
LFQ = dict(entropy_weight=0.1, entropy_temperature=1.0, entropy_group=BITS)
BSQ = dict(entropy_weight=0.1, entropy_temperature=1 / BITS, entropy_group=1)
ARMS = {
  "vq": dict(quantizer="vq", code_dim=32),
  "fsq": dict(quantizer="fsq", levels=(4,) * 5, code_dim=5, learned_gains=True),
  "lfq": dict(quantizer="lfq", code_dim=BITS, learned_gains=True, **LFQ),
  "bsq": dict(quantizer="bsq", code_dim=BITS, learned_gains=True, **BSQ),
  "kl": dict(quantizer="none", code_dim=32, kl_weight=1e-6),
}
DEFAULT = "vq"


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = arg not in ARMS and common.parse_arg(arg, also=tuple(ARMS))
  c = tokenizer_scenes64.get_config(common.RUNLOCAL if runlocal else None)
  c.tokenizer.update(deep_encoder=True, rate_weight=(), vocab_size=2**BITS)
  c.tokenizer.update(ARMS[arg if arg in ARMS else DEFAULT])
  if runlocal:
    c.tokenizer.vocab_size = 64
  return c
