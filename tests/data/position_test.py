"""Positions in the data mean the same for any number of processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from configs import data as data_config
from star_jax.data import pipeline
from star_jax.data.buckets import Buckets
from star_jax.data.position import NumberedBatches
from star_jax.data.token_cache import TokenCache
from star_jax.train import frozen
from star_jax.train.transformer_task import StarConfig
from tests.data import token_cache_test
from tests.train import transformer_task_test

ROOT = Path(__file__).resolve().parents[2]
BATCH = 4
COUNTS = (1, 2, 4)


def raw(process, processes, *, threads=2):
  """Pictures of a finite source, so that a batch may lie on two epochs."""
  config = data_config.options()
  config.threads = threads
  return pipeline.build_dataset(
    config,
    "train",
    BATCH,
    3,
    sources={"few": pipeline.Weighted(Few(), 1.0)},
    rows=rows_of_process(process, processes),
  )


def rows_of_process(process, processes):
  share = BATCH // processes
  return slice(process * share, (process + 1) * share)


class Few:
  """Ten pictures whose captions are number and epoch."""

  def __len__(self):
    return 10

  def example(self, index, seed):
    meta = {"id": str(index)}
    return np.full((4, 4, 3), index, np.uint8), f"{index} of {seed}", meta


def generated(workers):
  """Other processes know only what belongs to the product."""
  config = data_config.options()
  config.update(source="synthetic", size=(4, 4), workers=workers)
  return pipeline.build_dataset(config, "train", BATCH, 3)


def buckets(process, processes):
  sources = {name: raw(process, processes) for name in ("1:1", "2:1")}
  return Buckets(sources, dict.fromkeys(sources, 1.0), 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  directory = tmp_path_factory.mktemp("cache")
  token_cache_test.write(directory, count=10)
  return TokenCache(directory, 8)


@pytest.fixture(params=["threads", "none", "cache", "synthetic", "buckets"])
def reader(request, cache):
  """(process, processes) -> an iterator, for each kind of source."""

  def tokens(process, processes):
    config = transformer_task_test.config(batch_size=BATCH)
    model = StarConfig.from_dict(config.model.to_dict())
    rows = rows_of_process(process, processes)
    return frozen.SyntheticTokens(config, model, rows)

  return {
    "threads": raw,
    "none": lambda p, n: raw(p, n, threads=0),
    "cache": lambda p, n: cache.train_batches(BATCH, 1, rows_of_process(p, n)),
    "synthetic": tokens,
    "buckets": buckets,
  }[request.param]


def examples(batch):
  """What identifies the examples of a batch, one string each."""
  if isinstance(batch, tuple):
    name, batch = batch
    return [f"{name} {example}" for example in examples(batch)]
  if "caption" in batch:
    return list(batch["caption"])
  return [row.tobytes().hex() for row in batch["idx"]]


def draw(readers, count):
  """Global batches, the rows of all processes one after the other."""
  return [
    [example for r in readers for example in examples(next(r))]
    for _ in range(count)
  ]


def all_of(reader, processes):
  return [reader(process, processes) for process in range(processes)]


def test_a_position_goes_on_under_any_number_of_processes(reader):
  expected = draw(all_of(reader, 1), 7)
  assert len({str(batch) for batch in expected}) == 7
  for before in COUNTS:
    readers = all_of(reader, before)
    assert draw(readers, 3) == expected[:3]
    (position,) = {json.dumps(r.get_state()) for r in readers}
    for after in COUNTS:
      restored = all_of(reader, after)
      for r in restored:
        next(r)  # what was read ahead must not come again
        r.set_state(json.loads(position))
      assert draw(restored, 4) == expected[3:]


@pytest.fixture
def parsed_flags():
  """Worker processes are told the flags of the command."""
  flags.FLAGS.mark_as_parsed()
  yield
  flags.FLAGS.unparse_flags()


@pytest.mark.long
@pytest.mark.usefixtures("parsed_flags")
def test_workers_read_the_batches_of_threads():
  expected = [examples(batch) for batch in take(generated(0), 5)]
  for workers in (1, 2):
    batches = generated(workers)
    assert [examples(b) for b in take(batches, 5)] == expected
    batches.set_state(2)
    assert [examples(b) for b in take(batches, 3)] == expected[2:]
    batches.close()


@pytest.mark.long
@pytest.mark.usefixtures("parsed_flags")
def test_a_signal_to_all_processes_leaves_the_workers():
  batches = generated(1)
  next(batches)
  (worker,) = multiprocessing.active_children()
  for number in (signal.SIGINT, signal.SIGTERM):
    os.kill(worker.pid, number)
  assert len(take(batches, 20)) == 20
  batches.close()


def take(batches, count):
  return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("saved", [{"next_index": 64}, -1, "3"])
def test_a_position_of_another_form_is_refused(saved):
  with pytest.raises(ValueError, match="not a number of batches"):
    NumberedBatches(iter).set_state(saved)


@pytest.mark.long
def test_workers_end_with_a_run_that_was_killed():
  script = f"""
    import multiprocessing, os, signal, sys
    sys.path.insert(0, {str(ROOT)!r})
    from absl import flags
    from configs import data
    from star_jax.data import pipeline

    if __name__ == "__main__":
      flags.FLAGS.mark_as_parsed()
      options = data.options()
      options.update(source="synthetic", size=(4, 4), workers=1)
      batches = pipeline.build_dataset(options, "train", 4, 3)
      next(batches)
      assert multiprocessing.active_children()
      os.kill(os.getpid(), signal.SIGKILL)
  """
  # The worker holds the pipes too: this returns when both have ended.
  died = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    capture_output=True,
    timeout=60,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
