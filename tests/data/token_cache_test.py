"""The token cache: what is stored, resumed, refused, and in which order."""

import dataclasses
import json
import threading

import jax
import ml_dtypes
import numpy as np
import pytest

from star_jax.data import cache_layout
from star_jax.data.cache_writer import Plan, TokenCacheWriter
from star_jax.data.token_cache import TokenCache

WIDTH, TOKENS = 4, 5
IDENTITY = {"tokenizer": "abc", "schedule": ((1, 1), (2, 2))}
PLAN = Plan(
  examples=12, variants=1, flip=False, vocab_size=4096, batch_size=4,
  shard_examples=6, shard_captions=4, seed=0,
)  # fmt: skip


def caption_of(place):
  """Every third caption repeats."""
  return "same" if place % 3 == 0 else f"picture {place}"


def examples(places, variants=1, caption=caption_of):
  """The number of an example in every pixel, that of a variant in green."""
  for place in map(int, places):
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0], image[:, 1, 2] = place, 1
    out = []
    for variant in range(variants):
      image[..., 1] = variant
      said = caption(place) + (f" {variant}" if variant else "")
      out.append({"image": image.copy(), "caption": said, "id": f"p{place}"})
    yield out


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
  """10 times the number, plus 100 a variant, plus 1 for a mirrored one."""
  first = image[:, 0, 0].astype(int) @ [10, 100, 1]
  return first[:, None] + 1000 * np.arange(TOKENS)


def write(
  directory, count=12, plan=PLAN, identity=IDENTITY, read=examples, **options
):
  options = dict(encode_images=encode_images, encode_text=encode_text) | options
  writer = TokenCacheWriter(directory, identity, **options)
  lines = []
  plan = dataclasses.replace(plan, examples=count)
  writer.build(read, plan, report=lines.append, patience=20)
  return lines


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("cache")
  write(directory)
  return directory


def files(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_rows_hold_tokens_and_their_own_captions(cache_dir):
  cache = TokenCache(cache_dir, max_tokens=8)
  assert len(cache) == 12
  assert cache.num_captions == 9  # "same" and eight numbers
  batch = cache.rows([7, 0, 9])
  np.testing.assert_array_equal(batch["idx"][:, 0], [70, 0, 90])
  assert batch["idx"].dtype == np.int32
  expected = encode_text(["picture 7", "same", "same"])
  mask = expected.text_mask_BT
  np.testing.assert_array_equal(batch["text_mask"], mask)
  states = (expected.text_BTD * mask[..., None]).astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(batch["text"], states)
  np.testing.assert_array_equal(batch["pooled"], expected.pooled_BD)
  assert cache.record(7).original == "p7"
  short = TokenCache(cache_dir, max_tokens=3).rows([1])
  assert short["text"].shape == (1, 3, WIDTH)
  assert short["text_mask"].all()


def test_batches_go_to_devices_as_they_are(cache_dir):
  batch = next(TokenCache(cache_dir, 8).train_batches(4, seed=0))
  doubled = jax.jit(lambda batch: jax.tree.map(lambda x: x + x, batch))(
    jax.device_put(batch)
  )
  assert doubled["text"].dtype == jax.numpy.bfloat16
  np.testing.assert_array_equal(doubled["text"], batch["text"] * 2)


def test_records_are_what_the_layout_says():
  idx = np.array([[1, 2, 3], [4, 5, 70000]], np.uint32)
  keys = np.array([2**63 + 1, 7], np.uint64)
  record = cache_layout.ExampleRecord(idx, keys, np.array([True, False]), "ü/1")
  data = record.pack()
  assert data[:12] == bytes([2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0])
  assert data[12:20] == bytes([1, 0, 0, 0, 2, 0, 0, 0])
  assert data.endswith(bytes([1, 0]) + "ü/1".encode())
  for mine, its in zip(record, cache_layout.ExampleRecord.unpack(data)):
    np.testing.assert_array_equal(mine, its)
  text = cache_layout.TextRecord(
    np.array([[1.0], [-2.0]]), np.array([1.0, 2.0]), "a cat"
  )
  data = text.pack()
  # The upper halves of float32.
  assert data[12:16] == bytes([0x80, 0x3F, 0x00, 0xC0])
  again = cache_layout.TextRecord.unpack(data)
  assert again.text_TD.shape == (2, 1) and again.caption == "a cat"
  np.testing.assert_array_equal(again.pooled_D, text.pooled_D)


def test_a_killed_build_goes_on_behind_its_last_whole_file(cache_dir, tmp_path):
  calls = []

  def dies(image):
    calls.append(len(image))
    if len(calls) == 4:
      raise KeyboardInterrupt
    return encode_images(image)

  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, encode_images=dies)
  with pytest.raises(ValueError, match=r"unfinished; the command that started"):
    TokenCache(tmp_path, max_tokens=8)
  for name in (".examples-00001.arrayrecord.1.tmp", ".manifest.json.2.tmp"):
    (tmp_path / name).write_bytes(b"half")

  def text_dies(captions):
    if "picture 8" in captions:
      raise KeyboardInterrupt
    return encode_text(captions)

  calls.append("resumed")
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, encode_images=dies, encode_text=text_dies)
  assert calls.count(4) == 6  # 4 before, then only the second file's 2
  write(tmp_path, encode_images=lambda image: pytest.fail("encoded again"))
  assert files(tmp_path) == files(cache_dir)


