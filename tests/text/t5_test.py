"""T5's encoder: against numpy, against transformers, and STAR's pooling."""

import warnings
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from star_jax.convert.state_dict import Converted, jax_to_torch
from star_jax.text import hf_folder, t5
from star_jax.text.encoder import TextEncoder, load_text_encoder
from tests.text import folders
from tests.text.folders import T5_SMALL

WINDOW = 14
PROMPTS = ["a red cat", "", "a red cats " * 9, "cat"]
FLAN_XL = {
  **T5_SMALL,
  "vocab_size": 32128,
  "d_model": 2048,
  "d_kv": 64,
  "d_ff": 5120,
  "num_layers": 24,
  "num_heads": 32,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
}


def read_config(entries=None):
  return t5.read_config(entries or T5_SMALL, Path("config.json"))


def params_of(state):
  template = hf_folder.parameter_template(t5.T5(read_config()))
  return Converted(state, t5.RULES, template).tree()


def small_state():
  return folders.random_state(folders.t5_shapes(T5_SMALL))


def prompt_ids(lengths, total=WINDOW, seed=0):
  """Ids [B, T] that end in 1 and are padded with 0, and the mask."""
  rng = np.random.default_rng(seed)
  ids_BT = np.zeros((len(lengths), total), np.int32)
  for row, n in zip(ids_BT, lengths):
    row[:n] = [*rng.integers(2, T5_SMALL["vocab_size"], n - 1), 1]
  return ids_BT, np.arange(total)[None] < np.asarray(lengths)[:, None]


@pytest.fixture
def folder(tmp_path):
  pytest.importorskip("transformers", reason="token ids of T5 need it")
  return folders.write_t5(tmp_path / "t5")


# --- the network, without transformers ---


def test_position_buckets_of_the_published_sizes():
  """32 buckets up to 128: where each begins, from the formula by hand."""
  bucket_TT = t5.position_buckets(300, 32, 128)
  begins = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
  expected = np.searchsorted(begins, np.arange(300), side="right") - 1
  np.testing.assert_array_equal(bucket_TT[:, 0], expected)  # keys behind
  np.testing.assert_array_equal(bucket_TT[0, 1:], expected[1:] + 16)  # ahead
  np.testing.assert_array_equal(bucket_TT[5, 3:8], [2, 1, 0, 17, 18])


def numpy_states(w, c, ids_T, mask_T):
  """float64 [T, D] of one prompt, straight from the official names."""
  w = {key: x.astype(float) for key, x in w.items()}

  def norm(x, name):
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.layer_norm_epsilon)
    return x * w[f"{name}.weight"]

  def split(x):
    return x.reshape(len(ids_T), c.num_heads, -1).transpose(1, 0, 2)

  bucket_TT = t5.position_buckets(
    len(ids_T),
    c.relative_attention_num_buckets,
    c.relative_attention_max_distance,
  )
  name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  bias = w[name][bucket_TT].transpose(2, 0, 1)
  x = w["shared.weight"][ids_T]
  for i in range(c.num_layers):
    name = f"encoder.block.{i}.layer.0"
    h = norm(x, f"{name}.layer_norm")
    q, k, v = (
      split(h @ w[f"{name}.SelfAttention.{p}.weight"].T) for p in "qkv"
    )
    logits = np.where(mask_T, q @ k.transpose(0, 2, 1) + bias, -np.inf)
    attn = np.exp(logits - logits.max(-1, keepdims=True))
    attn = attn / attn.sum(-1, keepdims=True)
    mixed = (attn @ v).transpose(1, 0, 2).reshape(len(ids_T), -1)
    x = x + mixed @ w[f"{name}.SelfAttention.o.weight"].T
    name = f"encoder.block.{i}.layer.1"
    h = norm(x, f"{name}.layer_norm")
    gate, value, out = (
      w[f"{name}.DenseReluDense.{p}.weight"].T for p in ("wi_0", "wi_1", "wo")
    )
    a = h @ gate
    a = a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))) / 2
    x = x + (a * (h @ value)) @ out
  return norm(x, "encoder.final_layer_norm")


