"""--what=alignment: the composed-scene score by several sampling seeds.

The measures of --what=scenes with an interval that counts scenes, not facts:
scenes are resampled, the facts of one scene and its pictures by several seeds
stay together. Ceiling: the generator's own pictures through the tokenizer.
Control and chance: the same pictures judged by shuffled captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from star_jax.evaluation.bootstrap import ratio_interval
from star_jax.metrics import samples
from star_jax.metrics.context import Context
from star_jax.metrics.report import Result
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.scene_score import (
  SceneScore,
  derangement,
  score_pictures,
)
from star_jax.metrics.sprite_bank import SpriteBank

SPLITS = ("heldout", "seen")
MEASURES = ("objects", "colours", "relations", "count", "everything")


def run(ctx: Context) -> Result:
  """Both splits."""
  known = ctx.scenes("heldout")
  matcher = SceneMatcher(SpriteBank(known), known.config.max_objects)
  values = {"seeds": list(ctx.config.alignment.seeds)}
  values |= {split: _split(ctx, split, matcher) for split in SPLITS}
  return Result(values, _rows(values))


def _split(ctx: Context, split: str, matcher: SceneMatcher) -> dict:
  c, generator = ctx.config, ctx.scenes(split)
  scenes = [generator.scene(i) for i in range(c.alignment.n)]
  captions = [scene.caption for scene in scenes]
  other = derangement(len(scenes), c.seed)
  shuffled = [captions[i] for i in other]
  truth = np.stack([generator.render(scene) for scene in scenes])
  recon, _ = ctx.reconstruct(truth)
  model, control = [], []
  for seed in c.alignment.seeds:
    drawn = samples.generate(
      ctx.pipeline,
      captions,
      seed=seed,
      batch=c.batch_size,
      settings=c.sampling.to_dict(),
      folder=ctx.folder / "samples",
      label=f"{split} scenes, seed {seed}",
    )
    score = lambda words, drawn=drawn: score_pictures(  # noqa: E731
      matcher, drawn, words, f"{split}, matching"
    )
    model.append(score(captions))
    control.append(score(shuffled))
  ceiling = [score_pictures(matcher, recon, captions, f"{split}, ceiling")]
  settings = c.alignment.resamples, c.seed
  return {
    "n": len(scenes),
    "model": summary(model, *settings),
    "shuffled": summary(control, *settings),
    "tokenizer": summary(ceiling, *settings),
  }


def outcomes(score: SceneScore, measure: str) -> tuple[bool, ...]:
  """The facts of one picture that a measure counts."""
  found = getattr(score, measure)
  return found if isinstance(found, tuple) else (found,)


def summary(
  scores_GN: Sequence[Sequence[SceneScore]], resamples: int, seed: int
) -> dict:
  """measure -> value with interval, and the value of each drawing."""
  out = {}
  for measure in MEASURES:
    facts = [[outcomes(s, measure) for s in row] for row in scores_GN]
    hits_GN = np.array([[sum(f) for f in row] for row in facts])
    counts_N = np.array([len(f) for f in facts[0]])
    value, low, high = ratio_interval(hits_GN, counts_N, resamples, seed)
    each = hits_GN.sum(1) / max(counts_N.sum(), 1)
    out[measure] = {
      "value": value,
      "low": low,
      "high": high,
      "n": int(counts_N.sum()),
      "by_seed": each.tolist(),
    }
  return out


def _rows(values: dict) -> list[tuple[str, str, str]]:
  rows = []
  for split in SPLITS:
    entry = values[split]
    for measure in MEASURES:
      model = entry["model"][measure]
      if not model["n"]:
        continue
      each = ", ".join(f"{100 * v:.1f}" for v in model["by_seed"])
      beside = ", ".join(
        f"{name} {100 * entry[name][measure]['value']:.1f}%"
        for name in ("tokenizer", "shuffled")
      )
      rows.append(
        (
          f"{split}, {measure}",
          f"{100 * model['value']:.1f}% [{100 * model['low']:.1f},"
          f" {100 * model['high']:.1f}]",
          f"n = {model['n']} facts of {entry['n']} scenes; seeds {each};"
          f" {beside}",
        )
      )
  return rows
