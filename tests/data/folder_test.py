import json

import numpy as np
import pytest
from PIL import Image

from star_jax.data.folder import FolderListing, read_captions
from star_jax.data.picture_source import (
  PictureOptions,
  PictureSource,
  open_rgb,
)

SIZE = (16, 24)


def source(folder, split="train", classes=False, **changes):
  options = {
    "heldout_share": 0.0,
    "crop": "centre",
    "flip": False,
    "small": "enlarge",
    "max_bad_share": 0.0,
    **changes,
  }
  listing = FolderListing(folder, classes=classes)
  return PictureSource(
    listing, PictureOptions(**options), size=SIZE, split=split
  )


def add(folder, name, image=None, caption="A Red Thing"):
  """A picture with its caption file; returns the path of the picture."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if image is None:
    image = Image.new("RGB", (40, 40), (200, 30, 30))
  image.save(path)
  if caption is not None:
    path.with_suffix(".txt").write_text(caption, "utf-8")
  return path


def test_pairs_in_folders(tmp_path):
  add(tmp_path, "b.png")
  add(tmp_path, "deep/a.jpg", caption="ein B\u00e4r\n\nthe  bear\n")
  found = source(tmp_path)
  assert [p.name for p in found.pairs] == ["b.png", "deep/a.jpg"]
  image, caption, meta = found.example(0, 0)
  assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
  assert np.abs(image.astype(int) - (200, 30, 30)).max() < 3
  assert caption == "a red thing"
  assert meta == {"id": "b.png", "source": "folder"}
  told = {found.example(1, seed)[1] for seed in range(20)}
  assert told == {"ein b\u00e4r", "the bear"}


@pytest.mark.parametrize(
  "value, captions",
  [
    ("one", ("one",)),
    (["one", "two"], ("one", "two")),
    ({"caption": "one", "score": 3}, ("one",)),
    ({"captions": ["one", "two"]}, ("one", "two")),
  ],
)
def test_json_captions(tmp_path, value, captions):
  path = tmp_path / "x.json"
  path.write_text(json.dumps(value))
  assert read_captions(path) == captions


def make_images():
  deep = (np.arange(1600).reshape(40, 40) * 40).astype(np.uint16)
  alpha = Image.new("RGBA", (40, 40), (0, 0, 255, 0))
  return {
    "gray.png": Image.new("L", (40, 40), 100),
    "deep.png": Image.fromarray(deep),
    "alpha.png": alpha,
    "gray_alpha.png": Image.new("LA", (40, 40), (0, 128)),
    "cmyk.jpg": Image.new("CMYK", (40, 40), (0, 200, 0, 0)),
    "palette.png": Image.new("RGB", (40, 40), (9, 99, 9)).convert("P"),
    "bits.png": Image.new("1", (40, 40), 1),
  }


def test_every_kind_of_pixels(tmp_path):
  for name, image in make_images().items():
    add(tmp_path, name, image, caption=name)
  found = source(tmp_path)
  assert not found.failures and len(found) == 7
  pixels = {}
  for i in range(len(found)):
    image, caption, _ = found.example(i, 0)
    assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
    pixels[caption] = image.reshape(-1, 3).mean(0)
  assert np.allclose(pixels["gray.png"], 100, atol=1)
  assert np.allclose(pixels["alpha.png"], 255)
  assert np.allclose(pixels["gray_alpha.png"], 127, atol=2)
  assert 100 < pixels["deep.png"][0] < 150
  assert np.allclose(pixels["bits.png"], 255)
  red, green, blue = pixels["cmyk.jpg"]
  assert green < 110 and red > 200 and blue > 200


def spoil(tmp_path):
  """Ten good pairs and one of every bad kind: {name: part of the reason}."""
  for i in range(10):
    add(tmp_path, f"good{i}.png")
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  cut = add(tmp_path, "cut.png", Image.fromarray(noise))
  cut.write_bytes(cut.read_bytes()[:3000])
  cut = add(tmp_path, "cut.jpg", Image.fromarray(noise))
  cut.write_bytes(cut.read_bytes()[:1000])
  add(tmp_path, "text.png").write_text("not a picture")
  add(tmp_path, "empty.png").write_bytes(b"")
  add(tmp_path, "latin.png", caption=None)
  (tmp_path / "latin.txt").write_bytes("ein B\u00e4r".encode("latin-1"))
  add(tmp_path, "mute.png", caption=None)
  add(tmp_path, "blank.png", caption=" \n")
  add(tmp_path, "odd.png", caption=None)
  (tmp_path / "odd.json").write_text('{"text": "a car"}')
  add(tmp_path, "broken.png", caption=None)
  (tmp_path / "broken.json").write_text('{"caption": ')
  return {
    "cut.png": "image cannot be read",
    "cut.jpg": "image cannot be read",
    "text.png": "image cannot be read",
    "empty.png": "image cannot be read",
    "latin.png": "caption is not UTF-8 (byte 5 of latin.txt)",
    "mute.png": "no mute.txt or mute.json beside it",
    "blank.png": "blank.txt holds no caption",
    "odd.png": "odd.json holds neither a string",
    "broken.png": "broken.json is not JSON",
  }


def test_bad_files_are_skipped_counted_and_named(tmp_path):
  reasons = spoil(tmp_path)
  with pytest.warns(UserWarning, match="9 of 19 pictures in .* skipped") as w:
    found = source(tmp_path, max_bad_share=0.5)
  assert "and 4 more" in str(w[0].message)
  assert found.failures.keys() == reasons.keys()
  for name, reason in reasons.items():
    assert found.failures[name].startswith(reason)
  assert len(found) == 10
  for i in range(10):
    found.example(i, 0)


def test_too_many_bad_files(tmp_path):
  spoil(tmp_path)
  with pytest.raises(ValueError) as error:
    source(tmp_path, max_bad_share=0.4)
  text = str(error.value)
  assert "9 of 19 pictures" in text and "max_bad_share = 0.4" in text
  assert "blank.png: blank.txt holds no caption" in text
  assert "\n" not in text


def test_small_pictures(tmp_path):
  add(tmp_path, "small.png", Image.new("RGB", (8, 8)))
  add(tmp_path, "large.png")
  found = source(tmp_path)
  assert found.num_enlarged == 1 and len(found) == 2
  assert found.example(1, 0)[0].shape == (*SIZE, 3)
  with pytest.warns(UserWarning, match="8 x 8 pixels are fewer than the crop"):
    assert len(source(tmp_path, small="skip", max_bad_share=0.5)) == 1


def test_large_photos_are_read_at_a_lower_resolution(tmp_path):
  photo = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
  path = add(tmp_path, "photo.jpg", photo)
  image = open_rgb(path, 24)
  assert image.size == (80, 60)
  found = source(tmp_path)
  assert found.num_enlarged == 0
  # A gradient from black to white, top to bottom, as in the full picture.
  column = found.example(0, 0)[0][:, 0, 0].astype(int)
  assert column[0] < 40 and column[-1] > 215 and (np.diff(column) >= 0).all()


def test_splits_share_nothing_and_lose_nothing(tmp_path):
  for i in range(40):
    add(tmp_path, f"{i}.png", Image.new("L", (30, 30)))
  train = {p.name for p in source(tmp_path, heldout_share=0.3).pairs}
  held = {p.name for p in source(tmp_path, "heldout", heldout_share=0.3).pairs}
  assert not train & held and len(train | held) == 40
  assert 3 <= len(held) <= 22
  (name,) = {
    p.name for p in source(tmp_path, "heldout", heldout_share=1e-9).pairs
  }
  assert name in held  # a few pictures still give one to look at
  with pytest.raises(ValueError, match="fall into the split 'heldout'"):
    source(tmp_path, "heldout")


def test_flips_only_when_asked(tmp_path):
  image = Image.new("RGB", (24, 16), (255, 0, 0))
  image.paste((0, 0, 255), (12, 0, 24, 16))
  add(tmp_path, "x.png", image)
  plain, flipped = source(tmp_path), source(tmp_path, flip=True)
  assert all(plain.example(0, s)[0][8, 2, 0] > 200 for s in range(20))
  lefts = {int(flipped.example(0, s)[0][8, 2, 0]) > 200 for s in range(20)}
  assert lefts == {True, False}
  add(tmp_path, "x.png", image, caption="red LEFT of blue")
  flipped = source(tmp_path, flip=True)
  assert all(flipped.example(0, s)[0][8, 2, 0] > 200 for s in range(20))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"crop": "top"}, "crop is one of centre, random, got 'top'"),
    ({"small": "pad"}, "small is one of enlarge, skip, got 'pad'"),
    ({"heldout_share": 1.0}, r"heldout_share is in \[0, 1\)"),
    ({"split": "test"}, "one of train, seen, heldout, got 'test'"),
  ],
)
def test_bad_options(tmp_path, changes, message):
  add(tmp_path, "x.png")
  with pytest.raises(ValueError, match=message):
    source(tmp_path, **changes)


def test_no_folder_and_no_pictures(tmp_path):
  with pytest.raises(ValueError, match=r"There is no folder .*nowhere"):
    source(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="holds no pictures"):
    source(tmp_path)
  with pytest.raises(ValueError, match="No folder of pictures was given"):
    source("")


def test_folders_may_name_classes(tmp_path):
  add(tmp_path, "cat/0.png", caption=None)
  add(tmp_path, "dog/deep/0.png", caption=None)
  found = source(tmp_path, classes=True)
  assert [p.captions for p in found.pairs] == [("cat",), ("deep",)]
  add(tmp_path, "1.png", caption="ignored")
  with pytest.raises(ValueError, match=r"1.png: it lies in no folder"):
    source(tmp_path, classes=True)


def test_a_tokenizer_needs_no_captions(tmp_path):
  for name in ("a.png", "b/c.png"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
  listing = FolderListing(tmp_path, captions=False)
  assert [listing.captions(i) for i in range(len(listing))] == [("",), ("",)]
