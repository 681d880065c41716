from star_jax import scene_shapes
from star_jax.scales import ASPECTS


def test_shapes_are_whole_tokens_of_about_one_area():
  assert scene_shapes.shape(64, "1:1") == (64, 64)
  assert scene_shapes.shape(64, "16:9") == (48, 84)
  assert scene_shapes.shape(128, "1:2") == (184, 88)


def test_the_sheet_shows_every_shape(art_store):
  sheet = scene_shapes.sheet(art_store)
  cells = len(ASPECTS)
  assert sheet.width > cells * 160 and sheet.height > 2 * 160
  # Something is drawn in the column of every ratio.
  width = sheet.width // cells
  for i in range(cells):
    column = sheet.crop((i * width, 0, (i + 1) * width, 160))
    assert len(column.getcolors(100_000)) > 20
