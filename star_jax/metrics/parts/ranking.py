"""--what=ranking: among 100 held-out captions, which one does the model
believe of a picture. No feature network and no sampling is involved."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from star_jax.metrics.context import Context
from star_jax.metrics.progress import Progress
from star_jax.metrics.ranking import rank
from star_jax.metrics.report import Result
from star_jax.metrics.wilson import Share


def run(ctx: Context) -> Result:
  """Rows of the score table are kept in ranking_<hash>/ as they come."""
  c = ctx.config
  captions, image = _scenes(ctx, min(c.ranking.n, c.n))
  _, tokens = ctx.reconstruct(image)
  score_NN = np.stack(list(_score_rows(ctx, tokens, captions)))
  ranks = rank(score_NN)
  values = {"n": len(captions), "chance": 1 / len(captions)}
  rows = []
  for name, words in (
    ("captions", "right caption for a picture"),
    ("pictures", "right picture for a caption"),
  ):
    of = getattr(ranks, name)
    values[name] = {
      f"R@{k}": Share.of(of < k).to_dict() for k in (1, 5, 10)
    } | {"median_rank": float(np.median(of)) + 1}
    share = Share.of(of < 1)
    rows.append(
      (
        f"R@1, {words}",
        str(share),
        f"R@5 {100 * np.mean(of < 5):.1f}%, median rank"
        f" {np.median(of) + 1:.0f}, chance {100 / len(of):.1f}%",
      )
    )
  return Result(values, rows)


def _scenes(ctx: Context, n: int) -> tuple[list[str], np.ndarray]:
  """n held-out scenes with different captions."""
  generator = ctx.scenes("heldout")
  captions, images, index = [], [], 0
  while len(captions) < n:
    scene = generator.scene(index)
    index += 1
    if scene.caption not in captions:
      captions.append(scene.caption)
      images.append(generator.render(scene))
  return captions, np.stack(images)


def _score_rows(ctx: Context, tokens: np.ndarray, captions: list[str]):
  """log p(tokens i | caption) - log p(tokens i | empty), row by row."""
  key = f"{ctx.bundle.hash}_{ctx.config.seed}_{len(captions)}"
  folder = ctx.folder / f"ranking_{key}"
  folder.mkdir(parents=True, exist_ok=True)
  progress = Progress("ranking, pictures")
  prompts = [*captions, ""]
  for i, idx_L in enumerate(tokens):
    path = folder / f"{i:04d}.npy"
    log_p = _read(path, len(prompts))
    if log_p is None:
      log_p = ctx.pipeline.log_prob_batch(
        np.repeat(idx_L[None], len(prompts), 0),
        prompts,
        batch=ctx.config.batch_size,
      )
      np.save(path, log_p)
    yield log_p[:-1] - log_p[-1]
    progress(i + 1, len(tokens))


def _read(path: Path, length: int) -> np.ndarray | None:
  try:
    row = np.load(path)
  except (OSError, ValueError, EOFError):
    return None
  return row if row.shape == (length,) else None
