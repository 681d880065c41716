"""The frame around the parts: what is kept, what is refused, what is said."""

import dataclasses
import json
import types
from pathlib import Path

import numpy as np
import pytest

from configs.evaluate import get_config
from star_jax.metrics import evaluate as evaluate_lib
from star_jax.metrics import report, samples
from star_jax.metrics.progress import Progress
from star_jax.metrics.report import Result


@pytest.fixture
def config():
  config = get_config()
  config.n = 3
  return config


@pytest.fixture
def bundle():
  return types.SimpleNamespace(
    hash="abc",
    star_config=None,
    path=Path("b"),
    sampling={"top_k": 0},
    notes={},
  )


@pytest.fixture
def counted(monkeypatch):
  """A part that only counts how often it runs."""
  runs = []

  def run(ctx):
    runs.append(ctx.config.n)
    return Result({"n": ctx.config.n}, [("measure", "1", "")])

  module = types.SimpleNamespace(run=run)
  monkeypatch.setattr(
    evaluate_lib.importlib, "import_module", lambda name: module
  )
  return runs


def test_a_finished_part_is_kept(tmp_path, bundle, config, counted):
  lines = []

  def go(**kwargs):
    return evaluate_lib.evaluate(
      "tokenizer", bundle, config, tmp_path, print_line=lines.append, **kwargs
    )

  first = go()
  assert go() == first and counted == [3]
  assert any("kept from" in line for line in lines)
  go(redo=True)
  config.seed = 5  # another protocol
  go()
  bundle.hash = "def"
  go()
  assert len(counted) == 4
  (tmp_path / "tokenizer.json").write_text("{half")
  go()
  assert len(counted) == 5
  stored = json.loads((tmp_path / "tokenizer.json").read_text())
  assert stored["protocol"]["bundle"] == "def"
  assert stored["values"] == {"n": 3}


def test_other_settings_of_other_parts_do_not_matter(
  tmp_path, bundle, config, counted
):
  go = lambda: evaluate_lib.evaluate(  # noqa: E731
    "tokenizer", bundle, config, tmp_path, print_line=lambda line: None
  )
  go()
  config.ranking.n = 7
  go()
  config.tokenizer.num_scale_pictures = 1
  go()
  assert len(counted) == 2


@pytest.mark.parametrize(
  "what, message",
  [("looks", "got 'looks'"), ("scenes", "holds a tokenizer alone")],
)
def test_refusals(tmp_path, bundle, config, what, message):
  with pytest.raises(ValueError, match=message):
    evaluate_lib.evaluate(what, bundle, config, tmp_path)


def test_no_pictures(tmp_path, bundle, config):
  config.n = 0
  with pytest.raises(ValueError, match="--n is at least 1"):
    evaluate_lib.evaluate("tokenizer", bundle, config, tmp_path)


def test_every_part_has_settings_and_a_module():
  config = get_config()
  folder = Path(evaluate_lib.__file__).parent / "parts"
  for part in evaluate_lib.PARTS:
    assert part in config
    assert (folder / f"{part}.py").exists()
  with pytest.raises(ValueError, match="takes no argument"):
    get_config("x")


def test_table_is_aligned():
  lines = report.table(
    [("a", "1", ""), ("longer", "2", "x")], ("measure", "value", "remark")
  ).split("\n")
  assert len({len(line) for line in lines}) == 1 and len(lines) == 4


def test_json_takes_numpy_and_survives_a_stop(tmp_path):
  path = tmp_path / "deep" / "x.json"
  report.write_json(path, {"a": np.float32(0.5), "b": np.arange(2)})
  assert report.read_json(path) == {"a": 0.5, "b": [0, 1]}
  with pytest.raises(TypeError, match="object"):
    report.write_json(path, {"a": object()})
  assert report.read_json(path) == {"a": 0.5, "b": [0, 1]}
  assert report.read_json(tmp_path / "none.json") is None


class Pipeline:
  """Draws pictures that say which prompt and seed they came from."""

  bundle = types.SimpleNamespace(hash="abc")

  def __init__(self):
    self.calls = []

  def settings(self, **given):
    return {"cfg_scale": 2.0, **given}

  def sample_all(self, prompts, seed, *, batch, **settings):
    self.calls.append((len(prompts), seed))
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (len(prompts), 4, 4, 3)).astype(np.uint8)
    tokens = np.zeros((len(prompts), 3), np.int32)
    return types.SimpleNamespace(images=list(images), tokens_BL=tokens)


def test_stopped_sampling_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(samples, "CHUNK", 2)
  prompts = [f"prompt {i}" for i in range(5)]

  def draw(pipeline, **changes):
    options = {
      "seed": 0, "batch": 2, "settings": {}, "folder": tmp_path, "label": "x",
    }  # fmt: skip
    return samples.generate(pipeline, prompts, **options | changes)

  first = Pipeline()
  image = draw(first)
  assert image.shape == (5, 4, 4, 3)
  assert [n for n, _ in first.calls] == [2, 2, 1]
  # Chunks have seeds of their own.
  assert len({seed for _, seed in first.calls}) == 3
  chunks = sorted(tmp_path.glob("*/*.npz"))
  chunks[1].write_bytes(chunks[1].read_bytes()[:50])
  chunks[2].unlink()
  second = Pipeline()
  np.testing.assert_array_equal(draw(second), image)
  assert second.calls == first.calls[1:]
  # Other settings are other pictures, in another folder.
  third = Pipeline()
  draw(third, settings={"cfg_scale": 1.0})
  assert len(third.calls) == 3


def test_progress_ends_with_the_whole(capsys):
  progress = Progress("things", every=0)
  for i in range(1, 4):
    progress(i, 3)
  lines = capsys.readouterr().err.strip().split("\n")
  assert "1/3" in lines[0] and "left" in lines[1]
  assert lines[-1] == "things: 3/3 (100%)"


def test_context_is_cheap(config, bundle, tmp_path):
  # Nothing is opened before a part asks for it.
  ctx = evaluate_lib.Context(bundle, config, tmp_path)
  assert set(vars(ctx)) == {f.name for f in dataclasses.fields(ctx)}
