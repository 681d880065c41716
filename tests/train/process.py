"""One process of a run of the fake task; tests start several of them.

  python tests/train/process.py WORKDIR [--mesh=fsdp=2] [--steps=8] \
    [--at=4:1:KILL]

--at sends that signal to process 1 after step 4.
"""

import importlib
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from absl import flags

from star_jax import cli, distributed

distributed.define_flags()
_MESH = flags.DEFINE_string("mesh", "data=-1", "")
_STEPS = flags.DEFINE_integer("steps", 8, "")
_AT = flags.DEFINE_string("at", "", "")


def main(argv):
  with distributed.session(distributed.settings_from_flags()):
    import jax

    from star_jax.train.loop import train_and_evaluate

    fake = importlib.import_module("fake")  # beside this script

    config = fake.config(num_steps=_STEPS.value)
    config.checkpoint_every = 3
    config.async_checkpoints = False  # whole before the next step
    for axis in _MESH.value.split(","):
      name, size = axis.split("=")
      config.mesh[name] = int(size)

    def on_step(step):
      if _AT.value:
        when, who, what = _AT.value.split(":")
        if (step, jax.process_index()) == (int(when), int(who)):
          os.kill(os.getpid(), signal.Signals[f"SIG{what}"])
        if step >= int(when):
          # jax looks for signals about once a second.
          time.sleep(1.0)

    task = fake.FakeTask(config, on_step=on_step)
    train_and_evaluate(config, argv[1], task=task)


if __name__ == "__main__":
  cli.run_main(main)