def test_states_equal_a_float64_reference():
  config, state = read_config(), small_state()
  lengths = [5, WINDOW, 1]
  ids_BT, mask_BT = prompt_ids(lengths)
  text_BTD, pooled_BD = t5.forward(
    t5.T5(config), params_of(state), ids_BT, mask_BT
  )
  for b in range(len(lengths)):
    wanted = numpy_states(state, config, ids_BT[b], mask_BT[b])
    np.testing.assert_allclose(text_BTD[b], wanted, atol=1e-5)
    np.testing.assert_allclose(pooled_BD[b], wanted.mean(0), atol=1e-5)


def test_padding_is_pooled_but_never_attended_to():
  config, params = read_config(), params_of(small_state())
  ids_BT, mask_BT = prompt_ids([5, 5])
  ids_BT[1] = ids_BT[0]
  ids_BT[1, 5:] = 7
  text_BTD, pooled_BD = t5.forward(t5.T5(config), params, ids_BT, mask_BT)
  np.testing.assert_array_equal(text_BTD[0, :5], text_BTD[1, :5])
  assert np.abs(pooled_BD[0] - pooled_BD[1]).max() > 1e-2
  kept_D = text_BTD[0, :5].mean(0)
  assert np.abs(pooled_BD[0] - kept_D).max() > 1e-2


def test_every_product_states_highest_precision():
  """Read from the program lowered for TPU, where the default is bfloat16."""
  ids_BT, mask_BT = prompt_ids([5])
  with jax.default_matmul_precision("bfloat16"):
    text = (
      jax.jit(lambda *xs: t5.forward(t5.T5(read_config()), *xs))
      .trace(params_of(small_state()), ids_BT, mask_BT)
      .lower(lowering_platforms=("tpu",))
      .as_text()
    )
  products = [line for line in text.splitlines() if "dot_general" in line]
  # query, key, value, two of attention, its output, three of the MLP.
  assert len(products) >= 9
  assert all(line.count("HIGHEST") == 2 for line in products), products


def test_the_published_encoder_matches_key_by_key():
  template = hf_folder.parameter_template(t5.T5(read_config(FLAN_XL)))
  shapes = folders.t5_shapes(FLAN_XL)
  # Raises on a key or shape without a partner, in either direction.
  converted = Converted(folders.views(shapes), t5.RULES, template)
  assert len(converted) == len(jax.tree.leaves(template))
  count = sum(np.prod(shape) for shape in converted.shapes.values())
  assert round(count / 1e6, 2) == 1223.53


def test_parameters_go_back_to_the_official_names_bitwise():
  state = small_state()
  back = jax_to_torch(params_of(state), t5.RULES)
  chex.assert_trees_all_equal(back, state)


def test_the_decoder_is_left_out_and_the_words_are_read_once():
  state = small_state()
  words = {"encoder.embed_tokens.weight": state["shared.weight"]}
  whole = state | words | {"decoder.x": 1, "lm_head.weight": 2}
  assert t5.encoder_tower(whole) == state
  # An encoder saved alone may have the words under its own name.
  alone = {k: x for k, x in state.items() if k != "shared.weight"} | words
  bare = {t5.FAMILY.bare(k): x for k, x in t5.encoder_tower(alone).items()}
  chex.assert_trees_all_equal(params_of(bare), params_of(state))


# --- the encoder ---


def test_token_ids_are_those_of_the_vocabulary(folder):
  tokens = hf_folder.TextFolder(folder, t5.FAMILY).tokens()
  assert (tokens.pad_id, tokens.end_id) == (0, 1)
  assert tokens.tokenizer.encode("a  red cats ").ids == [6, 4, 5, 7, 1]
  assert tokens.tokenizer.encode("").ids == [1]
  assert tokens.tokenizer.encode("z").ids == [3, 2, 1]


def test_outputs_and_batches(folder):
  encoder = load_text_encoder("t5", WINDOW, folder)
  assert isinstance(encoder, TextEncoder)
  assert (encoder.name, encoder.width, encoder.max_tokens) == ("t5", 12, WINDOW)
  with pytest.warns(UserWarning, match=f"text window of {WINDOW} tokens"):
    states = encoder.encode([*PROMPTS, *["cat a"] * 20])
  chex.assert_shape(states.text_BTD, (24, WINDOW, 12))
  assert not states.text_BTD[~states.text_mask_BT].any()
  assert list(states.text_mask_BT.sum(1)[:4]) == [4, 1, WINDOW, 2]
  chex.assert_trees_all_equal(encoder.encode(["cat"]), states[3:4])
  chex.assert_trees_all_equal(encoder.null(), states[1:2])


