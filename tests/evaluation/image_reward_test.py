"""ImageReward: names, words, the score; transformers' BLIP where torch is."""

import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from star_jax.convert.state_dict import Restored, jax_to_torch
from star_jax.evaluation import image_reward
from star_jax.evaluation.blip import (
  BlipImage,
  BlipImageConfig,
  BlipText,
  BlipTextConfig,
)
from star_jax.evaluation.image_reward import (
  HEAD_LAYERS,
  MEAN,
  RULES,
  STD,
  ImageReward,
  RewardConfig,
  RewardNetwork,
  load_image_reward,
  params_from_state,
  word_pieces,
)
from star_jax.evaluation.scorers import build_scorer
from star_jax.text import minilm
from star_jax.text.prompts import PromptTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "dog", "##s"]
CONFIG = RewardConfig(
  image=BlipImageConfig(
    image_size=16, patch_size=8, width=24, layers=2, heads=3, mlp_width=40
  ),
  text=BlipTextConfig(
    vocab_size=len(WORDS) + 2,
    max_positions=12,
    width=16,
    layers=2,
    heads=2,
    mlp_width=20,
  ),
  head_widths=(12, 8, 6, 4, 1),
  max_tokens=8,
)
PROMPTS = ["a red dog", "Blue dogs", "", "a blue dog a red cat"]


def shapes_of(config):
  side, length = config.image.image_size, config.max_tokens
  inputs = (
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    jax.ShapeDtypeStruct((1, length), np.int32),
    jax.ShapeDtypeStruct((1, length), np.bool_),
  )
  init = RewardNetwork(config).init
  return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    # Norms of about one, so that words are told from each other.
    mean = 1.0 if path[-1].key == "scale" else 0.0
    x = mean + 0.3 * rng.standard_normal(leaf.shape)
    return x.astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes_of(CONFIG))


@pytest.fixture(scope="module")
def state(params):
  return jax_to_torch(params, RULES)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
  path.write_text("\n".join(WORDS) + "\n")
  return path


@pytest.fixture(scope="module")
def scorer(params, vocab):
  return ImageReward(params, word_pieces(vocab, CONFIG), CONFIG, "random")


def pictures(n):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (n, 20, 33, 3), np.uint8)
  return [Image.fromarray(x) for x in images]


def test_names_and_shapes_of_the_published_network():
  zeros = jax.tree.map(
    lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
    shapes_of(RewardConfig()),
  )
  facts = {
    key: shape for key, (shape, _) in Restored(zeros, RULES).facts.items()
  }
  image, text = "blip.visual_encoder.", "blip.text_encoder."
  layer = f"{text}encoder.layer.11."
  expected = {
    f"{image}cls_token": (1, 1, 1024),
    f"{image}pos_embed": (1, 197, 1024),
    f"{image}patch_embed.proj.weight": (1024, 3, 16, 16),
    f"{image}patch_embed.proj.bias": (1024,),
    f"{image}blocks.23.norm1.weight": (1024,),
    f"{image}blocks.23.attn.qkv.weight": (3072, 1024),
    f"{image}blocks.23.attn.qkv.bias": (3072,),
    f"{image}blocks.23.attn.proj.weight": (1024, 1024),
    f"{image}blocks.23.norm2.bias": (1024,),
    f"{image}blocks.23.mlp.fc1.weight": (4096, 1024),
    f"{image}blocks.23.mlp.fc2.weight": (1024, 4096),
    f"{image}norm.weight": (1024,),
    f"{text}embeddings.word_embeddings.weight": (30524, 768),
    f"{text}embeddings.position_embeddings.weight": (512, 768),
    f"{text}embeddings.LayerNorm.weight": (768,),
    f"{layer}attention.self.query.weight": (768, 768),
    f"{layer}attention.output.dense.bias": (768,),
    f"{layer}attention.output.LayerNorm.weight": (768,),
    f"{layer}crossattention.self.key.weight": (768, 1024),
    f"{layer}crossattention.self.value.weight": (768, 1024),
    f"{layer}crossattention.output.LayerNorm.bias": (768,),
    f"{layer}intermediate.dense.weight": (3072, 768),
    f"{layer}output.dense.weight": (768, 3072),
    f"{layer}output.LayerNorm.weight": (768,),
    "mlp.layers.0.weight": (1024, 768),
    "mlp.layers.2.weight": (128, 1024),
    "mlp.layers.4.weight": (64, 128),
    "mlp.layers.6.weight": (16, 64),
    "mlp.layers.7.weight": (1, 16),
  }
  assert {key: facts.get(key) for key in expected} == expected
  # 6 of the picture's own and 12 a block; 4 and 26; 10 of the head.
  assert len(facts) == 6 + 24 * 12 + 4 + 12 * 26 + 10


