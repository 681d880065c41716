"""CLIP's image tower, its two layouts, the scores; transformers where it is."""

import itertools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from star_jax.convert.state_dict import jax_to_torch
from star_jax.evaluation import clip_score, clip_vision
from star_jax.evaluation.clip_score import (
  AESTHETIC_LAYERS,
  AESTHETIC_WIDTHS,
  Aesthetic,
  ClipImages,
  ClipScore,
  load_aesthetic,
  preprocess,
)
from star_jax.evaluation.clip_vision import ClipVision, ClipVisionConfig

CONFIG = ClipVisionConfig(
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=2,
  num_attention_heads=3,
  image_size=16,
  patch_size=8,
  projection_dim=10,
)


@pytest.fixture(scope="module")
def params():
  shape = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
  init = ClipVision(CONFIG).init
  shapes = jax.eval_shape(init, jax.random.key(0), shape)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32),
    shapes,
  )


@pytest.fixture(scope="module")
def state(params):
  return jax_to_torch(params, clip_vision.RULES)


def to_open_clip(state, layers=2):
  """By the names that open_clip's checkpoints have."""
  v = "vision_model."
  out = {
    "visual.class_embedding": state[f"{v}embeddings.class_embedding"],
    "visual.conv1.weight": state[f"{v}embeddings.patch_embedding.weight"],
    "visual.positional_embedding": state[
      f"{v}embeddings.position_embedding.weight"
    ],
    "visual.proj": state["visual_projection.weight"].T,
    "logit_scale": np.zeros(()),
  }
  for kind in ("weight", "bias"):
    out[f"visual.ln_pre.{kind}"] = state[f"{v}pre_layrnorm.{kind}"]
    out[f"visual.ln_post.{kind}"] = state[f"{v}post_layernorm.{kind}"]
    for i in range(layers):
      a = f"visual.transformer.resblocks.{i}."
      b = f"{v}encoder.layers.{i}."
      out[f"{a}attn.in_proj_{kind}"] = np.concatenate(
        [state[f"{b}self_attn.{x}_proj.{kind}"] for x in "qkv"]
      )
      for theirs, ours in (
        ("attn.out_proj", "self_attn.out_proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
      ):
        out[f"{a}{theirs}.{kind}"] = state[f"{b}{ours}.{kind}"]
  return out


def test_both_layouts_give_the_same_parameters(params, state):
  read = lambda s: clip_vision.params_from_state(s, CONFIG, "x")  # noqa: E731
  jax.tree.map(np.testing.assert_array_equal, read(state), params)
  official = {**state, "text_model.final_layer_norm.bias": np.zeros(3)}
  jax.tree.map(np.testing.assert_array_equal, read(official), params)
  other = to_open_clip(state)
  jax.tree.map(np.testing.assert_array_equal, read(other), params)
  del other["visual.ln_pre.bias"]
  with pytest.raises(
    ValueError, match=r"not those of its config.*pre_layrnorm"
  ):
    read(other)


def clip_folder(path, state):
  path.mkdir()
  vision = {k: v for k, v in vars(CONFIG).items() if k != "projection_dim"}
  entries = {
    "model_type": "clip",
    "projection_dim": CONFIG.projection_dim,
    "vision_config": vision,
  }
  (path / "config.json").write_text(json.dumps(entries))
  state = {k: np.ascontiguousarray(v) for k, v in state.items()}
  safetensors.numpy.save_file(state, path / "model.safetensors")
  return path


def pictures(n):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (n, 20, 33, 3), np.uint8)
  return [Image.fromarray(x) for x in images]


