"""Tiny text encoder folders of Hugging Face's layout, and official key lists.

The lists are written out from the published checkpoints, not from the rules
that read them.
"""

import json

import numpy as np
import safetensors.numpy
import tokenizers

PADS = {"exclamation": "!", "end": "<|endoftext|>"}
CLIP_SMALL = {
  "model_type": "clip_text_model",
  "vocab_size": 30,
  "hidden_size": 12,
  "intermediate_size": 20,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "max_position_embeddings": 24,
  "hidden_act": "gelu",
  "eos_token_id": 2,
}
T5_SMALL = {
  "model_type": "t5",
  "vocab_size": 20,
  "d_model": 12,
  "d_kv": 5,
  "d_ff": 14,
  "num_layers": 2,
  "num_heads": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 10,
  "feed_forward_proj": "gated-gelu",
}
START, END = 28, 29  # of the tiny CLIP vocabulary
# "red</w>" and "cat</w>" are made by merges; other words fall into letters.
_LETTERS = "acdert"
_MERGES = ["r e", "re d</w>", "c a", "ca t</w>"]


def clip_shapes(config, prefix="text_model."):
  """Official keys and shapes of a CLIP text tower."""
  width, wide = config["hidden_size"], config["intermediate_size"]
  shapes = {
    "embeddings.token_embedding.weight": (config["vocab_size"], width),
    "embeddings.position_embedding.weight": (
      config["max_position_embeddings"],
      width,
    ),
    "final_layer_norm.weight": (width,),
    "final_layer_norm.bias": (width,),
  }
  for i in range(config["num_hidden_layers"]):
    layer = f"encoder.layers.{i}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      shapes[f"{layer}.self_attn.{name}.weight"] = (width, width)
      shapes[f"{layer}.self_attn.{name}.bias"] = (width,)
    for name in ("layer_norm1", "layer_norm2"):
      shapes[f"{layer}.{name}.weight"] = (width,)
      shapes[f"{layer}.{name}.bias"] = (width,)
    shapes[f"{layer}.mlp.fc1.weight"] = (wide, width)
    shapes[f"{layer}.mlp.fc1.bias"] = (wide,)
    shapes[f"{layer}.mlp.fc2.weight"] = (width, wide)
    shapes[f"{layer}.mlp.fc2.bias"] = (width,)
  return {prefix + key: shape for key, shape in shapes.items()}


def t5_shapes(config):
  """Official keys and shapes of the encoder of T5 1.1."""
  width, wide = config["d_model"], config["d_ff"]
  heads = config["num_heads"]
  inner = heads * config["d_kv"]
  shapes = {
    "shared.weight": (config["vocab_size"], width),
    "encoder.final_layer_norm.weight": (width,),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
      config["relative_attention_num_buckets"],
      heads,
    ),
  }
  for i in range(config["num_layers"]):
    attention, feed = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
    for name in "qkv":
      shapes[f"{attention}.SelfAttention.{name}.weight"] = (inner, width)
    shapes[f"{attention}.SelfAttention.o.weight"] = (width, inner)
    shapes[f"{attention}.layer_norm.weight"] = (width,)
    for name in ("wi_0", "wi_1"):
      shapes[f"{feed}.DenseReluDense.{name}.weight"] = (wide, width)
    shapes[f"{feed}.DenseReluDense.wo.weight"] = (width, wide)
    shapes[f"{feed}.layer_norm.weight"] = (width,)
  return shapes


def random_state(shapes, seed=0):
  """Float32 noise, none of it zero, norms near one."""
  rng = np.random.default_rng(seed)
  return {
    key: np.asarray(
      rng.normal(size=shape) * 0.4 + ("norm" in key and "bias" not in key),
      np.float32,
    )
    for key, shape in shapes.items()
  }


def views(shapes):
  """Arrays of these shapes that take no memory."""
  return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}


def write_weights(folder, config, state):
  """config.json and model.safetensors."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(state, folder / "model.safetensors")


def write_clip_tokenizer(folder, pad="!"):
  """Vocabulary, merges and settings as Stable Diffusion 2.1 has them."""
  folder.mkdir(parents=True, exist_ok=True)
  tokens = ["!", "!</w>", *_LETTERS, *(f"{x}</w>" for x in _LETTERS)]
  tokens += [merge.replace(" ", "") for merge in _MERGES]
  tokens += [f"<unused{i}>" for i in range(START - len(tokens))]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  vocab = {token: i for i, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocab))
  (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES]))
  settings = {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": pad,
    "model_max_length": 77,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_t5_tokenizer(folder):
  """tokenizer.json of a Unigram vocabulary; <pad> 0, </s> 1, <unk> 2."""
  folder.mkdir(parents=True, exist_ok=True)
  words = ["▁", "▁red", "▁cat", "▁a", "s", "r", "e", "d"]
  vocab = [(special, 0.0) for special in ("<pad>", "</s>", "<unk>")]
  vocab += [(word, -1.0 - i / 10) for i, word in enumerate(words)]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.Unigram(vocab, unk_id=2, byte_fallback=False)
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.WhitespaceSplit(),
      tokenizers.pre_tokenizers.Metaspace("▁", "always"),
    ]
  )
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  settings = {
    "tokenizer_class": "T5Tokenizer",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "extra_ids": 0,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_clip(folder, pad="!", **config):
  """A flat CLIP folder with random weights."""
  config = CLIP_SMALL | config
  write_weights(folder, config, random_state(clip_shapes(config)))
  write_clip_tokenizer(folder, pad)
  return folder


def write_t5(folder, **config):
  """A flat T5 folder with random weights."""
  config = T5_SMALL | config
  write_weights(folder, config, random_state(t5_shapes(config)))
  write_t5_tokenizer(folder)
  return folder
