"""CLIP's text tower: against numpy, against transformers, and STAR's rules."""

import json
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from star_jax.convert.state_dict import Converted, jax_to_torch
from star_jax.text import clip, hf_folder
from star_jax.text.encoder import TextEncoder, load_text_encoder
from tests.text import folders
from tests.text.folders import CLIP_SMALL, END, START

WINDOW = 12
PROMPTS = ["a red cat", "", "A  RED cat! " * 5, "cat"]
VIT_H = {
  **CLIP_SMALL,
  "vocab_size": 49408,
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_hidden_layers": 23,
  "num_attention_heads": 16,
  "max_position_embeddings": 77,
}
CLIP_L = {
  **VIT_H,
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "hidden_act": "quick_gelu",
}


def read_config(**entries):
  return clip.read_config(CLIP_SMALL | entries, Path("config.json"))


def params_of(state, config):
  template = hf_folder.parameter_template(clip.Clip(config))
  bare = {clip.FAMILY.bare(key): x for key, x in state.items()}
  return Converted(bare, clip.RULES, template).tree()


def small_params(config):
  shapes = folders.clip_shapes(vars(config))
  return params_of(folders.random_state(shapes), config)


def prompt_ids(lengths, pad, total=WINDOW, seed=0):
  """Ids [B, T] with start and end token, and the mask."""
  rng = np.random.default_rng(seed)
  ids_BT = np.full((len(lengths), total), pad, np.int32)
  for row, n in zip(ids_BT, lengths):
    row[:n] = [START, *rng.integers(1, START, n - 2), END]
  return ids_BT, np.arange(total)[None] < np.asarray(lengths)[:, None]


@pytest.fixture
def needs_transformers():
  return pytest.importorskip(
    "transformers", reason="token ids of CLIP need transformers"
  )


@pytest.fixture
def folder(tmp_path, needs_transformers):
  return folders.write_clip(tmp_path / "clip")


# --- the network, without transformers ---


