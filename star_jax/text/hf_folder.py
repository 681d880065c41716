"""A text encoder in a local folder of Hugging Face's layout.

Read are a flat folder (config.json, weights and tokenizer files side by side)
and a diffusers pipeline (those of the model in text_encoder/, those of the
tokenizer in tokenizer/). Nothing is downloaded and nothing in a file is
executed; weights are mapped into memory. Token ids come from the tokenizer
classes of `transformers`, which need no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from star_jax.convert.pth import read_state_dict
from star_jax.convert.state_dict import Converted, Rule
from star_jax.tensor_file import read_tensors

CONFIG = "config.json"
# The first that is there is read; an index names the files of the parts.
WEIGHTS = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)
# Whatever `transformers` may look at to build a tokenizer.
TOKENIZER_FILES = (
  "added_tokens.json",
  "merges.txt",
  "special_tokens_map.json",
  "spiece.model",
  "tokenizer.json",
  "tokenizer_config.json",
  "vocab.json",
)
_PIPELINE_MODEL, _PIPELINE_TOKENIZER = "text_encoder", "tokenizer"

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Family:
  """One kind of text encoder and how its folder is to be read.

  Attributes:
    name: of `encoder.load_text_encoder`.
    max_tokens: the usual window.
    version: raised when the same weights give other states.
    model_types: what config.json may call it.
    tokenizer_class: of `transformers`.
    tokenizer_files: sets of files, one of which a tokenizer needs.
    config: entries of config.json and its path -> our configuration.
    tower: state dict -> the tensors of this encoder alone.
    bare: official key -> key as the rules spell it.
    rules: official keys and our parameters.
    network: our module of a configuration; takes ids and mask [B, T].
  """

  name: str
  max_tokens: int
  version: int
  model_types: tuple[str, ...]
  tokenizer_class: str
  tokenizer_files: tuple[tuple[str, ...], ...]
  config: Callable[[Mapping[str, Any], Path], Any]
  tower: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
  bare: Callable[[str], str]
  rules: tuple[Rule, ...]
  network: Callable[[Any], nn.Module]


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A tokenizer and the ids of its padding and end tokens."""

  tokenizer: tokenizers.Tokenizer
  pad_id: int
  end_id: int


class TextFolder:
  """The folder of one encoder; files are read when they are asked for.

  Every method raises ValueError with one sentence when a file is missing,
  damaged or of another model.

  Attributes:
    path: what was given.
    family: the kind of encoder.
    model: where config.json and the weights lie.
  """

  def __init__(self, path: str | os.PathLike | None, family: Family):
    if path is None:
      raise ValueError(
        f"The text encoder {family.name} comes with no package: give the folder"
        " that holds it (config.text.path; to draw, --text or text/ in the"
        " bundle)."
      )
    self.path = Path(path)
    self.family = family
    self.model = model_folder(self.path)
    self._tokenizer = self.path / _PIPELINE_TOKENIZER
    if self.model == self.path and not self._tokenizer.is_dir():
      self._tokenizer = self.path

  @functools.cached_property
  def entries(self) -> dict[str, Any]:
    """What config.json says, of a model of this family."""
    entries = read_json(self.model / CONFIG)
    found = entries.get("model_type")
    if found not in self.family.model_types:
      accepted = " or ".join(map(repr, self.family.model_types))
      raise ValueError(
        f"{self.model / CONFIG} has model_type = {found!r}; the text encoder"
        f" {self.family.name} reads {accepted}."
      )
    return entries

  @functools.cached_property
  def config(self) -> Any:
    """Our configuration of the network."""
    return self.family.config(self.entries, self.model / CONFIG)

  @functools.cached_property
  def state(self) -> dict[str, np.ndarray]:
    """The tensors of the encoder by official name, other towers left out."""
    return self.family.tower(self._all_tensors)

  @property
  def dropped(self) -> int:
    """How many tensors of the files `state` leaves out."""
    return len(self._all_tensors) - len(self.state)

  @functools.cached_property
  def _all_tensors(self) -> dict[str, np.ndarray]:
    return read_weights(self.model)

  @functools.cached_property
  def _bare_state(self) -> dict[str, np.ndarray]:
    return {self.family.bare(key): x for key, x in self.state.items()}

  @functools.cached_property
  def converted(self) -> Converted:
    """Our parameters, every key and shape checked."""
    state = self._bare_state
    try:
      return Converted(state, self.family.rules, self.template())
    except ValueError as error:
      raise ValueError(
        f"The weights in {self.model} are not those of its config.json: {error}"
      ) from error

  def template(self) -> dict[str, Any]:
    """The parameter tree as `ShapeDtypeStruct`s."""
    return parameter_template(self.family.network(self.config))

  def tokens(self) -> Tokens:
    """The tokenizer, as `transformers` builds it from the files."""
    self.tokenizer_files()
    kind = getattr(
      _import_transformers(self.family.name), self.family.tokenizer_class
    )
    try:
      found = kind.from_pretrained(str(self._tokenizer), local_files_only=True)
    except Exception as error:  # damaged files raise nearly anything
      reason = " ".join(str(error).split())[:300]
      raise ValueError(
        f"transformers cannot read the tokenizer files in {self._tokenizer}:"
        f" {type(error).__name__}: {reason}"
      ) from error
    return Tokens(
      found.backend_tokenizer, found.pad_token_id, found.eos_token_id
    )

  def tokenizer_files(self) -> list[Path]:
    """The files that decide the token ids.

    Raises:
      ValueError: one that this kind of tokenizer needs is missing.
    """
    choices = self.family.tokenizer_files
    if not any(
      all((self._tokenizer / name).is_file() for name in names)
      for names in choices
    ):
      needed = ", or ".join(" and ".join(names) for names in choices)
      raise ValueError(
        f"The text encoder folder {self.path} has no tokenizer files: needed"
        f" are {needed}, beside config.json or in tokenizer/."
      )
    files = [self._tokenizer / name for name in TOKENIZER_FILES]
    return [file for file in files if file.is_file()]

  def fingerprint(self, max_tokens: int) -> str:
    """16 hex digits that change with the states, not with how they are stored.

    Args:
      max_tokens: the window.

    Over the values of the weights as float32, the settings of the network, the
    bytes of the tokenizer files and the window: a folder in parts, as .bin or
    in the layout of a pipeline has the fingerprint of the flat one.
    """
    family = self.family
    digest = hashlib.sha256(
      f"{family.name} {family.version} {max_tokens}".encode()
    )
    settings = dataclasses.asdict(self.config)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for file in self.tokenizer_files():
      digest.update(file.name.encode())
      digest.update(hashlib.sha256(file.read_bytes()).digest())
    for key in sorted(self._bare_state):
      x = self._bare_state[key]
      digest.update(f"{key} {x.shape}".encode())
      flat = np.ascontiguousarray(x, np.float32).reshape(-1)
      digest.update(memoryview(flat.view(np.uint8)))
    return digest.hexdigest()[:16]


