"""ImageReward (arXiv 2304.05977): how people would rate a picture of a prompt.

BLIP's first text state, with the picture looked at, goes through linear layers
without activations; the reward is that number in standard deviations from the
mean of the authors' data. Constants, sizes and names of the weights are those
of THUDM/ImageReward (ImageReward/ImageReward.py).

B: batch, N: pictures, H W: pixels, T: tokens, D: width of a text state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from PIL import Image

from star_jax.convert.pth import read_state_dict
from star_jax.convert.state_dict import ignore, linear, torch_to_jax
from star_jax.evaluation.blip import (
  BlipImage,
  BlipImageConfig,
  BlipText,
  BlipTextConfig,
  image_rules,
  text_rules,
)
from star_jax.evaluation.clip_score import preprocess
from star_jax.evaluation.networks import file_hash
from star_jax.tensor_file import read_tensors
from star_jax.text import minilm
from star_jax.text.prompts import PromptTokenizer, check_prompts

MEAN, STD = 0.16717362830052426, 1.0333394966054072
# Linear layers of the head, by their numbers in the file (dropout between).
HEAD_LAYERS = (0, 2, 4, 6, 7)
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The defaults are those of ImageReward-v1.0."""

  image: BlipImageConfig = dataclasses.field(default_factory=BlipImageConfig)
  text: BlipTextConfig = dataclasses.field(default_factory=BlipTextConfig)
  head_widths: tuple[int, ...] = (1024, 128, 64, 16, 1)
  max_tokens: int = 35  # T, start and end included


class RewardNetwork(nn.Module):
  """Picture and prompt to one number."""

  config: RewardConfig

  @nn.compact
  def __call__(
    self, x_BHW3: jax.Array, ids_BT: jax.Array, mask_BT: jax.Array
  ) -> jax.Array:
    """Args: float32 pictures from `preprocess`, int32 ids, bool mask.

    Returns:
      float32 [B], before mean and standard deviation.
    """
    c = self.config
    image_BSD = BlipImage(c.image, name="image")(x_BHW3)
    text_BTD = BlipText(c.text, name="text")(ids_BT, mask_BT, image_BSD)
    x_BD = text_BTD[:, 0]
    for number, width in zip(HEAD_LAYERS, c.head_widths, strict=True):
      x_BD = nn.Dense(
        width, precision=jax.lax.Precision.HIGHEST, name=f"head_{number}"
      )(x_BD)
    return x_BD[:, 0]


RULES = (
  *image_rules("blip.visual_encoder", "image"),
  *text_rules("blip.text_encoder", "text"),
  *linear("mlp.layers.{number}", "head_{number}"),
  ignore("blip.text_encoder.embeddings.position_ids"),
  # BLIP's projections for retrieval, which the reward does not pass through.
  ignore("blip.vision_proj.{kind}"),
  ignore("blip.text_proj.{kind}"),
)


def params_from_state(
  state: Mapping[str, np.ndarray], config: RewardConfig
) -> dict:
  """Our parameters from the names of ImageReward.pt.

  Raises:
    ValueError: another network; the sentence names the keys.
  """
  c = config
  image = jax.ShapeDtypeStruct(
    (1, c.image.image_size, c.image.image_size, 3), jnp.float32
  )
  ids = jax.ShapeDtypeStruct((1, c.max_tokens), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, c.max_tokens), jnp.bool_)
  init = RewardNetwork(c).init
  template = jax.eval_shape(init, jax.random.key(0), image, ids, mask)
  try:
    return torch_to_jax(state, RULES, template["params"])
  except ValueError as error:
    raise ValueError(
      f"These are not the weights of ImageReward: {error}"
    ) from error


