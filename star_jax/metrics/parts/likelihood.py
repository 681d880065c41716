"""--what=likelihood: bits that the model needs for held-out pictures.

Exact: -log2 p(tokens | caption) by one teacher-forced pass, without guidance.
It is the likelihood of the tokens, so it compares models of one tokenizer
alone. What a caption tells about its picture is the difference to the empty
caption, with a shuffled caption as the control.

N: pictures, K: scales.
"""

from __future__ import annotations

import numpy as np

from star_jax.evaluation.bootstrap import mean_interval
from star_jax.metrics.context import Context
from star_jax.metrics.report import Result
from star_jax.metrics.scene_score import derangement

SPLITS = ("heldout", "seen")
_BITS = 1 / np.log(2)


def run(ctx: Context) -> Result:
  """Both splits.

  Raises:
    ValueError: a model of classes: the held-out scenes have captions alone.
  """
  if ctx.bundle.text is None:
    raise ValueError(
      "--what=likelihood measures scenes with captions; this is a model of"
      " classes."
    )
  lengths = ctx.bundle.star_config.schedule.lengths
  values = {
    "tokens_per_scale": list(lengths),
    "codebook": ctx.bundle.tokenizer_config.vocab_size,
  }
  values |= {split: _split(ctx, split) for split in SPLITS}
  return Result(values, _rows(values))


def _split(ctx: Context, split: str) -> dict:
  generator, n = ctx.scenes(split), ctx.config.likelihood.n
  scenes = [generator.scene(i) for i in range(n)]
  captions = [scene.caption for scene in scenes]
  image = np.stack([generator.render(scene) for scene in scenes])
  _, tokens_NL = ctx.reconstruct(image)
  order = derangement(n, ctx.config.seed)
  prompts = {
    "caption": captions,
    "empty": [""] * n,
    "shuffled": [captions[i] for i in order],
  }
  bits = {
    name: -_BITS
    * ctx.pipeline.log_prob_batch(
      tokens_NL, words, per_scale=True, batch=ctx.config.batch_size
    )
    for name, words in prompts.items()
  }
  return summary(bits, np.prod(ctx.image_size))


def summary(bits: dict[str, np.ndarray], pixels: int) -> dict:
  """What is reported of bits [N, K] under each kind of caption.

  Args:
    bits: "caption" (the right one), "empty" and "shuffled".
    pixels: of a picture.
  """
  whole = {name: b_NK.sum(1) for name, b_NK in bits.items()}
  out = {"n": len(whole["caption"])}
  for name, b_N in whole.items():
    mean, half = mean_interval(b_N)
    out[name] = {
      "bits": mean,
      "half_width": half,
      "bits_per_scale": bits[name].mean(0).tolist(),
    }
  out["bits_per_pixel"] = out["caption"]["bits"] / float(pixels)
  for name in ("empty", "shuffled"):
    mean, half = mean_interval(whole[name] - whole["caption"])
    out[f"less_than_{name}"] = {"bits": mean, "half_width": half}
  return out


def _rows(values: dict) -> list[tuple[str, str, str]]:
  rows, tokens = [], np.asarray(values["tokens_per_scale"])
  for split in SPLITS:
    entry = values[split]
    bits = entry["caption"]["bits"]
    rows.append(
      (
        f"{split}, bits an image",
        f"{bits:.1f} +- {entry['caption']['half_width']:.1f}",
        f"n = {entry['n']}; {bits / tokens.sum():.3f} a token (uniform"
        f" {np.log2(values['codebook']):.1f}),"
        f" {entry['bits_per_pixel']:.4f} a pixel",
      )
    )
    per_scale = np.asarray(entry["caption"]["bits_per_scale"])
    rows.append(
      (
        f"{split}, bits of each scale",
        ", ".join(f"{b:.1f}" for b in per_scale),
        "a token: " + ", ".join(f"{b:.2f}" for b in per_scale / tokens),
      )
    )
    for name in ("empty", "shuffled"):
      less = entry[f"less_than_{name}"]
      rows.append(
        (
          f"{split}, bits saved by the caption",
          f"{less['bits']:.1f} +- {less['half_width']:.1f}",
          f"against {'an empty' if name == 'empty' else 'a shuffled'} one",
        )
      )
  return rows
