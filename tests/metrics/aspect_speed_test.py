"""The table of drawing times by shape."""

import pytest

from star_jax import bundle, testing
from star_jax.metrics import aspect_speed


@pytest.mark.long
def test_every_shape_is_timed_beside_the_square(tmp_path):
  testing.save_tiny_bundle(tmp_path)
  found = aspect_speed.time_shapes(
    bundle.load_bundle(tmp_path), ["1:1", "16:9"], batch=1, repeats=2
  )
  assert {aspect: f["tokens"] for aspect, f in found.items()} == {
    "1:1": 14,
    "16:9": 13,
  }
  found["1:1"]["seconds"], found["16:9"]["seconds"] = 0.5, 0.52
  last = aspect_speed.to_markdown(found).splitlines()[-1]
  assert [cell.strip() for cell in last.strip("|").split("|")] == [
    "16:9", "16 x 8", "13", "520 ms", "1.04", "1.12",
  ]  # fmt: skip


def test_a_model_of_classes_is_refused(tmp_path):
  testing.save_tiny_class_bundle(tmp_path)
  with pytest.raises(ValueError, match="does not draw texts"):
    aspect_speed.time_shapes(bundle.load_bundle(tmp_path), ["1:1"], 1, 1)


def test_the_shipped_model_is_timed_without_its_positions():
  shipped = bundle.load_bundle()
  assert "pos_embed" in shipped.params["star"]
  free = aspect_speed.without_learned_positions(shipped)
  assert set(shipped.params["star"]) - set(free.params["star"]) == {"pos_embed"}
  free.star_config.with_schedule(
    free.tokenizer_config.with_aspect("2:1").schedule
  )
