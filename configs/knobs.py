"""Quality against guidance, top-k, top-p and temperature of a checkpoint.

  python -m star_jax.metrics.knobs --config=configs/knobs.py \
    --out=results/knobs
  python -m star_jax.metrics.knobs --config=configs/knobs.py:runlocal \
    --out=/tmp/knobs

One knob at a time; the others stay at `base`, which replaces defaults of the
bundle. The shipped model is measured unless --ckpt names another.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, data


def get_config(arg: str | None = None) -> ConfigDict:
  runlocal = common.parse_arg(arg)
  c = ConfigDict()
  c.base = ConfigDict()
  c.lines = ConfigDict(
    dict(
      cfg_scale=(0.0, 1.0, 2.0, 3.0, 4.0, 6.0),
      top_k=(1, 16, 64, 256, 1024, 0),  # 0: all
      top_p=(0.5, 0.7, 0.8, 0.9, 0.95, 1.0),
      temperature=(0.25, 0.5, 0.75, 1.0, 1.25),
    )
  )
  c.seed = 1  # of held-out scenes, icons and draws; configs/evaluate.py
  c.batch_size = 16
  # Scenes: pictures drawn, those of them that the matcher looks at, and
  # held-out pictures that KID compares with.
  c.samples = 256
  c.scored = 128
  c.references = 2_048
  # Icons for retrieval, half of them held out; 0 for a model without icons.
  c.icons = 256
  c.softening = 2.0  # see configs/evaluate.py
  c.art_dir = ""  # of the art store; empty: its default place
  c.data_options = data.options()
  if runlocal:
    c.lines = ConfigDict(dict(cfg_scale=(0.0, 3.0), top_p=(0.5, 0.9)))
    c.update(samples=4, scored=2, references=8, icons=0, batch_size=4)
  return c
