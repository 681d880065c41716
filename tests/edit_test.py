"""Editing pictures with a random tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import star_jax
from star_jax import commands, testing
from star_jax.sampling.editing import Edit, box_mask, keep_tokens
from star_jax.scales import ScaleSchedule

ROOT = Path(commands.__file__).parents[1]
RIGHT = (0.0, 0.6, 1.0, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle")
  testing.save_tiny_bundle(folder)
  return folder


@pytest.fixture(scope="module")
def star(folder):
  return star_jax.load(folder)


@pytest.fixture(scope="module")
def picture():
  rng = np.random.default_rng(3)
  return Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))


def test_kept_tokens_stay_and_the_others_change(star, picture):
  out = star.edit(picture, "a red heart", box=RIGHT, count=3, temperature=9.0)
  given = star.encode(picture)
  assert out.tokens_BL.shape == (3, 14) and len(out.images) == 3
  assert out.keep_L[0] and 0 < out.keep_L.sum() < 14
  np.testing.assert_array_equal(
    out.tokens_BL[:, out.keep_L], np.stack([given[out.keep_L]] * 3)
  )
  assert (out.tokens_BL[:, ~out.keep_L] != given[~out.keep_L]).any()
  assert (out.tokens_BL[0] != out.tokens_BL[1]).any()


@pytest.mark.long
def test_the_rest_has_the_features_of_the_given_picture(star, picture):
  tokens = np.stack([star.encode(picture)] * 2)
  keep_hw = ~box_mask((3, 3), RIGHT)
  keep = np.stack(
    [keep_tokens(ScaleSchedule.from_patch_nums([1, 2, 3]), keep_hw)] * 2
  )
  settings = star.settings(temperature=9.0)
  text = star.text_encoder.encode(["a red heart", "a dog"])

  def f_hats(restore_hw):
    edit = Edit(tokens, keep, restore_hw)
    return np.asarray(
      star.run_sampler(settings, text, 0, np.arange(2), edit).f_hats_KBhwCv
    )

  given = np.asarray(
    star.run_sampler(
      settings, text, 0, np.arange(2), Edit(tokens, np.ones_like(keep))
    ).f_hats_KBhwCv
  )
  restored, official = f_hats(keep_hw), f_hats(None)
  np.testing.assert_allclose(
    restored[:, :, keep_hw], given[:, :, keep_hw], atol=1e-5
  )
  assert np.abs(restored - given)[:, :, ~keep_hw].max() > 0.1
  # VAR's rule: the coarse tokens that were drawn reach across the mask.
  assert np.abs(official - given)[:, :, keep_hw].max() > 0.1


def test_a_mask_is_the_box_that_it_shows(star, picture):
  mask = np.zeros((12, 12, 3), np.uint8)
  mask[:, 8:] = 255
  box = star.edit(picture, box=RIGHT, count=3)
  same = star.edit(picture, mask=Image.fromarray(mask), count=3)
  np.testing.assert_array_equal(same.tokens_BL, box.tokens_BL)
  gray = np.asarray(same.masked) == 128
  assert gray[:, 8:].all() and not gray[:, :8].all(-1).any()
  np.testing.assert_array_equal(
    np.asarray(same.masked)[:, :8], np.asarray(same.before)[:, :8]
  )


def test_outpainting_keeps_the_inside(star, picture):
  inside = star.edit(picture, box=RIGHT, outpaint=True, count=3)
  last = slice(-9, None)
  kept = inside.keep_L[last].reshape(3, 3)
  np.testing.assert_array_equal(kept, [[False, False, True]] * 3)


def test_an_edit_of_nothing_else_is_the_picture(star, picture):
  schedule = ScaleSchedule.from_patch_nums([1, 2, 3])
  assert keep_tokens(schedule, np.ones((3, 3), bool)).all()
  assert keep_tokens(schedule, np.zeros((3, 3), bool)).sum() == 1


def test_box_edges_are_rounded_halves_to_even():
  mask = box_mask((4, 4), (0.125, 0.375, 0.625, 1.0))
  np.testing.assert_array_equal(np.argwhere(mask).min(0), [0, 2])
  np.testing.assert_array_equal(np.argwhere(mask).max(0), [1, 3])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "takes a box or a mask, got neither"),
    ({"box": RIGHT, "mask": "x"}, "takes a box or a mask, got both"),
    ({"box": (0.5, 0, 0.2, 1)}, r"A box is .* got \(0.5, 0, 0.2, 1\)"),
    ({"box": (0, 0, 0.1, 0.1)}, "holds no cell of the 3 x 3 grid"),
    ({"box": (0, 1, 1)}, r"A box is .* got \(0, 1, 1\)"),
    ({"box": (0, 0, float("nan"), 1)}, "A box is .* nan"),
    ({"box": "left"}, "A box is .* got 'left'"),
    ({"box": RIGHT, "prompt": 3}, "strings, got 3"),
    ({"box": (0, 0, 1, 1)}, "leaves nothing to keep"),
    (
      {"mask": np.zeros((12, 12, 3), np.uint8)},
      "leaves nothing to draw",
    ),
    (
      {"mask": np.zeros((10, 12, 3), np.uint8)},
      "12 x 12 pixels, got 12 x 10",
    ),
    ({"mask": np.zeros((0, 0, 3), np.uint8)}, "12 x 12 pixels, got 0 x 0"),
    ({"mask": np.zeros((12, 12), bool)}, "uint8 .* got bool"),
    ({"box": RIGHT, "count": 0}, "count"),
    ({"box": RIGHT, "top_p": 2.0}, "top_p"),
  ],
)
def test_bad_edits_are_one_sentence(star, picture, options, message):
  with pytest.raises(ValueError, match=message):
    star.edit(picture, **options)


def test_a_mask_of_another_size_is_named():
  schedule = ScaleSchedule.from_patch_nums([1, 2, 3])
  with pytest.raises(ValueError, match="3 x 3 cells, got 2 x 3"):
    keep_tokens(schedule, np.ones((2, 3), bool))


def test_the_command_writes_a_sheet(folder, picture, tmp_path, capsys):
  source = tmp_path / "picture.png"
  picture.save(source)
  written = commands.edit_to_folder(
    source, "a dog", bundle=folder, out=tmp_path / "out", box=RIGHT, count=3
  )
  assert [path.name for path in written] == [
    "edit_0.png",
    "edit_1.png",
    "edit_2.png",
    "edit.png",
  ]
  assert all(path.is_file() for path in written)
  assert "editing" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("size", "options", "message"),
  [
    (
      None,
      ["--box=1,2"],
      "--box takes four numbers y0,x0,y1,x1 in [0, 1], got",
    ),
    ((10, 12), [], "12 x 12 pixels, got 10 x 12"),
    ((12, 12), [], "The mask leaves nothing to draw."),
  ],
)
def test_launch_ends_in_one_sentence_and_status_2(
  folder, picture, tmp_path, size, options, message
):
  picture.save(tmp_path / "picture.png")
  if size:
    Image.new("L", size).save(tmp_path / "mask.png")
    options = [f"--mask={tmp_path / 'mask.png'}"]
  done = subprocess.run(
    [
      sys.executable,
      str(ROOT / "launch" / "edit.py"),
      str(tmp_path / "picture.png"),
      f"--ckpt={folder}",
      f"--out={tmp_path / 'out'}",
      *options,
    ],
    capture_output=True,
    text=True,
    env=dict(os.environ, JAX_PLATFORMS="cpu"),
  )
  assert done.returncode == 2
  assert message in done.stderr.splitlines()[-1]
  assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def shipped():
  """The shipped model, and a drawing of two shapes."""
  picture = Image.new("RGB", (64, 64), "white")
  pen = ImageDraw.Draw(picture)
  pen.ellipse((4, 20, 28, 44), fill=(200, 40, 40), outline="black")
  pen.rectangle((36, 20, 60, 44), fill=(50, 90, 200))
  return star_jax.load(), picture


@pytest.mark.long
@pytest.mark.parametrize(
  ("box", "outpaint"),
  [
    ((0, 0.5, 1, 1), False),
    ((0.5, 0.5, 1, 1), False),
    ((0, 0.25, 1, 1), True),
  ],
)
def test_the_shipped_model_leaves_the_rest_as_it_was(shipped, box, outpaint):
  star, picture = shipped
  out = star.edit(
    picture, "a red car left of a yellow dog", box=box, outpaint=outpaint
  )
  given = star.encode(picture)
  kept = []  # whether the middle of each cell is kept
  y0, x0, y1, x1 = box
  for side in (1, 2, 4, 8, 16, 16):
    y, x = np.mgrid[:side, :side] / side + 0.5 / side
    drawn = (y > y0) & (y < y1) & (x > x0) & (x < x1)
    kept.append((side == 1) | (drawn == outpaint))
  kept_L = np.concatenate([k.reshape(-1) for k in kept])
  ends = np.cumsum([k.size for k in kept])[:-1]
  np.testing.assert_array_equal(out.tokens_BL[0, kept_L], given[kept_L])
  for change in np.split((out.tokens_BL[0] != given) & ~kept_L, ends)[3:]:
    assert change.any()

  rest_HW = np.kron(kept[-1], np.ones((4, 4), bool))
  before, rebuilt, after = (
    np.asarray(image, float)[rest_HW]
    for image in (out.before, star.decode(given), out.images[0])
  )

  def error(a, b):
    return np.sqrt(np.mean((a - b) ** 2))

  # What the tokenizer loses is lost; beyond that only what the decoder sees of
  # the cells beside the mask may differ.
  assert error(after, before) < 1.05 * error(rebuilt, before)
  assert error(after, rebuilt) < 0.3 * error(rebuilt, before)
  everywhere = np.asarray(out.images[0], float), np.asarray(out.before, float)
  assert error(*everywhere) > 2 * error(rebuilt, before)