def word_pieces(path: str | Path | None, config: RewardConfig):
  """BERT's tokenizer for lower-case English with ImageReward's window.

  Args:
    path: vocab.txt of bert-base-uncased; empty for that of the installed
      MiniLM, whose vocabulary is the same.

  Returns:
    A `PromptTokenizer`.

  Raises:
    ValueError: no file, or one that is not such a vocabulary.
  """
  path = Path(path) if path else minilm.package_folder() / "vocab.txt"
  if not path.is_file():
    raise ValueError(
      f"The word pieces of ImageReward are missing (no file at {path}): get"
      " vocab.txt of bert-base-uncased and say where it lies,"
      " --config.imagereward_vocab=FILE."
    )
  try:
    words = path.read_text("utf-8").splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not a list of word pieces.") from error
  special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
  missing = [word for word in special if word not in words]
  if missing or len(words) > config.text.vocab_size:
    raise ValueError(
      f"{path} is not the vocab.txt of bert-base-uncased: it has {len(words)}"
      f" lines (at most {config.text.vocab_size} are known) and lacks"
      f" {', '.join(missing) or 'nothing'}."
    )
  vocab = {word: i for i, word in enumerate(words)}
  out = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocab, unk_token="[UNK]")
  )
  out.add_special_tokens([*special, "[MASK]"])
  out.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  out.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  out.post_processor = tokenizers.processors.BertProcessing(
    ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"])
  )
  return PromptTokenizer(out, config.max_tokens)


class ImageReward:
  """A `best_of.Scorer`; about -2 to 2, higher is better."""

  def __init__(
    self,
    params,
    tokenizer: PromptTokenizer,
    config: RewardConfig,
    identity: str,
  ):
    """Args: `params` of RewardNetwork; `identity` of the weights."""
    self.config, self.tokenizer = config, tokenizer
    self.params = jax.device_put(params)
    network = RewardNetwork(config)
    self._apply = jax.jit(
      lambda params, *inputs: network.apply({"params": params}, *inputs)
    )
    self.name = f"ImageReward, {identity}"

  def tokens(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(int32 ids, bool mask), both [N, T]; a longer prompt is cut, with a
    warning."""
    rows = self.tokenizer(check_prompts(prompts))
    ids_NT = np.zeros((len(rows), self.config.max_tokens), np.int32)
    mask_NT = np.zeros(ids_NT.shape, bool)
    for i, row in enumerate(rows):
      ids_NT[i, : len(row)], mask_NT[i, : len(row)] = row, True
    return ids_NT, mask_NT

  def __call__(
    self, images: Sequence[Image.Image], prompts: Sequence[str]
  ) -> np.ndarray:
    """float64 [N]."""
    tokens = self.tokens(prompts)
    out = []
    for start in range(0, len(images), _BATCH):
      rows = slice(start, start + _BATCH)
      side = self.config.image.image_size
      x = np.stack([preprocess(image, side) for image in images[rows]])
      inputs = [_filled(a) for a in (x, *(a[rows] for a in tokens))]
      score = np.asarray(self._apply(self.params, *inputs), np.float64)
      out.append(score[: len(x)])
    return (np.concatenate(out) - MEAN) / STD


def _filled(x: np.ndarray) -> np.ndarray:
  """A whole batch: the last row again where none is left."""
  return np.concatenate([x, np.repeat(x[-1:], _BATCH - len(x), 0)])


def load_image_reward(
  path: str | Path,
  vocab: str | Path = "",
  config: RewardConfig | None = None,
) -> ImageReward:
  """From ImageReward.pt, or the same tensors as safetensors.

  Args:
    path: of the weights.
    vocab: see `word_pieces`.
    config: of another network than ImageReward-v1.0.

  Raises:
    ValueError: something is missing, damaged or of another network.
  """
  config = config or RewardConfig()
  if not path or not Path(path).is_file():
    given = f"no file at {path}" if path else "none given"
    raise ValueError(
      f"The weights of ImageReward are missing ({given}): get ImageReward.pt"
      " of THUDM/ImageReward at Hugging Face and say where it lies,"
      " --config.imagereward=FILE."
    )
  path = Path(path)
  tokenizer = word_pieces(vocab, config)
  safe = path.suffix == ".safetensors"
  state = read_tensors(path) if safe else read_state_dict(path)
  params = params_from_state(state, config)
  return ImageReward(params, tokenizer, config, file_hash(path))
