"""A run that kill_test.py starts and that is killed at a planned moment.

  python kill_child.py WORKDIR PLAN

PLAN is JSON: what is run ("train" or "cache"), "kind", "at" and "delay" of its
end (see `Train` and `Cache`; no kind: it may finish) and options of the run.
"""

import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# An installed package of this name would come first.
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = [str(ROOT / "tests")]

import jax  # noqa: E402
import numpy as np  # noqa: E402

from star_jax.train import build_cache, frozen  # noqa: E402
from star_jax.train.loop import train_and_evaluate  # noqa: E402
from tests.train import fake  # noqa: E402

PAUSE = 0.002
BALLAST = 1_000_000


class Train:
  """The fake task with a state that takes a while to write.

  Its end comes `delay` seconds after

  - "step": step `at` was done,
  - "write": the first file of a checkpoint of step `at` or later,
  - "data": batch `at` was begun and before it is there; with `at` 0 while the
    task is built.
  """

  def __init__(self, workdir, plan):
    self.workdir, self.plan = workdir, plan
    self.config = fake.config(
      num_steps=plan["num_steps"],
      log_every=3,
      eval_every=4,
      checkpoint_every=4,
      sample_every=8,
      keep_best=1,
      async_checkpoints=plan["asynchronous"],
    )

  def run(self):
    if self.plan["kind"] == "write":
      threading.Thread(target=self._watch, daemon=True).start()
    if self.plan["kind"] == "data" and not self.plan["at"]:
      end(self.plan["delay"])
    train_and_evaluate(self.config, self.workdir, task=Task(self))

  def at(self, kind, number):
    """Tells that this moment has come."""
    if self.plan["kind"] == kind and number >= self.plan["at"]:
      end(self.plan["delay"], wait=kind == "data")

  def _watch(self):
    directory = self.workdir / "checkpoints"
    while True:
      names = os.listdir(directory) if directory.is_dir() else []
      for name in names:
        if "tmp" in name and int(name.split(".")[0]) >= self.plan["at"]:
          end(self.plan["delay"], wait=True)
      time.sleep(PAUSE / 10)


class Task(fake.FakeTask):
  def __init__(self, run):
    super().__init__(run.config, on_step=lambda step: run.at("step", step))
    self.run = run

  def init(self, key):
    params, extra = super().init(key)
    return params, extra | {"ballast_bias": jax.random.normal(key, (BALLAST,))}

  def loss(self, params, extra, frozen, batch, key, step):
    loss, (metrics, changed) = super().loss(
      params, extra, frozen, batch, key, step
    )
    return loss, (metrics, extra | changed)

  def train_batches(self, rows):
    run = self.run

    class Batches(fake.Batches):
      def __next__(self):
        time.sleep(PAUSE)
        batch = super().__next__()
        run.at("data", self.position)
        return batch

    return Batches(self.config.batch_size, self.config.seed, rows)


class Cache:
  """A token cache; its end comes `delay` after encoding batch `at` began."""

  def __init__(self, workdir, plan):
    self.workdir, self.plan, self.count = workdir, plan, 0

  def run(self):
    from tests.train import transformer_task_test

    config = transformer_task_test.config(tokenizer_path=self.plan["tokenizer"])
    config.cache.update(
      directory=str(self.workdir), examples=40, shard_examples=8
    )
    build_cache.load_text_encoder = lambda name, max_tokens, path: (
      frozen.SyntheticText(8, max_tokens)
    )
    encoder = frozen.FrozenTokenizer.encoder
    frozen.FrozenTokenizer.encoder = lambda parts: self._doomed(encoder(parts))
    build_cache.build_cache(config)

  def _doomed(self, encode):
    def counting(image):
      self.count += 1
      time.sleep(PAUSE)
      if self.plan["kind"] and self.count >= self.plan["at"]:
        end(self.plan["delay"])
      return np.asarray(encode(image))

    return counting


def end(delay, wait=False):
  """Kills this process from another thread, or here."""

  def kill():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

  if wait:
    kill()
  threading.Thread(target=kill, daemon=True).start()


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  given = json.loads(sys.argv[2])
  kind_of_run = {"train": Train, "cache": Cache}[given["run"]]
  kind_of_run(Path(sys.argv[1]), given).run()
