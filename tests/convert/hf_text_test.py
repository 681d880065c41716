"""Text encoders as compact folders: the same tensors, and bundles with them."""

import json
import re

import chex
import numpy as np
import pytest
import safetensors.numpy

import star_jax
from star_jax import bundle as B
from star_jax import testing
from star_jax.convert.hf_text import convert_text, family_of
from star_jax.convert.star import star_to_torch
from star_jax.convert.vqvae import vqvae_to_torch
from star_jax.model.star import Star
from star_jax.tensor_file import read_tensors
from star_jax.text.encoder import load_text_encoder
from star_jax.tokenizer.vqvae import VQVAE
from tests.text import folders
from tests.text.folders import CLIP_SMALL, T5_SMALL
from tests.train_script_test import script

WINDOW = 12


@pytest.fixture(autouse=True)
def needs_transformers():
  pytest.importorskip("transformers", reason="token ids need transformers")


def whole_clip(folder):
  """A CLIPModel: the text tower between vision tower and projections."""
  tower = folders.random_state(folders.clip_shapes(CLIP_SMALL))
  others = folders.random_state(
    {
      "vision_model.embeddings.class_embedding": (8,),
      "vision_model.encoder.layers.0.mlp.fc1.weight": (8, 8),
      "visual_projection.weight": (4, 8),
      "text_projection.weight": (4, 12),
      "logit_scale": (),
    }
  )
  others["text_model.embeddings.position_ids"] = np.arange(24)[None]
  config = {
    "model_type": "clip",
    "text_config": CLIP_SMALL,
    "projection_dim": 4,
  }
  folders.write_weights(folder, config, tower | others)
  folders.write_clip_tokenizer(folder)
  return tower


def whole_t5(folder):
  """Encoder and decoder; the words under two of their names."""
  encoder = folders.random_state(folders.t5_shapes(T5_SMALL))
  others = folders.random_state(
    {"decoder.final_layer_norm.weight": (12,), "lm_head.weight": (20, 12)}
  )
  others["encoder.embed_tokens.weight"] = encoder["shared.weight"]
  folders.write_weights(folder, T5_SMALL, encoder | others)
  folders.write_t5_tokenizer(folder)
  return encoder


WHOLE = {"clip": (whole_clip, 6), "t5": (whole_t5, 3)}


@pytest.mark.parametrize("name", WHOLE)
def test_the_encoder_alone_comes_out_bitwise(tmp_path, name):
  write, others = WHOLE[name]
  tower = write(tmp_path / "in")
  settings = convert_text(
    tmp_path / "in", tmp_path / "out", storage="float32", max_tokens=WINDOW
  )
  chex.assert_trees_all_equal(
    safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors"), tower
  )
  record = json.loads((tmp_path / "out" / "conversion.json").read_text())
  assert record["tensors"] == {"kept": len(tower), "dropped": others}
  a = load_text_encoder(name, WINDOW, tmp_path / "in")
  b = load_text_encoder(name, WINDOW, tmp_path / "out")
  assert settings == B.TextSettings.of(a) == B.TextSettings.of(b)
  prompts = ["a red cat", ""]
  chex.assert_trees_all_equal(a.encode(prompts), b.encode(prompts))
  # What was converted converts to itself.
  again = convert_text(
    tmp_path / "out", tmp_path / "again", storage="float32", max_tokens=WINDOW
  )
  assert again == settings
  for file in sorted((tmp_path / "out").iterdir()):
    other = tmp_path / "again" / file.name
    if file.name != "conversion.json":
      assert file.read_bytes() == other.read_bytes(), file.name


def test_float16_halves_the_matrices_and_is_another_fingerprint(tmp_path):
  folder = folders.write_clip(tmp_path / "in")
  full = convert_text(folder, tmp_path / "full", storage="float32")
  half = convert_text(folder, tmp_path / "half")
  assert half.fingerprint != full.fingerprint
  assert (half.name, half.max_tokens) == ("clip", 77)
  dtypes = {
    x.ndim: x.dtype
    for x in read_tensors(tmp_path / "half" / "model.safetensors").values()
  }
  assert dtypes == {1: np.float32, 2: np.float16}
  a, b = (
    load_text_encoder("clip", WINDOW, tmp_path / n).encode(["a red cat"])
    for n in ("full", "half")
  )
  np.testing.assert_allclose(a.text_BTD, b.text_BTD, atol=0.02)


@pytest.mark.parametrize("name", WHOLE)
def test_transformers_reads_what_comes_out(tmp_path, name):
  """Back in the official layout: its own class, strictly, the same states."""
  torch = pytest.importorskip(
    "torch", reason="reading it with transformers' models needs torch"
  )
  import transformers

  WHOLE[name][0](tmp_path / "in")
  convert_text(tmp_path / "in", tmp_path / "out", storage="float32")
  kind = {"clip": "CLIPTextModel", "t5": "T5EncoderModel"}[name]
  model, report = getattr(transformers, kind).from_pretrained(
    str(tmp_path / "out"), local_files_only=True, output_loading_info=True
  )
  assert not report["missing_keys"] and not report["unexpected_keys"]
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
  inputs = tokenizer(
    ["a red cat"], padding="max_length", max_length=WINDOW, return_tensors="pt"
  )
  with torch.no_grad():
    wanted = model(
      input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
    ).last_hidden_state.numpy()
  found = load_text_encoder(name, WINDOW, tmp_path / "out").encode(
    ["a red cat"]
  )
  keep = found.text_mask_BT
  np.testing.assert_allclose(found.text_BTD[keep], wanted[keep], atol=1e-5)


