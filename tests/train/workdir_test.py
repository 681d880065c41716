"""The lock of a workdir, and what a signal says."""

import io
import os
import signal
import sys

import pytest

from star_jax.train.workdir import StopSignals, Workdir


def test_a_lock_that_a_killed_run_left_is_taken_over(tmp_path):
  """The file stays and the lock goes with its process, whatever its time."""
  lock = tmp_path / "lock"
  lock.write_text("12345")
  os.utime(lock, (4e9, 4e9))
  with Workdir(tmp_path):
    assert lock.read_text() == str(os.getpid())
    with pytest.raises(
      ValueError, match=rf"in use by another run \(process {os.getpid()}\)"
    ):
      Workdir(tmp_path).__enter__()
  with Workdir(tmp_path):
    pass


class Terminal(io.RawIOBase):
  """Asks for a stop in the middle of its first line."""

  lines = 0

  def writable(self):
    return True

  def write(self, data):
    self.lines += 1
    if self.lines == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return len(data)


def test_a_signal_in_the_middle_of_a_printed_line(monkeypatch):
  terminal = Terminal()
  with StopSignals() as signals:
    stdout = io.TextIOWrapper(io.BufferedWriter(terminal))
    monkeypatch.setattr(sys, "stdout", stdout)
    print("half", flush=True)
    print("more", flush=True)
    monkeypatch.undo()
  assert signals.requested == "SIGTERM"
  assert terminal.lines == 2
