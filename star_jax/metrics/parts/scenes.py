"""--what=scenes: are the objects, colours and relations of the caption there.

Held-out scenes against new scenes of the training distribution ("seen"), with
three yardsticks: the generator's own pictures, these through the tokenizer
(the ceiling), and the generated pictures judged by shuffled captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from star_jax.data.scene_text import Facts, read_caption
from star_jax.metrics import samples
from star_jax.metrics.context import Context, picture_grid
from star_jax.metrics.progress import Progress
from star_jax.metrics.report import Result, share_text
from star_jax.metrics.scene_match import SceneMatcher
from star_jax.metrics.scene_score import (
  SceneScore,
  derangement,
  score_scene,
  shares,
)
from star_jax.metrics.sprite_bank import SpriteBank

MEASURES = ("objects", "colours", "relations")
SPLITS = ("heldout", "seen")


def run(ctx: Context) -> Result:
  """Measures both splits; writes scenes_<split>.png of the first samples."""
  generators = {split: ctx.scenes(split) for split in SPLITS}
  known = generators["heldout"]
  matcher = SceneMatcher(SpriteBank(known), known.config.max_objects)
  values = {split: _split(ctx, generators[split], matcher) for split in SPLITS}
  return Result(values, _rows(values))


def _split(ctx: Context, generator, matcher) -> dict:
  c, split = ctx.config, generator.config.split
  scenes = [generator.scene(i) for i in range(c.n)]
  captions = [scene.caption for scene in scenes]
  facts = [read_caption(caption) for caption in captions]
  other = derangement(len(scenes), c.seed)
  few = scenes[: c.scenes.num_ceiling]
  truth = np.stack([generator.render(scene) for scene in few])
  recon, _ = ctx.reconstruct(truth)
  drawn = samples.generate(
    ctx.pipeline,
    captions,
    seed=c.seed,
    batch=c.batch_size,
    settings=c.sampling.to_dict(),
    folder=ctx.folder / "samples",
    label=f"{split} scenes, sampling",
  )
  found = _find(matcher, drawn, facts, f"{split} scenes, matching")
  out = {
    "model": [score_scene(f, d) for f, d in zip(facts, found)],
    "shuffled": [score_scene(facts[j], found[i]) for i, j in enumerate(other)],
  }
  for name, image in (("render", truth), ("tokenizer", recon)):
    seen = _find(matcher, image, facts, f"{split} scenes, {name}")
    out[name] = [score_scene(f, d) for f, d in zip(facts, seen)]
  flags = [scene.flags for scene in scenes]
  by_flag = {
    flag: [s for s, have in zip(out["model"], flags) if flag in have]
    for flag in sorted({flag for have in flags for flag in have})
  }
  sheet = picture_grid(drawn[:96], 12)
  sheet.save(ctx.folder / f"scenes_{split}.png")
  (ctx.folder / f"scenes_{split}.txt").write_text("\n".join(captions[:96]))
  return {
    **{name: _to_json(scores) for name, scores in out.items()},
    "by_flag": {name: _to_json(s) for name, s in by_flag.items()},
  }


def _find(matcher: SceneMatcher, image, facts: Sequence[Facts], label: str):
  """Detections of every picture; a style is given where the caption names
  one."""
  progress, out = Progress(label), []
  for i, (picture, fact) in enumerate(zip(image, facts)):
    out.append(matcher.find(picture, fact.style))
    progress(i + 1, len(image))
  return out


def _to_json(scores: Sequence[SceneScore]) -> dict:
  return {name: s.to_dict() for name, s in shares(scores).items()}


def _rows(values: dict) -> list[tuple[str, str, str]]:
  rows = []
  for split in SPLITS:
    entry = values[split]
    for measure in (*MEASURES, "everything", "count"):
      share = entry["model"][measure]
      beside = ", ".join(
        f"{name} {share_text(entry[name][measure]).split(' ')[0]}"
        for name in ("tokenizer", "render", "shuffled")
      )
      rows.append(
        (
          f"{split}, {measure}",
          share_text(share),
          f"n = {share['n']}; {beside}",
        )
      )
  for flag, entry in values["heldout"]["by_flag"].items():
    for measure in MEASURES:
      share = entry[measure]
      rows.append(
        (f"  {flag}, {measure}", share_text(share), f"n = {share['n']}")
      )
  for measure in MEASURES:
    rows.append(_ratio_row(values, measure))
  return rows


def _ratio_row(values: dict, measure: str) -> tuple[str, str, str]:
  """Held-out accuracy over that of seen combinations and of the control."""
  value = values["heldout"]["model"][measure]["value"]
  seen = values["seen"]["model"][measure]["value"]
  control = values["heldout"]["shuffled"][measure]["value"]

  def ratio(below: float | None) -> str:
    if not below or value is None:
      return "-"
    return f"{value / below:.2f}"

  return (
    f"held out / seen, {measure}",
    ratio(seen),
    f"held out / shuffled {ratio(control)}",
  )
