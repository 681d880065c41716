"""Model sizes as plain dicts, read by `StarConfig.from_dict`.

`star_d16` and `star_d30` are the published STAR models of 256 px (274M and
1.68B parameters, OpenCLIP ViT-H text of width 1024), `star_d30_512` and
`star_d30_1024` those of larger pictures. Their rope_norm and rope_theta, which
no shape tells, are those of the authors' configs and of their demo (STAR-T2I,
configs/config_d30_*.json and sample.py);
`var_d16` to `var_d30` (256 px) and `var_d36` (512 px) the published VAR models
(310M, 600M, 1.0B, 2.0B and 2.3B parameters, 1000 classes of ImageNet);
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
    "drop_path_rate": 0.1 * depth / 24,
    "dtype": "bfloat16",
    "remat": "layer",
  }


def _star(depth: int) -> dict:
  return {
    **_published(depth),
    "text_dim": 1024,
    "rope_norm": 64.0,
    "rope_theta": 10000.0,
  }


def _var(depth: int) -> dict:
  return {
    **_published(depth),
    "num_classes": 1000,
    "adaptive_norm": "block",
    "position": "absolute",
    "rope_norm": -1.0,
    "cross_attention": False,
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
  "star_d16": _star(16),
  "star_d30": _star(30),
  "star_d30_512": {**_star(30), "schedule": "512"},
  "star_d30_1024": {**_star(30), "schedule": "1024"},
  "var_d16": _var(16),
  "var_d20": _var(20),
  "var_d24": _var(24),
  "var_d30": _var(30),
  "var_d36": {**_var(36), "schedule": "512", "adaptive_norm": "shared"},
}

# Refinement heads that the official files of these models may hold. No shape
# tells the index of the coarsest refined scale: it is `sample_from_idx` in the
# authors' sample.py and train_sampler.py.
REFINE_HEADS = {
  name: {"first_scale": 9, "depth": 3}
  for name in ("star_d30", "star_d30_512", "star_d30_1024")
}

# VAR's VQVAE (`vae_ch160v4096z32`); the schedule is that of the model.
TOKENIZERS = {
  "vae_ch160": {
    "schedule": "256",
    "vocab_size": 4096,
    "code_dim": 32,
    "ch": 160,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "quant_resi": 0.5,
    "share_quant_resi": 4,
    "quant_conv_ks": 3,
  },
}
