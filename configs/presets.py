"""Model sizes as plain dicts, read by `StarConfig.from_dict`.

`star_d16` and `star_d30` are the published STAR models (274M and 1.68B
parameters, OpenCLIP ViT-H text of width 1024) with the schedule of 256 px;
`scenes64` is the shape of the model that ships here; `test` is what tests and
`:runlocal` use.
"""

from __future__ import annotations


def _published(depth: int) -> dict:
  """Heads, width and drop path follow from the depth, as in VAR and STAR."""
  return {
    "schedule": "256",
    "vocab_size": 4096,
    "code_dim": 32,
    "depth": depth,
    "width": 64 * depth,
    "num_heads": depth,
    "text_dim": 1024,
    "rope_norm": 16.0,
    "drop_path_rate": 0.1 * depth / 24,
  }


PRESETS = {
  "test": {
    "schedule": [1, 2, 3, 4],
    "vocab_size": 32,
    "code_dim": 8,
    "depth": 2,
    "width": 32,
    "num_heads": 2,
    "text_dim": 24,
    "rope_norm": 4.0,
    "drop_path_rate": 0.0,
  },
  "scenes64": {
    "schedule": [1, 2, 4, 8, 16, 16],
    "vocab_size": 2048,
    "code_dim": 48,
    "depth": 6,
    "width": 256,
    "num_heads": 4,
    "text_dim": 384,
    "position": "rope+absolute",
    "rope_norm": 16.0,
    "drop_path_rate": 0.0,
  },
  "star_d16": {**_published(16), "dtype": "bfloat16", "remat": True},
  "star_d30": {**_published(30), "dtype": "bfloat16", "remat": True},
}