def test_three_processes_write_the_files_that_one_writes(cache_dir, tmp_path):
  failed = []

  def work(process):
    try:
      write(tmp_path, process=process, processes=3)
    except BaseException as error:
      failed.append(error)

  threads = [threading.Thread(target=work, args=[p]) for p in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failed
  assert files(tmp_path) == files(cache_dir)


def test_a_process_that_waits_for_nobody_says_what_is_missing(tmp_path):
  writer = TokenCacheWriter(
    tmp_path, IDENTITY, encode_images=encode_images, encode_text=encode_text,
    processes=2,
  )  # fmt: skip
  with pytest.raises(ValueError, match=r"first .*examples-00001.arrayrecord"):
    writer.build(examples, PLAN, report=lambda line: None, patience=0.3)
  write(tmp_path)
  assert len(TokenCache(tmp_path, 8)) == 12


def test_a_finished_cache_may_grow(tmp_path):
  write(tmp_path, count=8)
  grown = []
  write(tmp_path, read=lambda places: grown.extend(places) or examples(places))
  assert grown == list(range(6, 12))  # the whole first file is kept
  cache = TokenCache(tmp_path, 8)
  assert cache.rows(range(12))["idx"][:, 0].tolist() == list(range(0, 120, 10))
  assert cache.num_captions == 9


def test_variants_are_taken_by_epoch(tmp_path):
  plan = dataclasses.replace(PLAN, variants=3)
  write(tmp_path, plan=plan, read=lambda places: examples(places, 3))
  cache = TokenCache(tmp_path, 8)
  assert len(cache) == 12 and cache.num_captions == 9 * 3
  np.testing.assert_array_equal(
    cache.rows([5, 12 + 5, 24 + 5])["idx"][:, 0], [50, 150, 250]
  )
  one, two = cache.rows([5, 12 + 5])["pooled"][:, 0].astype(int)
  words = ["picture 5", "picture 5 1"]
  assert [one, two] == [sum(w.encode()) % 100 for w in words]
  batches = cache.train_batches(4, seed=1)
  drawn = [next(batches)["idx"][:, 0] for _ in range(12)]
  for epoch in range(4):
    numbers = np.concatenate(drawn[3 * epoch : 3 * epoch + 3])
    expected = 10 * np.arange(12) + 100 * (epoch % 3)
    np.testing.assert_array_equal(np.sort(numbers), expected)


def test_flips_spare_captions_with_spatial_words(tmp_path):
  def caption(place):
    return ["a cat", "a cat, left of a dog", "a leftover"][place % 3]

  plan = dataclasses.replace(PLAN, flip=True, vocab_size=2**17)
  lines = write(
    tmp_path, 60, plan, read=lambda places: examples(places, caption=caption)
  )
  cache = TokenCache(tmp_path, 8)
  flipped = np.array([cache.record(i).flipped_V[0] for i in range(60)])
  # The picture that was encoded, not a note alone.
  np.testing.assert_array_equal(
    cache.rows(range(60))["idx"][:, 0] % 10, flipped
  )
  assert not flipped[1::3].any()
  for free in (flipped[0::3], flipped[2::3]):
    assert 4 <= free.sum() <= 16
  assert cache.counts["flipped"] == flipped.sum()
  assert 4 <= cache.counts["spatial"] <= 16
  assert f"{flipped.sum()} of 60 pictures are mirrored" in lines[-1]
  assert f"{cache.counts['spatial']} were not" in lines[-1]


def test_continuing_another_cache_is_refused(tmp_path):
  write(tmp_path)
  with pytest.raises(ValueError, match="tokenizer is 'abc' there and 'xyz'"):
    write(tmp_path, identity={**IDENTITY, "tokenizer": "xyz"})


def test_the_manifest_says_what_the_cache_was_made_of(cache_dir):
  manifest = json.loads((cache_dir / "manifest.json").read_text())
  assert manifest["tokenizer_hash"] == "abc"
  assert len(manifest["config_hash"]) == 16
  assert manifest["counts"] == {
    "examples": 12, "variants": 1, "captions": 9, "flipped": 0, "spatial": 0,
  }  # fmt: skip
  sizes = [facts["records"] for facts in manifest["texts"]]
  assert sizes == [4, 4, 1]
  assert all(len(f["sha256"]) == 64 for f in manifest["examples"])


def test_training_compares_only_what_it_needs(cache_dir):
  identity = TokenCache(cache_dir, 8).identity
  cache_layout.check_identity(cache_dir, identity, {"tokenizer": "abc"})
  with pytest.raises(ValueError, match=r"schedule is \[\[1, 1\], \[2, 2\]\]"):
    cache_layout.check_identity(cache_dir, identity, {"schedule": ((1, 1),)})


def spoil_byte(path):
  data = bytearray(path.read_bytes())
  data[len(data) - 100] ^= 1
  path.write_bytes(data)


DAMAGES = [
  (lambda path: path.unlink(), False, r"\(it is missing\)"),
  (
    lambda path: path.write_bytes(path.read_bytes()[:-4]),
    False,
    r"\(\d+ of \d+ bytes\)",
  ),
  (spoil_byte, True, r"\(its checksum differs\)"),
  (
    lambda path: path.write_bytes(bytes(path.stat().st_size)),
    False,
    r"cannot be read",
  ),
]


@pytest.mark.parametrize("damage, verify, reason", DAMAGES)
def test_a_damaged_file_is_named_and_written_anew(
  cache_dir, tmp_path, damage, verify, reason
):
  write(tmp_path)
  damage(tmp_path / "examples-00001.arrayrecord")
  match = f"examples-00001.arrayrecord .*{reason}.*encode_dataset.py"
  with pytest.raises(ValueError, match=match):
    TokenCache(tmp_path, 8, verify=verify)
  write(tmp_path, verify=True)
  assert files(tmp_path) == files(cache_dir)


@pytest.mark.parametrize("damage, verify, reason", DAMAGES)
def test_training_may_go_on_without_a_damaged_file(
  tmp_path, damage, verify, reason
):
  write(tmp_path)
  damage(tmp_path / "examples-00000.arrayrecord")
  with pytest.warns(UserWarning, match=r"6 of 12 examples are left out.*00000"):
    cache = TokenCache(tmp_path, 8, verify=verify, damaged="skip")
  assert len(cache) == 6
  assert cache.rows(range(6))["idx"][:, 0].tolist() == list(range(60, 120, 10))
  pooled = cache.rows([1])["pooled"]
  np.testing.assert_array_equal(pooled, encode_text(["picture 7"]).pooled_BD)


def test_lost_captions_take_their_examples_along(tmp_path):
  write(tmp_path)
  # "same" and pictures 1, 2 and 4.
  (tmp_path / "texts-00000.arrayrecord").unlink()
  with pytest.warns(UserWarning, match="7 of 12 examples are left out"):
    cache = TokenCache(tmp_path, 8, damaged="skip")
  batch = cache.rows(range(len(cache)))
  assert (batch["idx"][:, 0] // 10).tolist() == [5, 7, 8, 10, 11]
  expected = encode_text([f"picture {i}" for i in (5, 7, 8, 10, 11)])
  np.testing.assert_array_equal(batch["pooled"], expected.pooled_BD)
  for path in tmp_path.glob("examples-*.arrayrecord"):
    path.unlink()
  with pytest.warns(UserWarning), pytest.raises(ValueError, match="no whole"):
    TokenCache(tmp_path, 8, damaged="skip")
  with pytest.raises(ValueError, match="damaged is refuse or skip, got 'no'"):
    TokenCache(tmp_path, 8, damaged="no")


def test_damage_that_is_met_in_training_is_named(tmp_path):
  write(tmp_path)
  cache = TokenCache(tmp_path, 8)
  path = tmp_path / "examples-00001.arrayrecord"
  data = path.read_bytes()
  record = cache.record(8)
  path.write_bytes(data.replace(record.pack(), bytes(len(record.pack()))))
  cache = TokenCache(tmp_path, 8)
  cache.rows([7])
  with pytest.raises(ValueError, match=r"Record 2 of .*examples-00001"):
    cache.rows([8])


def test_no_cache_an_old_one_and_a_damaged_manifest(tmp_path):
  with pytest.raises(ValueError, match=r"No token cache in .*encode_dataset"):
    TokenCache(tmp_path, 8)
  (tmp_path / "manifest.json").write_text("{")
  with pytest.raises(ValueError, match=r"manifest.json is damaged"):
    TokenCache(tmp_path, 8)
  (tmp_path / "manifest.json").write_text('{"version": 1}')
  old = r"earlier format of .npy files.* build it anew with launch/encode_data"
  with pytest.raises(ValueError, match=old):
    TokenCache(tmp_path, 8)
  with pytest.raises(ValueError, match=old):
    write(tmp_path)


def test_a_manifest_without_all_files_is_written_anew(cache_dir, tmp_path):
  write(tmp_path)
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  manifest["texts"].pop()
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match="lacks files of 1 examples"):
    TokenCache(tmp_path, 8, damaged="skip")
  write(tmp_path)
  assert files(tmp_path) == files(cache_dir)


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
