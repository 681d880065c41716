"""What jax's coordination service logs, and the sentence it becomes."""

import os
import subprocess
import sys

import pytest

from star_jax import peer_log

FACTS = peer_log.Facts(
  process_id=1,
  num_processes=4,
  coordinator_address="host:1234",
  join_timeout_s=60,
  heartbeat_timeout_s=20,
)
# As jax 0.10.2 writes it, shortened.
_FATAL = (
  "F1122 22:06:44.055850   27688 client.h:80] Terminating process because the"
  " JAX distributed service detected fatal errors. absl::Status: "
)
_STACK = (
  "*** Check failure stack trace: ***\n"
  "    @     0x7fb772840634  absl::lts_20260107::log_internal::Flush()\n"
)
_POLLED = (
  "E1122 22:06:44.055088   27672 coordination_service_agent.cc:289] Polled an"
  " error from coordination service.\n"
)
_LATE = (
  "DEADLINE_EXCEEDED: Barrier timed out. Id:"
  " [Init]Wait_for_all_tasks_to_register::0.\n# of tasks that reached the"
  " barrier: 2/4.\nThe first task at the barrier: 0. Some timed out task"
  " names:\n3\n2\n\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"
)
_LOST = (
  "UNAVAILABLE: The following tasks are unhealthy (stopped sending"
  " heartbeats):\n{}The tasks have crashed.\n"
)
_MEANINGS = {
  _LATE: "Processes 2, 3 of 4 did not join within 60 s; process 1 ends.",
  _LATE.replace("names:\n3\n2", "names:\n3"): "Process 3 of 4 did not join",
  _LOST.format("2\n"): "Process 2 of 4 was lost (no sign of life for 20 s)",
  _LOST.format("0\n3\n"): "Processes 0, 3 of 4 were lost",
  "INTERNAL: Shutdown barrier has failed.\nBarrier result: 'INTERNAL: task is"
  " set to ERROR: UNAVAILABLE: Task 2 heartbeat timeout. This indicates"
  " that'\n": "Process 2 of 4 was lost",
  "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader"
  " task was preempted\n": "Process 0 of 4, which coordinates the others at"
  " host:1234, was lost",
  "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC:"
  " /xla.coordination.CoordinationService/RegisterTask\n": "Process 1 of 4"
  " could not join at host:1234",
  "ALREADY_EXISTS: Aborted connect attempt as there is a request from a newer"
  " incarnation.\n": "Another process joined as process 1 of 4",
  "ABORTED: 3 unexpectedly tried to connect with a different incarnation. It"
  " has likely restarted.\n": "A second process 3 of 4 connected",
}


def passed(text: str, **options) -> str:
  written = []
  lines = peer_log.Filter(FACTS, written.append, **options)
  for line in text.splitlines(keepends=True):
    lines.line(line)
  lines.decide()
  return "".join(written)


@pytest.mark.parametrize("log,meaning", _MEANINGS.items())
def test_a_fatal_message_becomes_one_sentence(log, meaning):
  out = passed("before\n" + _POLLED + _FATAL + log + _STACK)
  before, sentence = out.splitlines()
  assert before == "before" and sentence.startswith(meaning), sentence


def test_verbatim_adds_the_sentence():
  log = _POLLED + _FATAL + _LOST.format("2\n") + _STACK
  out = passed(log, verbatim=True)
  (said,) = set(out.splitlines()) - set(log.splitlines())
  assert said.startswith("Process 2 of 4 was lost")
  assert out.replace(said + "\n", "") == log


def test_what_is_not_understood_passes():
  log = _POLLED + _FATAL + "INTERNAL: something new\n" + _STACK
  assert passed(log) == log
  # Errors that end nothing are somebody's to read, too.
  log = _POLLED + "W1122 22:06:44.1 1 other.cc:2] a line between\n" + _POLLED
  assert passed(log) == log


def test_a_held_line_is_written_when_nothing_follows():
  written = []
  lines = peer_log.Filter(FACTS, written.append)
  lines.line(_POLLED)
  assert not written and lines.held
  lines.decide()
  assert written == [_POLLED] and not lines.held


def test_the_script_reads_to_the_end_and_needs_nothing_else(tmp_path):
  """As star_jax.distributed starts it: isolated, without site packages."""
  options = (
    '{"process_id": 1, "num_processes": 4, "coordinator_address": "host:1234",'
    ' "join_timeout_s": 60, "heartbeat_timeout_s": 20, "verbatim": false}'
  )
  done = subprocess.run(
    [sys.executable, "-I", "-S", peer_log.__file__, options],
    input=_FATAL + _LATE + _STACK + "the end, without a newline",
    cwd=tmp_path,
    env=os.environ,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and not done.stderr
  assert done.stdout.startswith("Processes 2, 3 of 4 did not join")