def test_the_pooled_vector_is_of_the_whole_window(folder):
  """120 positions for every prompt, however short: STAR's average."""
  encoder = load_text_encoder("t5", path=folder)
  assert encoder.max_tokens == 120
  states = encoder.encode(["a red cat"])
  state, config = small_state(), read_config()
  ids_T = np.asarray([6, 4, 5, 1] + [0] * 116)
  wanted_TD = numpy_states(state, config, ids_T, np.arange(120) < 4)
  np.testing.assert_allclose(states.pooled_BD[0], wanted_TD.mean(0), atol=1e-5)
  np.testing.assert_allclose(states.text_BTD[0, :4], wanted_TD[:4], atol=1e-5)
  shorter = load_text_encoder("t5", WINDOW, folder).encode(["a red cat"])
  assert np.abs(shorter.pooled_BD - states.pooled_BD).max() > 1e-2


@pytest.mark.parametrize("window", [-1, 0, 1])
def test_impossible_windows_are_refused(folder, window):
  with pytest.raises(ValueError, match=f"got.* {window}"):
    load_text_encoder("t5", window, folder)


# --- parity with transformers' torch model ---


@pytest.fixture
def torch():
  pytest.importorskip("transformers", reason="parity needs transformers")
  return pytest.importorskip(
    "torch", reason="parity with transformers' T5EncoderModel needs torch"
  )


def torch_model(torch, kind="T5EncoderModel"):
  import transformers

  torch.manual_seed(0)
  config = transformers.T5Config(**T5_SMALL, initializer_factor=1.5)
  model = getattr(transformers, kind)(config).eval()
  for name, x in model.named_parameters():
    if "norm" in name or "bias" in name:
      torch.nn.init.normal_(x, float("norm" in name), 0.5)
  return model


def test_parity_with_transformers(torch):
  """States at padding positions too, since they are pooled."""
  model = torch_model(torch)
  ids_BT, mask_BT = prompt_ids([5, 1, WINDOW, 9])
  with torch.no_grad():
    wanted = model(
      input_ids=torch.tensor(ids_BT, dtype=torch.long),
      attention_mask=torch.tensor(mask_BT, dtype=torch.long),
    ).last_hidden_state.numpy()
  state = {key: x.numpy() for key, x in model.state_dict().items()}
  text_BTD, pooled_BD = t5.forward(
    t5.T5(read_config()), params_of(t5.encoder_tower(state)), ids_BT, mask_BT
  )
  np.testing.assert_allclose(text_BTD, wanted, atol=1e-5)
  np.testing.assert_allclose(pooled_BD, wanted.mean(1), atol=1e-5)


@pytest.mark.parametrize(
  ("buckets", "farthest"), [(32, 128), (8, 10), (16, 99)]
)
def test_position_buckets_are_those_of_transformers(torch, buckets, farthest):
  from transformers.models.t5.modeling_t5 import T5Attention

  ahead = torch.arange(400)[None] - torch.arange(400)[:, None]
  wanted = T5Attention._relative_position_bucket(ahead, True, buckets, farthest)
  np.testing.assert_array_equal(
    t5.position_buckets(400, buckets, farthest), wanted
  )


def test_prompts_give_what_stars_text_model_gives(torch, tmp_path):
  """A whole T5 saved by transformers; the average pool of STAR's embedder."""
  import transformers

  whole = torch_model(torch, "T5ForConditionalGeneration")
  whole.save_pretrained(tmp_path)
  folders.write_t5_tokenizer(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  inputs = tokenizer(
    PROMPTS,
    padding="max_length",
    max_length=WINDOW,
    truncation=True,
    return_tensors="pt",
  )
  with torch.no_grad():
    wanted = whole.encoder(
      input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
    ).last_hidden_state
    pooled = torch.nn.AvgPool1d(WINDOW)(wanted.permute(0, 2, 1)).squeeze(-1)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    states = load_text_encoder("t5", WINDOW, tmp_path).encode(PROMPTS)
  mask_BT = inputs.attention_mask.numpy().astype(bool)
  np.testing.assert_array_equal(states.text_mask_BT, mask_BT)
  np.testing.assert_allclose(
    states.text_BTD[mask_BT], wanted.numpy()[mask_BT], atol=1e-5
  )
  np.testing.assert_allclose(states.pooled_BD, pooled, atol=1e-5)
