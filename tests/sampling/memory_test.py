"""The estimate of a sampler's memory, and what is refused by it."""

import jax
import pytest

import star_jax
from configs.presets import PRESETS, TOKENIZERS
from star_jax import testing
from star_jax.compile_check.programs import sampler_program
from star_jax.model.config import StarConfig
from star_jax.sampling import memory as M
from star_jax.sampling.sampler import SamplerConfig
from star_jax.tokenizer.config import VQVAEConfig

FACTOR = 1.3


def within(estimate, found, factor=FACTOR):
  return found / factor <= estimate <= found * factor


def small(**overrides):
  """Large enough that arrays of the batch outweigh the parameters."""
  tokenizer = testing.tiny_tokenizer_config((1, 4, 12), vocab_size=1024)
  overrides = dict(width=128, num_heads=4) | overrides
  return testing.tiny_star_config(tokenizer, **overrides), tokenizer


@pytest.mark.long
@pytest.mark.parametrize(
  "star, tokenizer, options, batch",
  [
    (*small(), {}, 12),
    (
      *small(
        text_dim=0,
        num_classes=3,
        adaptive_norm="block",
        position="absolute",
        cross_attention=False,
      ),
      {"guided": False},
      4,
    ),
  ],
)
def test_the_estimate_is_near_the_compilers(star, tokenizer, options, batch):
  config = SamplerConfig(**options)
  program = sampler_program(star, tokenizer, config, batch, text_tokens=9)
  found = program.lowered.compile().memory_analysis()
  memory = M.sampler_memory(
    star, tokenizer, config, parameters=program.resident_bytes, text_tokens=9
  )
  peak = found.output_size_in_bytes + found.temp_size_in_bytes
  assert peak > program.resident_bytes
  assert within(memory.bytes(batch), program.resident_bytes + peak)


@pytest.mark.parametrize(
  "batch, gigabytes", [(1, 11.68), (4, 23.47), (8, 39.20), (18, 78.51)]
)
def test_the_estimate_is_near_the_a100_table(batch, gigabytes):
  """docs/memory.md, STAR-d30 at 1024 px with 7.75 GB of parameters."""
  name = "star_d30_1024"
  schedule = PRESETS[name]["schedule"]
  memory = M.sampler_memory(
    StarConfig.from_dict(PRESETS[name]),
    VQVAEConfig.from_dict(TOKENIZERS["vae_ch160"] | {"schedule": schedule}),
    SamplerConfig(decode_one_by_one=True),
    parameters=7_750_000_000,
    text_tokens=77,
    platform="gpu",
  )
  assert within(memory.bytes(batch), gigabytes * 1e9, 1.1)


def test_the_largest_batch_is_the_last_that_fits():
  star, tokenizer = small()
  memory = M.sampler_memory(
    star, tokenizer, SamplerConfig(), parameters=10**6, text_tokens=9
  )
  for limit in (memory.bytes(1), memory.bytes(37) + 5, 10**9):
    largest = memory.largest_batch(limit)
    assert memory.bytes(largest) <= limit < memory.bytes(largest + 1)
  assert memory.largest_batch(10**6) == 0


def test_a_batch_that_does_not_fit_is_refused_before_compiling(
  tmp_path, monkeypatch
):
  testing.save_tiny_bundle(tmp_path)
  star = star_jax.load(tmp_path)
  limit = 3 << 20
  monkeypatch.setattr(M, "device_bytes", lambda device: limit)
  settings = star.settings()
  memory = M.sampler_memory(
    *star.programs().described(settings),
    parameters=M.tree_bytes(star.bundle.params),
    text_tokens=testing.TEXT_TOKENS,
  )
  largest = memory.largest_batch(limit)
  assert 16 < largest < 4096
  message = (
    rf"^A batch of 4096 needs about [\d.]+ MiB and \w+ has 3\.0 MiB; the"
    rf" largest batch that fits is {largest}\.$"
  )
  with pytest.raises(ValueError, match=message):
    star.sample(["a"] * 4096, batch=4096)
  limit = memory.parameters
  with pytest.raises(ValueError, match=r"not even one picture fits\.$"):
    star.sample("a")
  assert not star.programs()._samplers


def test_the_memory_of_this_machine_is_known():
  assert 2**28 < M.device_bytes(jax.devices()[0]) < 2**46
