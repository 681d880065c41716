"""Folders of text encoders: layouts, fingerprints, and everything bad."""

import json
import re
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
import safetensors.numpy

from star_jax.text import hf_folder
from star_jax.text.encoder import load_text_encoder
from tests.convert import pth_test
from tests.text import folders
from tests.text.folders import CLIP_SMALL, END

WINDOW = 12


@pytest.fixture
def folder(tmp_path):
  pytest.importorskip("transformers", reason="token ids need transformers")
  return folders.write_clip(tmp_path / "clip")


@pytest.fixture
def t5_folder(tmp_path):
  pytest.importorskip("transformers", reason="token ids need transformers")
  return folders.write_t5(tmp_path / "t5")


def test_a_pipeline_folder_is_the_flat_one(tmp_path, folder):
  """text_encoder/ and tokenizer/ of a diffusers pipeline."""
  pipeline = tmp_path / "pipeline"
  for part, names in {
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("vocab.json", "merges.txt", "tokenizer_config.json"),
  }.items():
    (pipeline / part).mkdir(parents=True)
    for name in names:
      (pipeline / part / name).write_bytes((folder / name).read_bytes())
  a = load_text_encoder("clip", WINDOW, folder)
  b = load_text_encoder("clip", WINDOW, pipeline)
  assert a.fingerprint == b.fingerprint
  chex.assert_trees_all_equal(a.encode(["a cat"]), b.encode(["a cat"]))


def as_bin(folder, name, state):
  """A file as torch.save writes it."""
  arrays = {str(i): x for i, x in enumerate(state.values())}
  program = pth_test._dict(
    **{
      key: pth_test._tensor(place, x)
      for key, (place, x) in zip(state, arrays.items())
    }
  )
  pth_test._write_zip(folder / name, program, arrays)


def in_parts(folder, kind, write):
  """Two files and their index in the place of model.safetensors."""
  state = safetensors.numpy.load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  keys, stem = sorted(state), kind.partition(".")[0]
  places = {}
  for i, part in enumerate((keys[:9], keys[9:]), 1):
    name = kind.replace(stem, f"{stem}-0000{i}-of-00002")
    write(folder, name, {key: state[key] for key in part})
    places |= dict.fromkeys(part, name)
  index = {"metadata": {}, "weight_map": places}
  (folder / f"{kind}.index.json").write_text(json.dumps(index))


def as_safetensors(folder, name, state):
  safetensors.numpy.save_file(state, folder / name)


@pytest.mark.parametrize(
  ("kind", "write", "parts"),
  [
    ("model.safetensors", as_safetensors, True),
    ("pytorch_model.bin", as_bin, False),
    ("pytorch_model.bin", as_bin, True),
  ],
)
def test_weights_in_parts_or_of_torch_are_the_same(folder, kind, write, parts):
  wanted = load_text_encoder("clip", WINDOW, folder)
  if parts:
    in_parts(folder, kind, write)
  else:
    state = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # Checkpoints of those days keep this constant.
    state["text_model.embeddings.position_ids"] = np.arange(24)[None]
    write(folder, kind, state)
  found = load_text_encoder("clip", WINDOW, folder)
  assert found.fingerprint == wanted.fingerprint
  chex.assert_trees_all_equal(found.encode(["cat"]), wanted.encode(["cat"]))


def test_a_missing_part_is_named(folder):
  in_parts(folder, "model.safetensors", as_safetensors)
  index = folder / "model.safetensors.index.json"
  places = json.loads(index.read_text())["weight_map"]
  places["lost"] = "model-00001-of-00002.safetensors"
  index.write_text(json.dumps({"weight_map": places}))
  with pytest.raises(ValueError, match=r"00001-of-00002.*lacks lost, see"):
    load_text_encoder("clip", WINDOW, folder)
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(ValueError, match=r"lacks model-00002-of-00002.*index"):
    load_text_encoder("clip", WINDOW, folder)
  index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere"}}))
  with pytest.raises(ValueError, match=r"does not say which file"):
    load_text_encoder("clip", WINDOW, folder)


def test_fingerprint_follows_weights_words_rule_and_window(folder):
  def fingerprint(window=WINDOW):
    return load_text_encoder("clip", window, folder).fingerprint

  seen = [fingerprint(), fingerprint(8)]
  assert re.fullmatch("[0-9a-f]{16}", seen[0])
  state = safetensors.numpy.load_file(folder / "model.safetensors")
  key = "text_model.final_layer_norm.bias"
  state[key] = state[key] + np.float32(1e-6)
  folders.write_weights(folder, CLIP_SMALL, state)
  seen.append(fingerprint())
  folders.write_weights(folder, CLIP_SMALL | {"eos_token_id": END}, state)
  seen.append(fingerprint())
  folders.write_clip_tokenizer(folder, pad="<|endoftext|>")
  seen.append(fingerprint())
  assert len(set(seen)) == 5
  # How the file names its dtype's default or extra entries does not count.
  extra = CLIP_SMALL | {"eos_token_id": END, "layer_norm_eps": 1e-5, "x": 1}
  folders.write_weights(folder, extra, state)
  assert fingerprint() == seen[-1]


# --- bad folders ---


def change_config(folder, **entries):
  file = folder / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def change_state(folder, change):
  state = safetensors.numpy.load_file(folder / "model.safetensors")
  change(state)
  safetensors.numpy.save_file(state, folder / "model.safetensors")