def _import_transformers(name: str):
  """The package, without its remark that there are no models without torch."""
  quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  given = os.environ.get(quiet)
  os.environ[quiet] = given or "1"
  try:
    import transformers
  except ImportError as error:
    raise ValueError(
      f"The text encoder {name} tokenises with the package transformers (torch"
      " is not needed): run `python -m pip install transformers`, see"
      " requirements-extras.txt."
    ) from error
  finally:
    if given is None:
      del os.environ[quiet]
  return transformers


def model_folder(path: Path) -> Path:
  """Where config.json and the weights lie: `path`, or its text_encoder/.

  Raises:
    ValueError: there is no folder, or none with a config.json.
  """
  if not path.is_dir():
    raise ValueError(f"There is no text encoder folder at {path}.")
  for folder in (path / _PIPELINE_MODEL, path):
    if (folder / CONFIG).is_file():
      return folder
  raise ValueError(
    f"The text encoder folder {path} has no {CONFIG}, neither in it nor in"
    f" {_PIPELINE_MODEL}/."
  )


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object; ValueError for anything else."""
  try:
    entries = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} is not readable: {error}.") from error
  if not isinstance(entries, dict):
    raise ValueError(f"{path} is not a JSON object.")
  return entries


def config_of(
  kind: type[Config], entries: Mapping[str, Any], path: Path
) -> Config:
  """A configuration dataclass from the entries that it has fields for.

  What a writer left out has the field's default. Whole numbers are positive.

  Raises:
    ValueError: a value of another type, by name.
  """
  values = {}
  for field in dataclasses.fields(kind):
    value = entries.get(field.name, field.default)
    wanted = type(field.default)
    if wanted is float and type(value) is int:
      value = float(value)
    if type(value) is not wanted or (wanted is int and value < 1):
      word = "a positive int" if wanted is int else f"a {wanted.__name__}"
      raise ValueError(f"{path} has {field.name} = {value!r}, not {word}.")
    values[field.name] = value
  return kind(**values)


def read_weights(folder: Path) -> dict[str, np.ndarray]:
  """All tensors of the weight files, read-only views of the mapped files.

  Raises:
    ValueError: no weights, a part is missing, or a file is damaged.
  """
  file = next((folder / n for n in WEIGHTS if (folder / n).is_file()), None)
  if file is None:
    raise ValueError(
      f"The text encoder folder {folder} has no weights: looked for"
      f" {', '.join(WEIGHTS)}."
    )
  if file.suffix != ".json":
    return _read_file(file)
  places = read_json(file).get("weight_map")
  if not isinstance(places, dict) or not all(
    isinstance(name, str) and Path(name).name == name
    for name in places.values()
  ):
    raise ValueError(f"{file} does not say which file holds which tensor.")
  parts = {}
  for name in sorted(set(places.values())):
    if not (folder / name).is_file():
      raise ValueError(f"{folder} lacks {name}, which {file.name} names.")
    parts[name] = _read_file(folder / name)
  for key, name in places.items():
    if key not in parts[name]:
      raise ValueError(f"{folder / name} lacks {key}, see {file.name}.")
  return {key: parts[name][key] for key, name in places.items()}


def _read_file(file: Path) -> dict[str, np.ndarray]:
  try:
    if file.suffix == ".safetensors":
      return read_tensors(file)
    return read_state_dict(file)
  except OSError as error:
    raise ValueError(f"{file} is not readable: {error}.") from error


def parameter_template(network: nn.Module) -> dict[str, Any]:
  """The parameter tree of a text network as `ShapeDtypeStruct`s."""
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
  return jax.eval_shape(network.init, jax.random.key(0), ids, mask)["params"]


def check_vocabulary(tokens: Tokens, vocab_size: int, path: Path) -> None:
  """ValueError when the tokenizer gives ids that the network has no row for."""
  largest = max(tokens.tokenizer.get_vocab().values())
  if largest >= vocab_size:
    raise ValueError(
      f"The tokenizer in {path} gives ids up to {largest}, its config.json has"
      f" vocab_size = {vocab_size}."
    )