def test_weights_come_back_and_others_are_refused(params, state):
  more = {
    "blip.text_encoder.embeddings.position_ids": np.arange(12)[None],
    "blip.vision_proj.weight": np.zeros((2, 24)),
    "blip.text_proj.bias": np.zeros(2),
  }
  read = params_from_state({**state, **more}, CONFIG)
  jax.tree.map(np.testing.assert_array_equal, read, params)
  key = "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"
  without = {k: x for k, x in state.items() if k != key}
  why = rf"not the weights of ImageReward.*1 missing key\(s\): {key}\."
  with pytest.raises(ValueError, match=why):
    params_from_state(without, CONFIG)
  why = rf"'{key}' has shape \(16, 16\), this model needs \(16, 24\)"
  with pytest.raises(ValueError, match=why):
    params_from_state({**state, key: np.zeros((16, 16))}, CONFIG)
  with pytest.raises(ValueError, match=r"1 unknown key.*itm_head\.weight"):
    params_from_state({**state, "itm_head.weight": np.zeros(2)}, CONFIG)


def test_word_pieces_are_those_of_bert(tmp_path, vocab):
  prompts = [
    "a red heart",
    "Naïve café: 2 stars & a family of four (man, woman, girl, boy) 🙂",
    "",
    "an astronaut riding a horse in the style of hokusai, " * 5,
  ]
  config = RewardConfig()
  theirs = PromptTokenizer(minilm.package_folder() / "tokenizer.json", 35)
  with pytest.warns(UserWarning, match="text window of 35 tokens"):
    expected = theirs(prompts)
  with pytest.warns(UserWarning, match="text window of 35 tokens"):
    assert word_pieces("", config)(prompts) == expected
  assert word_pieces(vocab, CONFIG)(["Red dogs cat"]) == [[2, 5, 7, 8, 1, 3]]
  with pytest.raises(ValueError, match=r"no file at none.*imagereward_vocab"):
    word_pieces("none", config)
  (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nthe\n")
  with pytest.raises(ValueError, match=r"3 lines.*lacks \[CLS\], \[SEP\]"):
    word_pieces(tmp_path / "vocab.txt", config)
  with pytest.raises(ValueError, match="at most 11 are known"):
    word_pieces("", CONFIG)


def test_the_score_is_of_the_pair_and_not_of_its_batch(scorer):
  images = pictures(3)
  alone = [scorer([image], [PROMPTS[0]])[0] for image in images]
  assert np.ptp(alone) > 1e-3
  several = scorer([*images, images[0]], [*[PROMPTS[0]] * 3, PROMPTS[1]])
  np.testing.assert_allclose(several[:3], alone, rtol=1e-4, atol=1e-5)
  assert abs(several[3] - alone[0]) > 1e-3
  # More than one batch, in another order.
  many = scorer(images[::-1] * 6, [PROMPTS[0]] * 18)
  np.testing.assert_allclose(many, alone[::-1] * 6, rtol=1e-4, atol=1e-5)


def test_padding_does_not_matter(scorer):
  ids_NT, mask_NT = scorer.tokens(PROMPTS[:3])
  np.testing.assert_array_equal(mask_NT.sum(1), [5, 5, 2])
  assert ids_NT[0].tolist() == [2, 4, 5, 7, 3, 0, 0, 0]
  x = np.stack([image_reward.preprocess(i, 16) for i in pictures(3)])
  run = lambda ids, mask: np.asarray(  # noqa: E731
    scorer._apply(scorer.params, x, ids, mask)
  )
  expected = run(ids_NT, mask_NT)
  other = np.where(mask_NT, ids_NT, 6).astype(np.int32)
  np.testing.assert_array_equal(run(other, mask_NT), expected)
  # What is kept does matter.
  other[:, 1] = 6
  assert np.ptp(run(other, mask_NT) - expected) > 1e-3


def test_the_head_is_its_linear_layers(params, scorer):
  x = np.stack([image_reward.preprocess(i, 16) for i in pictures(4)])
  ids, mask = scorer.tokens(PROMPTS)

  @jax.jit
  def first_state(params, x, ids, mask):
    image = BlipImage(CONFIG.image).apply({"params": params["image"]}, x)
    text = BlipText(CONFIG.text)
    return text.apply({"params": params["text"]}, ids, mask, image)[:, 0]

  y = np.asarray(first_state(params, x, ids, mask), np.float64)
  for number in HEAD_LAYERS:
    layer = params[f"head_{number}"]
    y = y @ layer["kernel"] + layer["bias"]
  expected = (y[:, 0] - 0.16717362830052426) / 1.0333394966054072
  found = scorer(pictures(4), PROMPTS)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_files(tmp_path, state, vocab, scorer):
  path = tmp_path / "ImageReward.safetensors"
  tensors = {k: np.ascontiguousarray(v) for k, v in state.items()}
  safetensors.numpy.save_file(tensors, path)
  loaded = load_image_reward(path, vocab, CONFIG)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, scorer.params)
  assert loaded.name.startswith("ImageReward, ") and len(loaded.name) == 29
  config = types.SimpleNamespace(imagereward="", imagereward_vocab="")
  ctx = types.SimpleNamespace(config=config)
  why = r"none given.*ImageReward\.pt of THUDM.*--config\.imagereward=FILE"
  with pytest.raises(ValueError, match=why):
    build_scorer("imagereward", ctx)
  config.imagereward = str(tmp_path / "absent.pt")
  with pytest.raises(ValueError, match=r"no file at .*absent\.pt"):
    build_scorer("imagereward", ctx)
  (tmp_path / "damaged.pt").write_bytes(b"PK")
  with pytest.raises(ValueError, match=r"damaged\.pt cannot be read"):
    load_image_reward(tmp_path / "damaged.pt", vocab, CONFIG)


