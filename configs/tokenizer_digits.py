"""Stage 1 of the digits: a tokenizer for 28 px in half a minute.

  python launch/train.py --config=configs/tokenizer_digits.py \
    --workdir=runs/tokenizer_digits

Two AMD EPYC cores: 36 seconds. Expected: 24.3 dB on held-out digits.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer_scenes64


def get_config(arg: str | None = None) -> ConfigDict:
  c = tokenizer_scenes64.get_config(arg)
  if not common.parse_arg(arg):
    c.data = "digits"
    c.batch_size = 32
    c.num_steps = 100
    c.log_every = 20
    c.eval_every = 50
    c.sample_every = 100
    c.optimizer.warmup_steps = 20
    c.optimizer.learning_rate = 5e-4
    c.optimizer.ema_decay = 0.98
    c.codebook.init_batches = 32
  c.data_options.size = (28, 28)
  c.tokenizer = tokenizer()
  return c


def tokenizer() -> ConfigDict:
  """28 px, 7 x 7 latent of 4 px patches, 512 codes; 119 tokens a digit."""
  t = tokenizer_scenes64.tokenizer()
  t.schedule = (1, 2, 4, 7, 7)
  t.vocab_size = 512
  t.code_dim = 16
  t.ch = 64
  t.num_res_blocks = 1
  t.rate_weight = ()
  return t
