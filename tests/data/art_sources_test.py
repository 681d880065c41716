"""Reading the sets: keys, npm packages, line layers."""

import io
import json
import tarfile

import pytest

from star_jax.data.art import sources

NAMES = {"2764": "red heart", "1f436": "dog face", "1f468": "man"}


def write_package(folder, style, icons, chars):
  package, version = sources.NPM_PACKAGES[style]
  stem = package.lstrip("@").replace("/", "-")
  path = folder / f"{stem}-{version}.tgz"
  with tarfile.open(path, "w:gz") as tar:
    for name, content in (("icons", icons), ("chars", chars)):
      data = json.dumps(content).encode()
      info = tarfile.TarInfo(f"package/{name}.json")
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  return path


def icons(**entries):
  return {
    "width": 20,
    "height": 10,
    "icons": {k.replace("_", "-"): v for k, v in entries.items()},
    "aliases": {"mirrored": {"parent": "red-heart", "hFlip": True}},
  }


def test_keys_are_joined_without_variation_selectors():
  assert sources.normal_key("2764-FE0F") == "2764"
  assert sources.normal_key("0023-FE0F-20E3") == "23-20e3"
  assert sources.char_key("❤️‍🔥") == "2764-200d-1f525"
  assert sources.is_toned("1f44b-1f3fd")
  assert not sources.is_toned("1f3fd")
  assert sources.is_flag("1f1eb-1f1f7")
  assert not sources.is_flag("1f3f4-200d-2620")


def test_npm_set_with_code_point_table(tmp_path):
  body = {"body": '<path d="M0 0"/>'}
  write_package(
    tmp_path,
    "noto",
    icons(red_heart=body, other=body),
    {"2764-fe0f": "red-heart", "1f436": "mirrored", "1f999": "other"},
  )
  found = {i.key: i.svg for i in sources.load_set("noto", NAMES, tmp_path)}
  assert sorted(found) == ["1f436", "2764"], "unnamed drawings are left out"
  assert 'viewBox="0 0 20 10"' in found["2764"]
  assert "matrix(-1 0 0 1 20 0)" in found["1f436"]
  assert '<path d="M0 0"/>' in found["1f436"]


def test_npm_set_without_table_is_joined_by_name(tmp_path):
  own_box = {"body": "<g/>", "left": 2, "top": 1, "width": 5, "height": 6}
  write_package(
    tmp_path, "emojione", icons(red_heart={"body": "<a/>"}, man=own_box), []
  )
  found = {i.key: i.svg for i in sources.load_set("emojione", NAMES, tmp_path)}
  assert sorted(found) == ["1f468", "2764"]
  assert 'viewBox="2 1 5 6"' in found["1f468"]


def test_without_npm_the_line_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(sources.shutil, "which", lambda name: None)
  with pytest.raises(sources.SourceMissing, match="npm is not installed") as e:
    sources.load_set("fluent", NAMES, tmp_path)
  assert "--npm_dir" in str(e.value)


def test_a_failing_registry_is_one_line(tmp_path, monkeypatch):
  class Failed:
    returncode, stderr = 1, b"noise\nnpm error network unreachable\n"

  monkeypatch.setattr(sources.shutil, "which", lambda name: "npm")
  monkeypatch.setattr(sources.subprocess, "run", lambda *a, **k: Failed)
  with pytest.raises(sources.SourceMissing, match=r"network unreachable$"):
    sources.load_set("noto", NAMES, tmp_path)


def test_a_broken_package_is_named(tmp_path):
  path = write_package(tmp_path, "noto", icons(), {"2764": "x"})
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(sources.SourceMissing, match="not a readable"):
    sources.load_set("noto", NAMES, tmp_path)


def test_unknown_set():
  with pytest.raises(ValueError, match=r"'apple'.*twemoji"):
    sources.load_set("apple", NAMES, ".")


def test_line_layers_keep_only_lines():
  svg = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
    '<g id="color"><rect width="1"/></g><g id="line"><path d="M1"/></g>'
    '<g id="line-supplement"><path d="M2"/></g><g id="hair"><a/></g></svg>'
  )
  lines = sources.line_layers(svg)
  assert "M1" in lines
  assert "M2" in lines
  assert "rect" not in lines
  assert "hair" not in lines
  assert sources.line_layers("<svg no xml") == "<svg no xml"


def test_line_art_has_no_tones_and_no_flags(monkeypatch):
  svg = '<svg xmlns="http://www.w3.org/2000/svg"><g id="line"/></svg>'
  keys = ("1f44b", "1f44b-1f3fd", "1f1eb-1f1f7")
  monkeypatch.setattr(sources, "_pip_svgs", lambda p: dict.fromkeys(keys, svg))
  names = dict.fromkeys(keys, "name")
  found = sources.load_set("line art", names, ".")
  assert [item.key for item in found] == ["1f44b"]


def test_a_pip_package_that_is_not_installed(monkeypatch):
  monkeypatch.setitem(sources.PIP_PACKAGES, "twemoji", "no-such-package-here")
  with pytest.raises(sources.SourceMissing, match="no-such-package-here"):
    sources.load_set("twemoji", NAMES, ".")
