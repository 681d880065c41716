"""Runs of several real processes: joining, ending well, losing one."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from star_jax import distributed
from star_jax.distributed import Settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Sums the process ids over and over; the first argument says what happens to
# process 1 after a few steps.
LOOP = """
import sys, time
from absl import flags
from star_jax import cli, distributed

distributed.define_flags()

def main(argv):
  with distributed.session(distributed.settings_from_flags()):
    import jax, jax.numpy as jnp
    from jax.experimental import multihost_utils
    for step in range(6 if argv[1] == "end" else 10_000):
      ids = multihost_utils.process_allgather(jnp.asarray(jax.process_index()))
      if step == 3:
        print("sum", ids.sum(), flush=True)
      if step == 3 and argv[1] == "fail" and jax.process_index() == 1:
        raise ValueError("the disk of process 1 is full.")
      time.sleep(0.05)

cli.run_main(main)
"""


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def clean_environment() -> dict[str, str]:
  return {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("JAX_", "SLURM_", "OMPI_", "STAR_"))
  } | {"JAX_PLATFORMS": "cpu"}


class Processes:
  """A loop in each of `ids` of a run of `total`; ends what is left over."""

  def __init__(self, what, ids, total, *flags):
    address = f"127.0.0.1:{free_port()}"
    self.all = []
    for number in ids:
      command = [sys.executable, "-c", LOOP, what, *flags]
      command += [f"--coordinator_address={address}", f"--process_id={number}"]
      process = subprocess.Popen(
        [*command, f"--num_processes={total}"],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      self.all.append(process)

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    for process in self.all:
      process.kill()
      process.communicate()

  def until_summed(self):
    """Waits until every process has come to the fourth step."""
    for process in self.all:
      while "sum" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()

  def ends(self) -> list[tuple[int, list[str]]]:
    """Exit status and lines on stderr of each, once all have ended."""
    outputs = [process.communicate(timeout=120) for process in self.all]
    return [
      (process.returncode, err.splitlines())
      for process, (_, err) in zip(self.all, outputs)
    ]


def test_a_run_of_two_sums_and_ends():
  with Processes("end", [0, 1], 2) as run:
    run.until_summed()
    assert run.ends() == [(0, []), (0, [])]


def test_a_killed_process_ends_the_others():
  with Processes("loop", [0, 1, 2], 3, "--heartbeat_timeout=3") as run:
    run.until_summed()
    run.all[1].kill()
    begin = time.monotonic()
    ends = run.ends()
  assert time.monotonic() - begin < 60  # the bound, not a measurement
  for i in (0, 2):
    status, lines = ends[i]
    assert status not in (0, -9)
    # gloo notices at once that a connection is gone, but not whose it was.
    assert lines[-1].startswith(
      f"Process 1 of 3 was lost (no sign of life for 3 s); process {i} ends"
    ), lines
    assert len(lines) <= 2, lines


@pytest.mark.long
def test_a_killed_coordinator_ends_the_others():
  with Processes("loop", [0, 1, 2], 3, "--heartbeat_timeout=3") as run:
    run.until_summed()
    run.all[0].kill()
    ends = run.ends()
  for status, lines in ends[1:]:
    assert status not in (0, -9)
    assert lines[-1].startswith("Process 0 of 3, which coordinates"), lines


@pytest.mark.long
def test_an_error_of_one_process_ends_all():
  with Processes("fail", [0, 1], 2, "--heartbeat_timeout=3") as run:
    zero, one = run.ends()
  assert one == (2, ["Process 1 of 2: the disk of process 1 is full."])
  assert zero[0] not in (0, -9)
  assert zero[1][-1].startswith("Process 1 of 2 was lost"), zero


def test_who_is_missing_and_who_is_there_twice_is_named():
  with Processes("end", [0, 1, 1], 3, "--join_timeout=6") as run:
    ends = run.ends()
  assert all(status != 0 for status, _ in ends)
  last = sorted(lines[-1] for _, lines in ends)
  assert last[0].startswith("Another process joined as process 1 of 3"), ends
  assert last[1].startswith("Process 2 of 3 did not join within 6 s"), ends
  assert last[2].startswith("Process 2 of 3 did not join within 6 s"), ends


@pytest.mark.long
def test_a_coordinator_that_does_not_answer():
  with Processes("end", [1], 2, "--join_timeout=1") as run:
    ((status, lines),) = run.ends()
  assert status not in (0, -9)
  assert len(lines) == 1 and "Process 1 of 2 could not join at" in lines[0]


def test_a_port_that_is_taken():
  with socket.socket() as taken:
    taken.bind(("", 0))
    taken.listen()
    port = taken.getsockname()[1]
    done = subprocess.run(
      [sys.executable, "-c", LOOP, "end"],
      cwd=ROOT,
      env=clean_environment()
      | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
      },
      capture_output=True,
      text=True,
    )
  assert done.returncode == 2
  assert f"Process 0 cannot listen on port {port}" in done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
  "settings,message",
  [
    (
      Settings(num_processes=2),
      "^--coordinator_address and --process_id must be given too",
    ),
    (Settings(coordinator_address="a:1"), "^--num_processes and --process_id"),
    (Settings("a:1", 2, 2), "--process_id is from 0 to 1 .* got 2"),
    (Settings("a:1", 2, -1), "got -1"),
    (Settings("a:1", 0, 0), "--num_processes is 1 or more, got 0"),
    (Settings("a", 2, 0), "host:port .* got 'a'"),
    (Settings("a:http", 2, 0), "got 'a:http'"),
    (Settings("a:70000", 2, 0), "port from 1 to 65535"),
    (Settings(auto_detect=True), "jax finds no cluster here"),
    (
      Settings("nobody.invalid:80", 2, 1, join_timeout_s=1),
      "No machine called 'nobody.invalid' is known here after 1 s",
    ),
  ],
)
def test_bad_settings_are_refused(settings, message, monkeypatch):
  for name in clean_environment().keys() ^ os.environ.keys():
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(ValueError, match=message):
    distributed.initialize(settings)


def test_no_settings_are_a_run_of_one_process():
  assert distributed.initialize(Settings()) is False
  with pytest.raises(KeyError), distributed.session(Settings()):
    raise KeyError("stays as it is")


def test_a_slurm_step_is_detected(monkeypatch):
  """One process per GPU: the device is the local id unless it is given."""
  for name, value in {
    "JOB_ID": "77", "STEP_NODELIST": "gpu[03-04]", "NTASKS": "8",
    "PROCID": "5", "LOCALID": "1",
  }.items():  # fmt: skip
    monkeypatch.setenv(f"SLURM_{name}", value)
  monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
  settings, devices = distributed._complete(Settings(auto_detect=True))
  assert settings.coordinator_address.startswith("gpu03:")
  assert (settings.num_processes, settings.process_id) == (8, 5)
  assert devices == [1]
  monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "2,3")
  assert distributed._complete(Settings(auto_detect=True))[1] == [2, 3]
  monkeypatch.setenv("SLURM_NTASKS", "many")
  with pytest.raises(ValueError, match="could not read this cluster"):
    distributed._complete(Settings(auto_detect=True))
