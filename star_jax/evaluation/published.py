"""Figures of papers, to stand beside measured ones. Each row names its source.

Only what was read in the source or in a later paper's copy of its table is
here; a figure that is missing was not at hand.
"""

from __future__ import annotations

VAR = "arXiv 2404.02905, table 1"
PLAYGROUND = "model card of playground-v2.5-1024px-aesthetic"

# ImageNet 256 x 256, class-conditional. time: relative to VAR-d30 (table 1).
CLASS_CONDITIONAL = (
  {
    "name": "DiT-XL/2",
    "FID": 2.27,
    "Inception Score": 278.2,
    "precision": 0.83,
    "recall": 0.57,
    "parameters": 675e6,
    "steps": 250,
    "pixels": 256,
    "source": VAR,
  },
  {
    "name": "VAR-d16",
    "FID": 3.30,
    "Inception Score": 274.4,
    "precision": 0.84,
    "recall": 0.51,
    "parameters": 310e6,
    "steps": 10,
    "relative_time": 0.4,
    "depth": 16,
    "pixels": 256,
    "source": VAR,
  },
  {
    "name": "VAR-d20",
    "FID": 2.57,
    "Inception Score": 302.6,
    "precision": 0.83,
    "recall": 0.56,
    "parameters": 600e6,
    "steps": 10,
    "relative_time": 0.5,
    "depth": 20,
    "pixels": 256,
    "source": VAR,
  },
  {
    "name": "VAR-d24",
    "FID": 2.09,
    "Inception Score": 312.9,
    "precision": 0.82,
    "recall": 0.59,
    "parameters": 1.0e9,
    "steps": 10,
    "relative_time": 0.6,
    "depth": 24,
    "pixels": 256,
    "source": VAR,
  },
  {
    "name": "VAR-d30",
    "FID": 1.92,
    "Inception Score": 323.1,
    "precision": 0.82,
    "recall": 0.59,
    "parameters": 2.0e9,
    "steps": 10,
    "relative_time": 1.0,
    "depth": 30,
    "pixels": 256,
    "source": VAR,
  },
  {
    "name": "VAR-d30-re",
    "FID": 1.73,
    "Inception Score": 350.2,
    "precision": 0.82,
    "recall": 0.60,
    "parameters": 2.0e9,
    "steps": 10,
    "relative_time": 1.0,
    "pixels": 256,
    "source": VAR,
  },
  {
    "name": "VAR-d36-s",
    "FID": 2.63,
    "parameters": 2.3e9,
    "steps": 10,
    "depth": 36,
    "pixels": 512,
    "source": "README of FoundationVision/VAR",
  },
)

# MJHQ-30K, FID of all categories at 1024 x 1024.
MJHQ = (
  {"name": "SDXL-1.0-refiner", "FID": 9.55, "source": PLAYGROUND},
  {"name": "Playground v2", "FID": 7.07, "source": PLAYGROUND},
  {"name": "Playground v2.5", "FID": 4.48, "source": PLAYGROUND},
)
