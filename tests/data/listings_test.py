"""Tars, Parquet and ArrayRecord files give what a folder gives."""

import io
import json
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from configs import data as data_config
from star_jax.data import pipeline
from star_jax.data.arrayrecord import ArrayRecordListing
from star_jax.data.art.store import pack_record
from star_jax.data.parquet import ParquetListing
from star_jax.data.shard_files import open_writer
from star_jax.data.webdataset import WebDatasetListing

KINDS = ("folder", "webdataset", "parquet", "arrayrecord")
SIZE = (16, 16)


def png(colour, size=(40, 40)):
  file = io.BytesIO()
  Image.new("RGB", size, colour).save(file, "png")
  return file.getvalue()


# Name, caption, bytes: half of them lying.
PICTURES = [
  (f"{i:03d}", f"A Thing {i}", png((i, 9, 200), (40 + 40 * (i % 2), 40)))
  for i in range(10)
]


def write_tar(path, members):
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def write_parquet(path, columns, rows=3):
  pytest.importorskip("pyarrow")
  import pyarrow.parquet

  pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)


def write_records(path, records):
  writer = open_writer(path)
  for header, data in records:
    writer.write(pack_record(header, data))
  writer.close()


def save(kind, directory, pictures=PICTURES):
  """The pictures in two files of a kind, or in two folders."""
  halves = {"one": pictures[:5], "two": pictures[5:]}
  for half, mine in halves.items():
    if kind == "folder":
      (directory / half).mkdir(parents=True)
      for name, caption, data in mine:
        (directory / half / f"{name}.png").write_bytes(data)
        (directory / half / f"{name}.txt").write_text(caption)
    elif kind == "webdataset":
      members = [
        member
        for name, caption, data in mine
        for member in (
          (f"./{name}.png", data),
          (f"./{name}.txt", caption.encode()),
        )
      ]
      write_tar(directory / f"{half}.tar", members)
    elif kind == "parquet":
      names, captions, images = map(list, zip(*mine))
      columns = {"key": names, "caption": captions, "image": images}
      write_parquet(directory / f"{half}.parquet", columns)
    else:
      write_records(
        directory / f"{half}.arrayrecord",
        [({"caption": c, "id": f"{half}/{n}"}, data) for n, c, data in mine],
      )


def config_of(kind, path, **own):
  options = data_config.options()
  options.source, options.size = kind, SIZE
  options[kind].update(path=str(path), heldout_share=0.0, **own)
  if kind == "parquet":
    options.parquet.id = "key"
  return options