def test_score_is_the_cosine_of_the_towers(tmp_path, params, state):
  images = ClipImages(clip_folder(tmp_path / "clip", state))
  x_ND = images(pictures(3))
  np.testing.assert_allclose(np.linalg.norm(x_ND, axis=1), 1, rtol=1e-6)
  texts = np.random.default_rng(2).standard_normal((3, 7)).astype(np.float32)

  class Encoder:
    def encode(self, prompts):
      assert prompts == ["a", "b", "c"]
      return type("States", (), {"pooled_BD": texts})

  projection = np.random.default_rng(3).standard_normal((7, 10))
  score = ClipScore(images, Encoder(), projection.astype(np.float32))
  y_ND = texts @ projection
  cosine = (x_ND * y_ND).sum(1) / np.linalg.norm(y_ND, axis=1)
  found = score(pictures(3), ["a", "b", "c"])
  np.testing.assert_allclose(found, 100 * cosine, rtol=1e-5)


def test_preprocessing_keeps_the_centre():
  wide = np.zeros((10, 30, 3), np.uint8)
  wide[:, 10:20] = 255
  x = preprocess(Image.fromarray(wide), 20)
  assert x.shape == (20, 20, 3)
  white = (1 - np.float32(clip_vision.MEAN)) / np.float32(clip_vision.STD)
  np.testing.assert_allclose(x[10, 10], white, rtol=1e-5)


def test_preprocessing_rounds_the_longer_side_as_torchvision():
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (320, 360, 3), np.uint8))
  # 360 x 224 / 320 is 252, a little less in floating point.
  scaled = image.resize((252, 224), Image.Resampling.BICUBIC)
  centre = np.asarray(scaled.crop((14, 0, 238, 224)), np.float32) / 255
  expected = (centre - clip_vision.MEAN) / clip_vision.STD
  np.testing.assert_allclose(preprocess(image, 224), expected, atol=1e-5)


def test_aesthetic_head_is_its_linear_layers():
  rng = np.random.default_rng(0)
  layers = [
    (
      (rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32),
      rng.standard_normal(b).astype(np.float32),
    )
    for a, b in itertools.pairwise(AESTHETIC_WIDTHS)
  ]
  x = rng.standard_normal((4, 768)).astype(np.float32)
  images = type("Images", (), {"identity": "clip"})
  found = Aesthetic(images, layers, "abc").of_vectors(x)
  expected = x.astype(np.float64)
  for weight, bias in layers:
    expected = expected @ weight + bias
  np.testing.assert_allclose(found, expected[:, 0], rtol=1e-4, atol=1e-4)
  assert len(AESTHETIC_LAYERS) == len(layers)


def test_missing_weights_say_which_file_to_get(tmp_path, state, monkeypatch):
  with pytest.raises(
    ValueError, match=r"none given.*clip-vit-large.*config.clip"
  ):
    ClipImages("")
  with pytest.raises(ValueError, match=r"sac\+logos.*config.aesthetic"):
    load_aesthetic("", "")
  folder = clip_folder(tmp_path / "clip", state)
  (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
  with pytest.raises(ValueError, match="model_type = 'bert'"):
    ClipImages(folder)
  head = tmp_path / "head.pth"
  head.write_bytes(b"")
  monkeypatch.setattr(clip_score, "ClipImages", lambda path: None)
  monkeypatch.setattr(
    clip_score,
    "read_state_dict",
    lambda path: {"layers.0.weight": np.zeros((9, 9)), "layers.0.bias": 0},
  )
  with pytest.raises(ValueError, match=r"layers.0 is \(9, 9\), expected"):
    load_aesthetic(folder, head)


@pytest.mark.long
def test_parity_with_transformers(params, state):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  theirs = transformers.CLIPVisionModelWithProjection(
    transformers.CLIPVisionConfig(**vars(CONFIG))
  )
  missing = theirs.load_state_dict(
    {k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False
  )
  assert not missing.unexpected_keys
  x = np.random.default_rng(0).standard_normal((2, 16, 16, 3))
  x = x.astype(np.float32)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).image_embeds
  model = ClipVision(CONFIG)
  found = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, x)
  np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, rtol=1e-5)
