"""The pictures of a sweep, one row a model."""

import numpy as np
from PIL import Image

from star_jax.sweep import sheets

ROWS = (("One", "a", "full"), ("Later", "b", "full"), ("Two", "c", "plain"))


def test_rows_that_are_there_in_the_order_of_the_table(tmp_path):
  specs = ({"rows": ROWS},)
  assert sheets.write_samples(specs, tmp_path, 0) is None
  for arm, draw, level in (("a", "full", 50), ("c", "plain", 200)):
    path = sheets.sheet_path(tmp_path, arm, draw, 0)
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 20), (level,) * 3).save(path)
  picture = np.asarray(Image.open(sheets.write_samples(specs, tmp_path, 0)))
  assert picture.shape[0] == 2 * 26
  assert (picture[:20, -40:] == 50).all()
  assert (picture[26:46, -40:] == 200).all()
  # The title is written beside its row.
  assert picture[:20, :200].min() < 100 and picture[26:46, :200].min() < 100