def source(kind, path, split="train", **own):
  sources = pipeline.build_sources(config_of(kind, path, **own), split)
  return sources[kind].source


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_examples(kind, tmp_path):
  save(kind, tmp_path)
  found = pickle.loads(pickle.dumps(source(kind, tmp_path)))
  assert len(found) == 10 and not found.failures
  for i in (7, 0, 9):
    image, caption, meta = found.example(i, 3)
    assert image.shape == (*SIZE, 3)
    np.testing.assert_array_equal(image, np.full_like(image, (i, 9, 200)))
    assert caption == f"a thing {i}"
    name, _, _ = PICTURES[i]
    half = "one" if i < 5 else "two"
    suffix = ".png" if kind == "folder" else ""
    assert meta == {"id": f"{half}/{name}{suffix}", "source": kind}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_splits_and_shapes(kind, tmp_path):
  save(kind, tmp_path)
  options = config_of(kind, tmp_path)
  options[kind].heldout_share = 0.4
  names = {
    split: {
      pair.name
      for pair in pipeline.build_sources(options, split)[kind].source.pairs
    }
    for split in ("train", "heldout")
  }
  assert not names["train"] & names["heldout"]
  assert len(names["train"] | names["heldout"]) == 10
  options[kind].heldout_share = 0.0
  buckets = pipeline.build_bucket_sources(options, "train", [(16, 16), (8, 16)])
  for size, odd in (((16, 16), 0), ((8, 16), 1)):
    assert buckets[size].share == 5
    (weighted,) = buckets[size].sources.values()
    captions = {weighted.source.example(i, 0)[1] for i in range(5)}
    assert captions == {f"a thing {i}" for i in range(odd, 10, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_cannot_be_read_is_named(kind, tmp_path):
  bad = [*PICTURES[:-1], ("009", "broken", b"no picture")]
  save(kind, tmp_path, bad)
  with pytest.warns(UserWarning, match="1 of 10 pictures in .*009.*cannot be"):
    found = source(kind, tmp_path, max_bad_share=0.2)
  (reason,) = found.failures.values()
  assert "0x" not in reason
  with pytest.raises(ValueError, match=r"max_bad_share = 0.05"):
    source(kind, tmp_path)


def test_members_of_tars(tmp_path):
  path = tmp_path / "x.tar"
  write_tar(
    path,
    [
      ("a/0.JPG", png((0, 0, 0))),
      ("b/0.json", json.dumps({"text": ["One", "Two"]}).encode()),
      ("a/0.txt", b"first\nsecond"),
      ("b/0.seg.png", png((1, 1, 1))),
      ("b/0.webp", png((2, 2, 2))),
      ("a/0.cls", b"7\n"),
      ("b/0.cls", b"cat"),
      ("only.txt", b"no picture"),
    ],
  )
  found = WebDatasetListing(str(path), caption="text")
  assert [found.name(i) for i in range(len(found))] == ["x/a/0", "x/b/0"]
  assert found.captions(0) == ("first", "second")
  assert found.captions(1) == ("one", "two")
  assert found.picture(1) == png((2, 2, 2))
  classes = WebDatasetListing(str(path), classes=True)
  assert [classes.captions(i) for i in range(2)] == [("7",), ("cat",)]


def test_tars_that_are_cut_off_are_named(tmp_path):
  path = tmp_path / "x.tar"
  members = [(f"{i}.png", png((i, 0, 0))) for i in range(3)]
  write_tar(path, members)
  whole = path.read_bytes()
  header = 512 + 512 * -(-len(members[0][1]) // 512)
  for size in (header * 3, header * 2 + 100, header + 600, 100):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"x.tar is cut off or "):
      WebDatasetListing(str(path))
  with tarfile.open(path, "w:gz") as tar:
    tar.addfile(tarfile.TarInfo("0.png"), io.BytesIO())
  with pytest.raises(ValueError, match="no uncompressed tar"):
    WebDatasetListing(str(path))


def test_columns_of_parquet_files(tmp_path):
  (tmp_path / "p").mkdir()
  (tmp_path / "p" / "0.png").write_bytes(png((5, 5, 5)))
  images = [{"bytes": png((i, 0, 0)), "path": None} for i in range(4)] + [
    {"bytes": None, "path": "p/0.png"}
  ]
  columns = {
    "image": images,
    "caption": [["A", "B"], ["C"], ["D"], [], ["E"]],
    "label": [0, 1, 2, 3, 4],
    "path": ["p/0.png"] * 5,
  }
  write_parquet(tmp_path / "x.parquet", columns, rows=2)
  found = ParquetListing(str(tmp_path / "*.parquet"))
  assert found.name(4) == "x/4"
  assert found.captions(0) == ("a", "b")
  with pytest.raises(ValueError, match="its caption holds no caption"):
    found.captions(3)
  assert [found.picture(i) for i in (3, 0)] == [
    images[3]["bytes"],
    images[0]["bytes"],
  ]
  assert found.picture(4) == tmp_path / "p" / "0.png"
  paths = ParquetListing(
    str(tmp_path), image="path", caption="label", classes=True
  )
  assert paths.picture(1) == tmp_path / "p" / "0.png"
  assert paths.captions(3) == ("3",)
  with pytest.raises(ValueError, match=r"has the columns image, .* not photo"):
    ParquetListing(str(tmp_path), image="photo")
  (tmp_path / "y.parquet").write_bytes(b"PAR1 no more")
  with pytest.raises(ValueError, match=r"y.parquet cannot be read"):
    ParquetListing(str(tmp_path))


def test_parquet_without_its_package(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(ValueError, match="need the package pyarrow"):
    ParquetListing(str(tmp_path))


def test_headers_of_records(tmp_path):
  path = tmp_path / "x.arrayrecord"
  write_records(
    path,
    [
      ({"captions": ["A", "B"], "id": 17}, png((0, 0, 0))),
      ({"caption": "C"}, png((1, 0, 0))),
      ({"label": "Cat"}, png((2, 0, 0))),
    ],
  )
  found = ArrayRecordListing(str(path))
  assert [found.name(i) for i in range(3)] == ["17", "x/1", "x/2"]
  assert [found.captions(i) for i in range(2)] == [("a", "b"), ("c",)]
  with pytest.raises(ValueError, match='its "caption" holds neither'):
    found.captions(2)
  classes = ArrayRecordListing(str(path), caption="label", classes=True)
  assert classes.captions(2) == ("Cat",)
  path.write_bytes(path.read_bytes()[:-700])
  with pytest.raises(ValueError, match=r"x.arrayrecord cannot be read as A"):
    ArrayRecordListing(str(path))
  writer = open_writer(path)
  writer.write(b"\x05\0\0\0nope")
  writer.close()
  with pytest.raises(ValueError, match="does not begin with the length"):
    ArrayRecordListing(str(path)).captions(0)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_paths_that_name_nothing(kind, tmp_path):
  if kind == "parquet":
    pytest.importorskip("pyarrow")
  with pytest.raises(ValueError, match=rf"set config.data_options.{kind}.path"):
    source(kind, "")
  with pytest.raises(ValueError, match=r"There are no .* files at .*nowhere"):
    source(kind, tmp_path / "nowhere")


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    write_tar(tmp_path / folder / "0.tar", [("x.png", png((0, 0, 0)))])
  found = WebDatasetListing(str(tmp_path))
  assert [found.name(i) for i in range(2)] == ["a/0/x", "b/0/x"]