def numpy_states(state, config, ids_T, mask_T):
  """float64 [T, D] of one prompt, straight from the official names."""
  w = {k.removeprefix("text_model."): x.astype(float) for k, x in state.items()}
  heads, total = config.num_attention_heads, len(ids_T)

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_eps)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  def split(x):
    return x.reshape(total, heads, -1).transpose(1, 0, 2)

  x = w["embeddings.token_embedding.weight"][ids_T]
  x = x + w["embeddings.position_embedding.weight"][:total]
  allowed = np.tril(np.ones((total, total), bool)) & mask_T[None]
  for i in range(config.num_hidden_layers):
    name = f"encoder.layers.{i}"
    h = norm(x, f"{name}.layer_norm1")
    q, k, v = (split(linear(h, f"{name}.self_attn.{p}_proj")) for p in "qkv")
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    attn = np.exp(np.where(allowed, logits, -np.inf))
    attn = attn / attn.sum(-1, keepdims=True)
    mixed = (attn @ v).transpose(1, 0, 2).reshape(total, -1)
    x = x + linear(mixed, f"{name}.self_attn.out_proj")
    h = linear(norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
    if config.hidden_act == "gelu":
      h = h * (1 + erf(h / np.sqrt(2))) / 2
    else:
      h = h / (1 + np.exp(-1.702 * h))
    x = x + linear(h, f"{name}.mlp.fc2")
  return norm(x, "final_layer_norm")


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_states_equal_a_float64_reference(act):
  config = read_config(hidden_act=act)
  state = folders.random_state(folders.clip_shapes(CLIP_SMALL))
  ids_BT, mask_BT = prompt_ids([5, WINDOW, 2], pad=0)
  text_BTD, pooled_BD = clip.forward(
    clip.Clip(config), params_of(state, config), ids_BT, mask_BT
  )
  for b, length in enumerate([5, WINDOW, 2]):
    wanted = numpy_states(state, config, ids_BT[b], mask_BT[b])
    np.testing.assert_allclose(text_BTD[b], wanted, atol=1e-5)
    np.testing.assert_allclose(pooled_BD[b], wanted[length - 1], atol=1e-5)


@pytest.mark.parametrize("eos_token_id", [2, END])
@pytest.mark.parametrize("pad", [0, END])
def test_the_pooled_state_is_that_of_the_first_end_token(eos_token_id, pad):
  """ "!" pads in Stable Diffusion 2.1, the end token itself in CLIP-L."""
  ids_BT, _ = prompt_ids([5, 2, WINDOW], pad)
  text_BTD = np.random.default_rng(0).normal(size=(3, WINDOW, 4))
  pooled_BD = clip.end_pool(jnp.asarray(text_BTD), ids_BT, eos_token_id)
  wanted = text_BTD[np.arange(3), [4, 1, WINDOW - 1]]
  np.testing.assert_array_equal(pooled_BD, wanted.astype(np.float32))


def test_the_old_rule_takes_the_largest_id_not_the_number_two():
  ids_BT = np.asarray([[START, 2, 5, END, 0]])
  text_BTD = jnp.arange(5.0)[None, :, None]
  assert clip.end_pool(text_BTD, ids_BT, 2) == 3
  assert clip.end_pool(text_BTD, ids_BT, 5) == 2


def test_shorter_buckets_and_other_padding_give_the_same_states():
  config = read_config()
  model, params = clip.Clip(config), small_params(config)
  lengths = [5, 8, 2]
  ids_BT, mask_BT = prompt_ids(lengths, pad=0)
  text_BTD, pooled_BD = clip.forward(model, params, ids_BT, mask_BT)
  short_BTD, short_BD = clip.forward(
    model, params, ids_BT[:, :8], mask_BT[:, :8]
  )
  other_BTD, other_BD = clip.forward(
    model, params, np.where(mask_BT, ids_BT, END), mask_BT
  )
  for b, n in enumerate(lengths):
    np.testing.assert_allclose(short_BTD[b, :n], text_BTD[b, :n], atol=2e-6)
    np.testing.assert_array_equal(other_BTD[b, :n], text_BTD[b, :n])
  np.testing.assert_allclose(short_BD, pooled_BD, atol=2e-6)
  np.testing.assert_array_equal(other_BD, pooled_BD)


def test_a_token_sees_what_is_before_it_alone():
  config = read_config()
  model, params = clip.Clip(config), small_params(config)
  ids_BT, mask_BT = prompt_ids([10], pad=0)
  changed_BT = ids_BT.copy()
  changed_BT[0, 6] = 1 + changed_BT[0, 6] % 20
  a, b = (
    model.apply({"params": params}, x, mask_BT)[0] for x in (ids_BT, changed_BT)
  )
  np.testing.assert_array_equal(a[:6], b[:6])
  assert (np.abs(a - b).max(-1)[6:10] > 1e-3).all()


def test_every_product_states_highest_precision():
  """Read from the program lowered for TPU, where the default is bfloat16."""
  config = read_config()
  ids_BT, mask_BT = prompt_ids([5], pad=0)
  with jax.default_matmul_precision("bfloat16"):
    text = (
      jax.jit(lambda *xs: clip.forward(clip.Clip(config), *xs))
      .trace(small_params(config), ids_BT, mask_BT)
      .lower(lowering_platforms=("tpu",))
      .as_text()
    )
  products = [line for line in text.splitlines() if "dot_general" in line]
  # query, key, value, two of attention, its output, two of the MLP.
  assert len(products) >= 8
  assert all(line.count("HIGHEST") == 2 for line in products), products


@pytest.mark.parametrize(
  ("entries", "millions"), [(VIT_H, 340.39), (CLIP_L, 123.06)]
)
def test_published_towers_match_key_by_key(entries, millions):
  config = clip.read_config(entries, Path("config.json"))
  template = hf_folder.parameter_template(clip.Clip(config))
  shapes = folders.clip_shapes(entries, prefix="")
  # Raises on a key or shape without a partner, in either direction.
  converted = Converted(folders.views(shapes), clip.RULES, template)
  assert len(converted) == len(jax.tree.leaves(template))
  count = sum(np.prod(shape) for shape in converted.shapes.values())
  assert round(count / 1e6, 2) == millions


def test_parameters_go_back_to_the_official_names_bitwise():
  state = folders.random_state(folders.clip_shapes(CLIP_SMALL, prefix=""))
  back = jax_to_torch(params_of(state, read_config()), clip.RULES)
  chex.assert_trees_all_equal(back, state)


# --- the encoder ---


def test_token_ids_are_those_of_the_vocabulary(folder):
  """Made by hand: letters, "red" and "cat" by merges, "!" as padding token."""
  tokens = hf_folder.TextFolder(folder, clip.FAMILY).tokens()
  assert (tokens.pad_id, tokens.end_id) == (0, END)
  words = ["a</w>", "red</w>", "!", "ca", "e</w>"]
  vocab = json.loads((folder / "vocab.json").read_text())
  wanted = [START, *(vocab[word] for word in words), END]
  assert tokens.tokenizer.encode(" A  réd! cae".replace("é", "e")).ids == wanted
  assert tokens.tokenizer.encode("").ids == [START, END]


@pytest.mark.parametrize("pad", folders.PADS)
def test_masks_and_ids_are_those_of_transformers(
  tmp_path, needs_transformers, pad
):
  """With padding to the window, as STAR tokenises."""
  folder = folders.write_clip(tmp_path, folders.PADS[pad])
  reference = needs_transformers.CLIPTokenizerFast.from_pretrained(
    str(folder), local_files_only=True
  )
  wanted = reference(
    PROMPTS, padding="max_length", truncation=True, max_length=WINDOW
  )
  seen = []
  encoder = load_text_encoder("clip", WINDOW, folder)
  encoder.forward = lambda params, ids, mask: (
    seen.append(ids.copy()),
    (
      np.zeros((*ids.shape, encoder.width), np.float32),
      np.zeros((len(ids), encoder.width), np.float32),
    ),
  )[1]
  with pytest.warns(UserWarning, match="exceed the text window of 12 tokens"):
    states = encoder.encode(PROMPTS)
  np.testing.assert_array_equal(
    states.text_mask_BT, np.asarray(wanted["attention_mask"], bool)
  )
  np.testing.assert_array_equal(seen[0][: len(PROMPTS)], wanted["input_ids"])


def test_outputs_and_batches(folder):
  encoder = load_text_encoder("clip", WINDOW, folder)
  assert isinstance(encoder, TextEncoder)
  assert (encoder.name, encoder.width, encoder.max_tokens) == ("clip", 12, 12)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    states = encoder.encode([*PROMPTS, *["cat a"] * 20])
  chex.assert_shape(states.text_BTD, (24, WINDOW, 12))
  assert states.text_BTD.dtype == states.pooled_BD.dtype == np.float32
  assert not states.text_BTD[~states.text_mask_BT].any()
  assert list(states.text_mask_BT.sum(1)[:4]) == [5, 2, WINDOW, 3]
  alone = encoder.encode(["cat"])
  chex.assert_trees_all_equal(alone, states[3:4])
  # Guidance and dropped prompts: the empty prompt.
  chex.assert_trees_all_equal(encoder.null(), states[1:2])
  # The pooled vector is one of the states: the end token's (a program may
  # compute that state twice, and round it twice).
  for row, place in ((0, 4), (2, WINDOW - 1)):
    apart_T = np.abs(states.text_BTD[row] - states.pooled_BD[row]).max(-1)
    assert apart_T.argmin() == place and apart_T[place] < 1e-6


def test_an_exclamation_mark_is_a_word_and_not_padding(folder):
  """Stable Diffusion 2.1 pads with the id that "!" has."""
  states = load_text_encoder("clip", WINDOW, folder).encode(["a!", "a"])
  assert list(states.text_mask_BT.sum(1)) == [4, 3]
  assert np.abs(states.pooled_BD[0] - states.pooled_BD[1]).max() > 1e-2


def test_the_usual_window_is_77_tokens(tmp_path, needs_transformers):
  folder = folders.write_clip(tmp_path, max_position_embeddings=77)
  assert load_text_encoder("clip", path=folder).max_tokens == 77


@pytest.mark.parametrize("window", [-1, 0, 2, 25])
def test_impossible_windows_are_refused(folder, window):
  with pytest.raises(ValueError, match=f"got.* {window}"):
    load_text_encoder("clip", window, folder)


# --- parity with transformers' torch model ---


@pytest.fixture
def torch():
  pytest.importorskip("transformers", reason="parity needs transformers")
  return pytest.importorskip(
    "torch", reason="parity with transformers' CLIPTextModel needs torch"
  )


def torch_model(torch, **entries):
  import transformers

  torch.manual_seed(0)
  config = transformers.CLIPTextConfig(
    **{**CLIP_SMALL, "initializer_factor": 8.0, **entries}
  )
  model = transformers.CLIPTextModel(config).eval()
  for name, x in model.named_parameters():
    if "norm" in name or "bias" in name:
      torch.nn.init.normal_(x, float("norm.w" in name), 0.3)
  return model


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("eos_token_id", [2, END])
@pytest.mark.parametrize("pad", [0, END])
def test_parity_with_transformers(torch, act, eos_token_id, pad):
  """States at padding positions too: those of the whole window agree."""
  model = torch_model(torch, hidden_act=act, eos_token_id=eos_token_id)
  ids_BT, mask_BT = prompt_ids([5, 2, WINDOW, 9], pad)
  with torch.no_grad():
    wanted = model(
      input_ids=torch.tensor(ids_BT, dtype=torch.long),
      attention_mask=torch.tensor(mask_BT, dtype=torch.long),
    )
  config = read_config(hidden_act=act, eos_token_id=eos_token_id)
  state = {key: x.numpy() for key, x in model.state_dict().items()}
  text_BTD, pooled_BD = clip.forward(
    clip.Clip(config), params_of(state, config), ids_BT, mask_BT
  )
  np.testing.assert_allclose(text_BTD, wanted.last_hidden_state, atol=1e-5)
  np.testing.assert_allclose(pooled_BD, wanted.pooler_output, atol=1e-5)


@pytest.mark.parametrize("pad", folders.PADS)
def test_prompts_give_what_stars_text_model_gives(torch, tmp_path, pad):
  """Its calls: padded to the window, the mask passed into the model."""
  import transformers

  model = torch_model(torch)
  model.save_pretrained(tmp_path)
  folders.write_clip_tokenizer(tmp_path, folders.PADS[pad])
  tokenizer = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
  inputs = tokenizer(
    PROMPTS,
    padding="max_length",
    max_length=WINDOW,
    truncation=True,
    return_tensors="pt",
  )
  with torch.no_grad():
    wanted = model(**inputs)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    states = load_text_encoder("clip", WINDOW, tmp_path).encode(PROMPTS)
  mask_BT = inputs.attention_mask.numpy().astype(bool)
  np.testing.assert_array_equal(states.text_mask_BT, mask_BT)
  np.testing.assert_allclose(
    states.text_BTD[mask_BT],
    wanted.last_hidden_state.numpy()[mask_BT],
    atol=1e-5,
  )
  np.testing.assert_allclose(states.pooled_BD, wanted.pooler_output, atol=1e-5)