_VISION = {
  "cls_token": "embeddings.class_embedding",
  "pos_embed": "embeddings.position_embedding",
  "patch_embed.proj": "embeddings.patch_embedding",
  "blocks.": "encoder.layers.",
  ".norm1": ".layer_norm1",
  ".norm2": ".layer_norm2",
  "attn.qkv": "self_attn.qkv",
  "attn.proj": "self_attn.projection",
}


def _towers(state):
  """transformers' names of the image tower and of the text encoder."""
  image, text = {}, {}
  for key, x in state.items():
    if key.startswith("blip.visual_encoder."):
      key = key.removeprefix("blip.visual_encoder.")
      for theirs, ours in _VISION.items():
        key = key.replace(theirs, ours)
      if key.startswith("norm."):
        key = f"post_layer{key}"
      image[key] = x
    elif key.startswith("blip.text_encoder."):
      text[key.removeprefix("blip.text_encoder.")] = x
  return image, text


def reference(torch, transformers, state, config, x, ids, mask):
  """The reward by transformers' BLIP and torch's linear layers."""
  i, t = config.image, config.text
  vision = transformers.BlipVisionConfig(
    image_size=i.image_size,
    patch_size=i.patch_size,
    hidden_size=i.width,
    intermediate_size=i.mlp_width,
    num_hidden_layers=i.layers,
    num_attention_heads=i.heads,
    hidden_act="gelu",
    layer_norm_eps=i.norm_eps,
  )
  words = transformers.BlipTextConfig(
    vocab_size=t.vocab_size,
    hidden_size=t.width,
    encoder_hidden_size=i.width,
    intermediate_size=t.mlp_width,
    num_hidden_layers=t.layers,
    num_attention_heads=t.heads,
    max_position_embeddings=t.max_positions,
    hidden_act="gelu",
    layer_norm_eps=t.norm_eps,
    is_decoder=True,  # which gives it the cross-attentions
  )
  towers = (
    transformers.BlipVisionModel(vision),
    transformers.models.blip.modeling_blip_text.BlipTextModel(
      words, add_pooling_layer=False
    ),
  )
  for tower, part in zip(towers, _towers(state)):
    part = {k: torch.from_numpy(np.array(v)) for k, v in part.items()}
    tower.eval().load_state_dict(part)
  with torch.no_grad():
    x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    image = towers[0](pixel_values=x).last_hidden_state
    y = towers[1](
      input_ids=torch.from_numpy(ids.astype(np.int64)),
      attention_mask=torch.from_numpy(mask.astype(np.int64)),
      encoder_hidden_states=image,
      encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
      is_decoder=False,
    ).last_hidden_state[:, 0]
    for number in HEAD_LAYERS:
      y = torch.nn.functional.linear(
        y,
        torch.from_numpy(np.array(state[f"mlp.layers.{number}.weight"])),
        torch.from_numpy(np.array(state[f"mlp.layers.{number}.bias"])),
      )
  return (y[:, 0].numpy() - MEAN) / STD


@pytest.mark.long
def test_parity_with_transformers(tmp_path, state, vocab):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  path = tmp_path / "ImageReward.pt"
  torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, path)
  scorer = load_image_reward(path, vocab, CONFIG)
  ids, mask = scorer.tokens(PROMPTS)
  images = pictures(4)
  x = np.stack([image_reward.preprocess(i, 16) for i in images])
  expected = reference(torch, transformers, state, CONFIG, x, ids, mask)
  found = scorer(images, PROMPTS)
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