def cut(folder, name):
  data = (folder / name).read_bytes()
  (folder / name).write_bytes(data[: len(data) // 2])


_BIAS = "text_model.encoder.layers.1.mlp.fc2.bias"
BAD = {
  "no tokenizer files": (
    lambda f: [(f / n).unlink() for n in ("vocab.json", "merges.txt")],
    "has no tokenizer files: needed are tokenizer.json, or vocab.json and",
  ),
  "half a vocabulary": (
    lambda f: cut(f, "vocab.json"),
    "transformers cannot read the tokenizer files",
  ),
  "no merges": (lambda f: (f / "merges.txt").unlink(), "no tokenizer files"),
  "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
  "half a config": (lambda f: cut(f, "config.json"), "is not readable"),
  "no weights": (
    lambda f: (f / "model.safetensors").unlink(),
    "has no weights: looked for model.safetensors",
  ),
  "half the weights": (
    lambda f: cut(f, "model.safetensors"),
    "is not a whole safetensors file",
  ),
  "another model": (
    lambda f: change_config(f, model_type="bert"),
    "model_type = 'bert'; the text encoder clip reads 'clip_text_model' or",
  ),
  "another activation": (
    lambda f: change_config(f, hidden_act="relu"),
    "hidden_act = 'relu'; supported are gelu, quick_gelu",
  ),
  "a word for a number": (
    lambda f: change_config(f, num_hidden_layers="two"),
    "num_hidden_layers = 'two', not a positive int",
  ),
  "heads that do not divide": (
    lambda f: change_config(f, num_attention_heads=5),
    "hidden_size = 12, not a multiple",
  ),
  "a missing key": (
    lambda f: change_state(f, lambda s: s.pop(_BIAS)),
    "1 missing key(s): encoder.layers.1.mlp.fc2.bias",
  ),
  "an unknown key": (
    lambda f: change_state(f, lambda s: s.update(extra=np.zeros(2, "f4"))),
    "1 unknown key(s): extra",
  ),
  "another shape": (
    lambda f: change_state(f, lambda s: s.update({_BIAS: np.zeros(3, "f4")})),
    "has shape (3,), this model needs (12,)",
  ),
  "more layers": (
    lambda f: change_config(f, num_hidden_layers=3),
    "16 missing key(s)",
  ),
  "more words than rows": (
    lambda f: change_config(f, vocab_size=29),
    "gives ids up to 29, its config.json has vocab_size = 29",
  ),
  "another end token": (
    lambda f: change_config(f, eos_token_id=7),
    "ends prompts with 29, its config.json has eos_token_id = 7",
  ),
}


T5_BAD = {
  "no tokenizer files": (
    lambda f: (f / "tokenizer.json").unlink(),
    "has no tokenizer files: needed are tokenizer.json, or spiece.model",
  ),
  "half a vocabulary": (
    lambda f: cut(f, "tokenizer.json"),
    "transformers cannot read the tokenizer files",
  ),
  "another model": (
    lambda f: change_config(f, model_type="mt5"),
    "model_type = 'mt5'; the text encoder t5 reads 't5'",
  ),
  "the first T5": (
    lambda f: change_config(f, feed_forward_proj="relu"),
    "feed_forward_proj = 'relu'; only 'gated-gelu'",
  ),
  "odd buckets": (
    lambda f: change_config(f, relative_attention_num_buckets=6),
    "relative_attention_num_buckets = 6, not a multiple of 4",
  ),
  "half the weights": (
    lambda f: cut(f, "model.safetensors"),
    "is not a whole safetensors file",
  ),
  "fewer layers": (
    lambda f: change_config(f, num_layers=1),
    "9 unknown key(s): encoder.block.1",
  ),
  "more words than rows": (
    lambda f: change_config(f, vocab_size=10),
    "gives ids up to 10, its config.json has vocab_size = 10",
  ),
}


@pytest.mark.parametrize("case", T5_BAD)
def test_bad_t5_folders_end_in_one_sentence(t5_folder, case):
  damage, message = T5_BAD[case]
  damage(t5_folder)
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    load_text_encoder("t5", WINDOW, t5_folder)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_end_in_one_sentence(folder, case):
  damage, message = BAD[case]
  damage(folder)
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    load_text_encoder("clip", WINDOW, folder)
  assert "\n" not in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
  with pytest.raises(ValueError, match=r"no text encoder folder at .*absent"):
    load_text_encoder("clip", 77, tmp_path / "absent")
  with pytest.raises(ValueError, match=r"clip comes with no package.*--text"):
    load_text_encoder("clip", 77)


def test_without_transformers_one_sentence_says_so(tmp_path, monkeypatch):
  folder = folders.write_clip(tmp_path)
  monkeypatch.setitem(sys.modules, "transformers", None)
  with pytest.raises(ValueError, match="pip install transformers"):
    load_text_encoder("clip", WINDOW, folder)


def test_torch_is_not_imported(folder, t5_folder):
  code = (
    "import sys; from star_jax.text.encoder import load_text_encoder;"
    f"e = load_text_encoder('clip', 12, {str(folder)!r}); e.encode(['a cat']);"
    f"e = load_text_encoder('t5', 12, {str(t5_folder)!r}); e.encode(['a cat']);"
    "assert 'transformers' in sys.modules; assert 'torch' not in sys.modules"
  )
  root = Path(hf_folder.__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
