"""A sheet of training examples as the model will see them, before training.

Captions and crops; with a tokenizer also the reconstruction and the tokens of
every scale. Whatever is wrong with the data (captions of other pictures,
crops that cut the object off, a tokenizer that cannot draw it) shows here and
costs a minute instead of a training run.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from star_jax import pictures
from star_jax.data import pipeline
from star_jax.data.picture_source import PictureSource
from star_jax.scales import ScaleSchedule
from star_jax.text.encoder import load_text_encoder
from star_jax.train.batches import data_config
from star_jax.train.frozen import FrozenTokenizer, load_tokenizer

_SIDE = 128  # pixels a picture on the sheet


def inspect(
  config, split: str, count: int, bundle: str, seed: int
) -> tuple[Image.Image, list[str]]:
  """Draws the first examples of a split.

  Args:
    config: a training config of either stage.
    split: "train", "seen" or "heldout".
    count: examples on the sheet.
    bundle: directory of a tokenizer; empty for captions and crops alone.
    seed: order and augmentation.

  Returns:
    (sheet, lines of text about the sources).

  Raises:
    ValueError: what a source refuses; a tokenizer of another image size.
  """
  if count < 1:
    raise ValueError(f"A sheet shows at least one example, got {count}.")
  options = data_options(config)
  sources = pipeline.build_sources(options, split)
  dataset = pipeline.mix(sources, seed)
  examples = [dataset[i] for i in range(count)]
  images = np.stack([e["image"] for e in examples])
  captions = [e["caption"] for e in examples]
  lines = describe(sources)
  marks, cut = _cut_marks(config, captions)
  lines += cut
  if bundle:
    lines.append("columns: crop, reconstruction, tokens of every scale")
    strips = tokenizer_strips(load_tokenizer(bundle), images)
    return _rows(strips, captions, marks), lines
  crops = [Image.fromarray(image) for image in images]
  return pictures.contact_sheet(crops, captions, marks=marks), lines


def data_options(config) -> ConfigDict:
  """The pipeline's options; a config on cached tokens names its source."""
  options = data_config(config)
  if options.source == "cache":
    options.source = config.cache.source
  return options


def describe(sources) -> list[str]:
  """A line or two about each source."""
  lines = []
  for name, weighted in sources.items():
    size = len(weighted.source)
    many = "endless" if size >= pipeline.ENDLESS else f"{size} pictures"
    lines.append(f"{name}: {many}, share {weighted.weight:g}")
    if isinstance(weighted.source, PictureSource):
      source = weighted.source
      lines.append(
        f"  {len(source.failures)} skipped,"
        f" {source.num_enlarged} smaller than the crop"
      )
      lines += [f"  {n}: {why}" for n, why in source.failures.items()]
  return lines


def _cut_marks(config, captions: Sequence[str]):
  """What the text window cuts off: (remark per caption, lines)."""
  if "text" not in config or not config.text.get("max_tokens"):
    return [""] * len(captions), []
  window = config.text.max_tokens
  try:
    text = load_text_encoder(config.text.name, window, config.text.path or None)
  except ValueError as error:
    nothing = [""] * len(captions)
    return nothing, [f"The text window was not checked: {error}"]
  cut = [text.truncated(caption) for caption in captions]
  number = sum(c is not None for c in cut)
  line = f"{number} of {len(captions)} captions exceed {window} tokens"
  return [f"cut: {c}" if c else "" for c in cut], [line]


def tokenizer_strips(
  tokenizer: FrozenTokenizer, images: np.ndarray
) -> list[Image.Image]:
  """Crop, reconstruction and token maps of each picture, side by side.

  Args:
    tokenizer: its image size must be that of the pictures.
    images: uint8 [B, H, W, 3].
  """
  config = tokenizer.config
  if tuple(config.image_size) != images.shape[1:3]:
    raise ValueError(
      f"The tokenizer takes pictures of {config.image_size} (height, width),"
      f" data_options.size gives {images.shape[1:3]}."
    )
  idx_BL = tokenizer.encoder()(images)
  decode = jax.jit(
    lambda params, idx: tokenizer.vqvae.apply(
      {"params": params}, idx, method="tokens_to_image"
    )
  )
  recon = np.asarray(decode(tokenizer.params, idx_BL))
  strips = []
  for image, again, idx_L in zip(images, recon, np.asarray(idx_BL)):
    parts = [Image.fromarray(image), pictures.to_pil(again)]
    parts += token_maps(idx_L, config.schedule)
    strips.append(_side_by_side(parts))
  return strips


def token_maps(idx_L: np.ndarray, schedule: ScaleSchedule):
  """One small picture per scale, equal tokens in equal colours."""
  maps = []
  for (h, w), (begin, end) in zip(schedule.grids, schedule.begin_ends):
    colours = [_token_colour(int(i)) for i in idx_L[begin:end]]
    pixels = np.array(colours, np.uint8).reshape(h, w, 3)
    maps.append(Image.fromarray(pixels))
  return maps


def _token_colour(index: int) -> tuple[int, int, int]:
  """Neighbouring indices get far colours (golden ratio steps in hue)."""
  hue = index * 0.6180339887 % 1
  value = 0.55 + 0.45 * ((index * 0.7548776662) % 1)
  rgb = colorsys.hsv_to_rgb(hue, 0.6, value)
  return tuple(round(255 * v) for v in rgb)


def _side_by_side(parts: Sequence[Image.Image]) -> Image.Image:
  height = max(_SIDE, parts[0].height)
  scaled = [
    p.resize(
      (max(1, round(p.width * height / p.height)), height),
      Image.Resampling.NEAREST,
    )
    for p in parts
  ]
  gap = 4
  width = sum(p.width + gap for p in scaled) - gap
  strip = Image.new("RGB", (width, height), (255, 255, 255))
  x = 0
  for part in scaled:
    strip.paste(part, (x, 0))
    x += part.width + gap
  return strip


def _rows(strips, captions, marks) -> Image.Image:
  """One example a row, its caption above, what is cut off of it in red."""
  line, gap = 18, 8
  font = ImageFont.load_default(14)
  row = strips[0].height + line + gap
  width = max(strips[0].width, 480) + 2 * gap
  sheet = Image.new("RGB", (width, row * len(strips) + gap), (255, 255, 255))
  canvas = ImageDraw.Draw(sheet)
  for i, (strip, caption, mark) in enumerate(zip(strips, captions, marks)):
    y = gap + i * row
    canvas.text((gap, y), caption, fill=(25, 25, 25), font=font)
    after = gap + font.getlength(caption + "  ")
    canvas.text((after, y), mark, fill=(190, 30, 30), font=font)
    sheet.paste(strip, (gap, y + line))
  return sheet