def test_bad_requests_write_nothing(tmp_path):
  folder = folders.write_clip(tmp_path / "in")
  out = tmp_path / "out"
  with pytest.raises(ValueError, match=r"stored as one of.*'int8'"):
    convert_text(folder, out, storage="int8")
  with pytest.raises(ValueError, match=r"holds the text encoder to convert"):
    convert_text(folder, folder)
  (folder / "merges.txt").unlink()
  with pytest.raises(ValueError, match=r"has no tokenizer files"):
    convert_text(folder, out)
  (folder / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match=r"'bert'; converted are .*t5"):
    family_of(folder)
  with pytest.raises(ValueError, match=r"no text encoder folder at"):
    convert_text(tmp_path / "absent", out)
  assert not out.exists()


def test_a_value_beyond_the_storage_leaves_no_weights(tmp_path):
  folder = folders.write_clip(tmp_path / "in")
  state = safetensors.numpy.load_file(folder / "model.safetensors")
  key = "text_model.embeddings.token_embedding.weight"
  state[key] = state[key] * np.float32(1e6)
  folders.write_weights(folder, CLIP_SMALL, state)
  with pytest.raises(ValueError, match=r"token_embedding.*store float32"):
    convert_text(folder, tmp_path / "out")
  assert not list((tmp_path / "out").glob("*safetensors*"))


# --- bundles that bring their text encoder ---


def save_bundle(folder, text, width):
  tokenizer = testing.tiny_tokenizer_config()
  config = testing.tiny_star_config(tokenizer, text_dim=width)
  B.save_bundle(
    folder,
    tokenizer_config=tokenizer,
    tokenizer_params=testing.random_params(VQVAE(tokenizer)),
    star_config=config,
    star_params=testing.random_params(Star(config)),
    text=text,
    sampling=testing.SAMPLING,
    licence="none: random weights",
  )


@pytest.mark.long
def test_a_bundle_draws_with_the_encoder_in_its_folder(tmp_path):
  folder = folders.write_clip(tmp_path / "in")
  bundle = tmp_path / "bundle"
  text = convert_text(folder, bundle / "text", max_tokens=WINDOW)
  save_bundle(bundle, text, CLIP_SMALL["hidden_size"])
  star = star_jax.load(bundle)
  assert B.TextSettings.of(star.text_encoder) == text
  tokens = star.sample_all(["a red cat"], seed=1).tokens_BL
  # The same encoder elsewhere, named in the call.
  (bundle / "text").rename(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match=r"clip comes with no package.*--text"):
    star_jax.load(bundle).sample("a red cat")
  moved = star_jax.load(bundle, text_path=tmp_path / "elsewhere")
  again = moved.sample_all(["a red cat"], seed=1).tokens_BL
  np.testing.assert_array_equal(tokens, again)


def test_another_encoder_in_the_folder_is_refused(tmp_path):
  bundle = tmp_path / "bundle"
  folder = folders.write_clip(tmp_path / "in")
  text = convert_text(folder, bundle / "text", max_tokens=WINDOW)
  save_bundle(bundle, text, CLIP_SMALL["hidden_size"])
  full = star_jax.load(bundle, text_path=folder)
  with pytest.raises(
    ValueError, match=re.escape(f"clip {text.fingerprint}, the one found is")
  ):
    full.sample("a red cat")


@pytest.mark.long
def test_the_command_wants_the_kind_it_was_told(tmp_path):
  folder = folders.write_t5(tmp_path / "t5")
  code, out, err = launch("--from=hf_clip", f"--in={folder}", "--out=/none")
  assert code == 2 and not out
  assert "holds a text encoder of the kind t5, --from=hf_clip" in err
  made = tmp_path / "made"
  code, out, err = launch("--from=hf_t5", f"--in={folder}", f"--out={made}")
  assert code == 0, err
  assert load_text_encoder("t5", WINDOW, made).width == T5_SMALL["d_model"]


@pytest.mark.long
def test_a_converted_star_takes_its_text_encoder_along(tmp_path):
  folder = folders.write_clip(tmp_path / "clip", max_position_embeddings=77)
  files, settings = tiny_official(CLIP_SMALL["hidden_size"])
  for name, state in files.items():
    safetensors.numpy.save_file(state, tmp_path / f"{name}.safetensors")
  (tmp_path / "tiny.json").write_text(json.dumps(settings))
  code, _, err = launch(
    "--from=official_star",
    f"--in={tmp_path / 'star.safetensors'}",
    f"--vae={tmp_path / 'vae.safetensors'}",
    f"--preset={tmp_path / 'tiny.json'}",
    f"--text={folder}",
    f"--out={tmp_path / 'bundle'}",
  )
  assert code == 0, err
  star = star_jax.load(tmp_path / "bundle")
  assert star.text_encoder.name == "clip"
  assert star.bundle.text.max_tokens == 77
  (image,) = star.sample("a red cat", seed=1)
  assert image.size == star.image_size[::-1]


def tiny_official(width):
  """Files of the official layout with random weights, and their settings."""
  tokenizer = testing.tiny_tokenizer_config()
  config = testing.tiny_star_config(tokenizer, width)
  files = {
    "star": star_to_torch(testing.random_params(Star(config)), config),
    "vae": vqvae_to_torch(testing.random_params(VQVAE(tokenizer)), tokenizer),
  }
  files = {
    name: {k: np.ascontiguousarray(x) for k, x in state.items()}
    for name, state in files.items()
  }
  return files, {"model": config.to_dict(), "tokenizer": tokenizer.to_dict()}


def launch(*args):
  return script(*args, name="convert")
