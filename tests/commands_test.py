"""`launch/sample.py` and the functions behind it, on a random tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star_jax import commands, pictures, testing
from star_jax.data import concepts, scene_text

ROOT = Path(commands.__file__).parents[1]
PROMPTS = ["a red heart", "two ❤ / hearts"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bundle")
  testing.save_tiny_bundle(folder)
  return folder


@pytest.fixture(scope="module")
def launch(bundle, tmp_path_factory):
  """Runs launch/sample.py with a compilation cache of its own."""
  cache = tmp_path_factory.mktemp("cache")
  env = dict(os.environ, STAR_CACHE_DIR=str(cache), JAX_PLATFORMS="cpu")
  env.pop("JAX_COMPILATION_CACHE_DIR", None)

  def run(*args):
    command = [sys.executable, str(ROOT / "launch" / "sample.py")]
    command += [f"--ckpt={bundle}", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    # The sampler alone: whether small programs are kept hangs on their time.
    return done, {path.name for path in cache.rglob("jit_sample-*-cache")}

  return run


def draw(request, bundle, out, **options):
  return commands.draw_to_folder(
    request,
    bundle=bundle,
    out=out,
    **{
      "seed": 0,
      "batch": 2,
      "settings": {},
      "sheet": True,
      "strip": False,
      "gif": False,
      **options,
    },
  )


def test_files_and_what_they_carry(bundle, tmp_path, capsys):
  request = commands.Request(PROMPTS, [False, True])
  written = draw(
    request, bundle, tmp_path, seed=4, strip=True, gif=True,
    settings={"cfg_scale": 1.5},
  )  # fmt: skip
  assert {path.name for path in written} == {
    "00_a-red-heart.png", "00_a-red-heart_scales.png", "00_a-red-heart.gif",
    "01_two-hearts.png", "01_two-hearts_scales.png", "01_two-hearts.gif",
    "contact_sheet.png",
  }  # fmt: skip
  assert set(tmp_path.iterdir()) == set(written)
  recipe = pictures.read_recipe(tmp_path / "01_two-hearts.png")
  assert (recipe.prompt, recipe.seed, recipe.index) == (PROMPTS[1], 4, 1)
  assert recipe.settings["cfg_scale"] == 1.5
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if line.startswith("[star_jax] loading")]
  assert str(tmp_path / "contact_sheet.png") in lines
  # The mark of the held-out prompt is the only red writing.
  sheet = np.asarray(Image.open(tmp_path / "contact_sheet.png"), int)
  writing = sheet[8 + 192 :]  # margin and pictures
  red = (writing[..., 0] > 150) & (writing[..., 1:] < 60).all(-1)
  columns = np.flatnonzero(red.any(0))
  assert len(columns) and columns.min() > sheet.shape[1] // 2


@pytest.mark.long
def test_launch_draws_redraws_and_reuses_the_compilation_cache(
  launch, tmp_path
):
  done, compiled = launch(*PROMPTS, f"--out={tmp_path / 'a'}", "--seed=9")
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert compiled
  first = tmp_path / "a" / "01_two-hearts.png"
  done, after = launch(f"--from={first}", f"--out={tmp_path / 'b'}")
  assert done.returncode == 0, done.stderr
  second = tmp_path / "b" / "01_two-hearts.png"
  assert second.read_bytes() == first.read_bytes()
  assert after == compiled


def test_launch_ends_in_one_sentence_and_status_2(launch):
  done, _ = launch("a", "--cfg_scale=-1")
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith("cfg_scale is the strength")
  assert "Traceback" not in done.stderr


def test_a_class_that_is_none_ends_in_one_sentence(launch, tmp_path):
  testing.save_tiny_class_bundle(tmp_path)
  done, _ = launch("3", f"--ckpt={tmp_path}", f"--out={tmp_path / 'out'}")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert done.stderr.splitlines()[-1] == (
    "A class is a number from 0 to 2 or a name (aa, bb, cc), got '3'."
  )


def test_prompts_come_from_exactly_one_place(tmp_path):
  with pytest.raises(ValueError, match="got none of them"):
    commands.read_request([])
  with pytest.raises(ValueError, match="got several of them"):
    commands.read_request(["a"], demo=True)
  assert commands.read_request(["a", "b"]).prompts == ["a", "b"]


def test_prompt_files(tmp_path):
  text = tmp_path / "p.txt"
  text.write_text("a red heart\n\n  two ❤\n", "utf-8")
  assert commands.read_prompts_file(text).prompts == ["a red heart", "two ❤"]
  listed = tmp_path / "p.json"
  listed.write_text(json.dumps(["a", {"prompt": "b", "heldout": True}]))
  request = commands.read_prompts_file(listed)
  assert (request.prompts, request.heldout) == (["a", "b"], [False, True])


@pytest.mark.parametrize(
  "name, data, message",
  [
    ("p.txt", b"caf\xe9", "not UTF-8"),
    ("p.txt", b"\n \n", "has no prompt"),
    ("p.json", b"[", "not a JSON list"),
    ("p.json", b'[{"text": "a"}]', "not a JSON list"),
    ("p.json", b"3", "not a JSON list"),
    ("p.json", b"[]", "At least one prompt"),
  ],
)
def test_prompt_files_that_are_none(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=message):
    commands.read_request([], tmp_path / name)


def test_demo_prompts_lie_beside_the_bundle(tmp_path):
  entries = [{"prompt": "a", "heldout": True}, {"prompt": "b"}]
  (tmp_path / commands.DEMO_FILE).write_text(json.dumps(entries))
  request = commands.read_request([], demo=True, bundle=tmp_path)
  assert request.heldout == [True, False]
  with pytest.raises(ValueError, match="no demo prompts"):
    commands.demo_request(tmp_path / "absent")


def test_shipped_demo_marks_exactly_what_was_held_out():
  request = commands.demo_request()
  assert len(request.prompts) == 12
  for prompt, held in zip(request.prompts, request.heldout):
    try:
      facts = scene_text.read_caption(prompt)
    except ValueError:
      assert not held, prompt  # an icon, not a scene
      continue
    things = [thing.concept for thing in facts.things]
    expected = any(
      concepts.is_heldout_pair(thing.colour, thing.concept)
      for thing in facts.things
    ) or any(
      concepts.is_heldout_triple(things[i], relation, things[j])
      for i, relation, j in facts.relations
    )
    assert held == expected, prompt
  assert any(request.heldout) and not all(request.heldout)


def test_an_unwritable_folder_is_named(bundle, tmp_path):
  (tmp_path / "file").write_text("in the way")
  request = commands.Request(["a"], [False])
  with pytest.raises(OSError, match="file"):
    draw(request, bundle, tmp_path / "file" / "out")
