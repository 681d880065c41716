"""The token cache: what is stored, resumed, refused, and in which order."""

import dataclasses
import json

import numpy as np
import pytest

from star_jax.data import token_cache
from star_jax.data.token_cache import TokenCache, TokenCacheWriter

WIDTH, TOKENS = 4, 5
IDENTITY = {"tokenizer": "abc", "schedule": ((1, 1), (2, 2))}


class Pictures:
  """Example n: its number in every pixel; every third caption repeats."""

  def __init__(self, batch_size=3):
    self.batch_size, self.next = batch_size, 0

  def __next__(self):
    numbers = np.arange(self.next, self.next + self.batch_size)
    self.next += self.batch_size
    image = numbers[:, None, None, None] * np.ones((1, 2, 2, 3))
    captions = ["same" if n % 3 == 0 else f"number {n}" for n in numbers]
    return {
      "image": image.astype(np.uint8),
      "caption": np.array(captions, object),
    }

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


@dataclasses.dataclass
class States:
  text_BTD: np.ndarray
  text_mask_BT: np.ndarray
  pooled_BD: np.ndarray


def encode_text(captions):
  """As many tokens as letters, at most 8; every value tells the caption."""
  value = np.array([sum(caption.encode()) % 100 for caption in captions])
  length = np.array([min(len(caption) + 1, 8) for caption in captions])
  mask = np.arange(8) < length[:, None]
  text = value[:, None, None] + np.arange(8)[:, None] / 8 + np.zeros(WIDTH)
  return States(text, mask, value[:, None] + np.zeros(WIDTH))


def encode_images(image):
  return image[:, 0, 0, :1].astype(int) * 10 + np.arange(TOKENS)


def write(directory, count=12, shard_examples=6, identity=IDENTITY, **options):
  options = dict(encode_images=encode_images, encode_text=encode_text) | options
  writer = TokenCacheWriter(directory, identity, **options)
  writer.build(
    Pictures(), count, shard_examples=shard_examples, report=lambda line: None
  )
  return directory


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
  return write(tmp_path_factory.mktemp("cache"))


def test_rows_hold_tokens_and_their_own_captions(cache_dir):
  cache = TokenCache(cache_dir, max_tokens=8)
  assert len(cache) == 12
  assert cache.num_captions == 9  # "same" and eight numbers
  batch = cache.rows([7, 0, 9])
  np.testing.assert_array_equal(batch["idx"][:, 0], [70, 0, 90])
  assert batch["idx"].dtype == np.int32
  expected = encode_text(["number 7", "same", "same"])
  mask = expected.text_mask_BT
  np.testing.assert_array_equal(batch["text_mask"], mask)
  np.testing.assert_allclose(
    batch["text"], expected.text_BTD * mask[..., None], rtol=1e-3
  )
  np.testing.assert_array_equal(batch["pooled"], expected.pooled_BD)


def test_null_prompt_and_a_shorter_window(cache_dir):
  null = TokenCache(cache_dir, max_tokens=8).null()
  np.testing.assert_array_equal(null["text_mask"].sum(axis=1), [1])
  short = TokenCache(cache_dir, max_tokens=3).rows([1])
  assert short["text"].shape == (1, 3, WIDTH)
  assert short["text_mask"].all()


def test_a_killed_build_goes_on_behind_its_last_whole_shard(
  cache_dir, tmp_path
):
  calls = []

  def dies(image):
    calls.append(len(image))
    if len(calls) == 4:
      raise KeyboardInterrupt
    return encode_images(image)

  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, encode_images=dies)
  with pytest.raises(ValueError, match=r"unfinished \(1 shards so far\)"):
    TokenCache(tmp_path, max_tokens=8)
  calls.append("resumed")
  write(tmp_path, encode_images=dies)
  assert calls.count(3) == 6  # 4 before, then only the second shard's 2
  whole, resumed = TokenCache(cache_dir, 8), TokenCache(tmp_path, 8)
  a, b = whole.rows(range(12)), resumed.rows(range(12))
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])
  assert resumed.num_captions == whole.num_captions


def test_continuing_another_cache_is_refused(tmp_path):
  write(tmp_path)
  with pytest.raises(ValueError, match="tokenizer is 'abc' there and 'xyz'"):
    write(tmp_path, identity={**IDENTITY, "tokenizer": "xyz"})


def test_training_compares_only_what_it_needs(cache_dir):
  identity = TokenCache(cache_dir, 8).identity
  token_cache.check_identity(cache_dir, identity, {"tokenizer": "abc"})
  with pytest.raises(ValueError, match=r"schedule is \[\[1, 1\], \[2, 2\]\]"):
    token_cache.check_identity(cache_dir, identity, {"schedule": ((1, 1),)})


@pytest.mark.parametrize(
  "damage,verify,match",
  [
    (lambda p: p.unlink(), False, r"lacks .*idx-00001.npy"),
    (
      lambda p: p.write_bytes(p.read_bytes()[:-4]),
      False,
      r"idx-00001.npy of the token cache is damaged: \d+ of \d+ bytes",
    ),
    (
      lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x07"),
      True,
      r"idx-00001.npy .* checksum differs",
    ),
  ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, verify, match):
  write(tmp_path)
  damage(tmp_path / "idx-00001.npy")
  with pytest.raises(ValueError, match=match):
    TokenCache(tmp_path, 8, verify=verify)


def test_no_cache_and_a_damaged_manifest(tmp_path):
  with pytest.raises(ValueError, match=r"No token cache in .*cache_tokens.py"):
    TokenCache(tmp_path, 8)
  (tmp_path / "manifest.json").write_text("{")
  with pytest.raises(ValueError, match=r"manifest.json is damaged"):
    TokenCache(tmp_path, 8)


def numbers(iterator, count):
  return [(next(iterator)["idx"][:, 0] // 10).tolist() for _ in range(count)]


def test_every_epoch_has_all_examples_in_its_own_order(cache_dir):
  cache = TokenCache(cache_dir, 8)
  drawn = numbers(cache.train_batches(4, seed=1), 6)
  first, second = np.ravel(drawn[:3]).tolist(), np.ravel(drawn[3:]).tolist()
  assert sorted(first) == sorted(second) == list(range(12))
  assert first != second
  assert drawn != numbers(cache.train_batches(4, seed=2), 6)


def test_position_is_restored_exactly(cache_dir):
  cache = TokenCache(cache_dir, 8)
  unbroken = cache.train_batches(4, seed=1)
  numbers(unbroken, 2)
  position = json.loads(json.dumps(unbroken.get_state()))
  rest = numbers(unbroken, 5)
  resumed = cache.train_batches(4, seed=1)
  resumed.set_state(position)
  assert numbers(resumed, 5) == rest


def test_number_of_processes_does_not_change_the_global_batches(cache_dir):
  cache = TokenCache(cache_dir, 8)
  alone = numbers(cache.train_batches(4, seed=1), 4)
  shares = [
    numbers(cache.train_batches(4, 1, slice(2 * p, 2 * p + 2)), 4)
    for p in range(2)
  ]
  assert [a + b for a, b in zip(*shares)] == alone


def test_held_out_batches_are_whole_and_in_order(cache_dir):
  batches = list(TokenCache(cache_dir, 8).in_order(5, 10))
  assert [b["idx"][:, 0].tolist() for b in batches] == [
    [0, 10, 20, 30, 40],
    [50, 60, 70, 80, 90],
  ]
