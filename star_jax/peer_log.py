"""Turns what jax's coordination service logs into one sentence.

When a process cannot join or another one is lost, jax ends this process from
C++: a screenful of log and a stack trace, then SIGABRT. Nothing in Python runs
any more, so what says it clearly is another process: this file is started as
a script (`star_jax.distributed` does that), reads what the training process
writes to file descriptor 2 and passes it on, except that messages of the
coordination service become a sentence where their meaning is known.

Only the standard library is used: the script starts in hundredths of a second
and has nothing to wait for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import select
import signal
import sys
from collections.abc import Callable

# Log lines begin with severity, date, time, thread and place in the source.
_HEADER = re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\] ")
_SOURCES = (
  "client.h",
  "coordination_service.cc",
  "coordination_service_agent.cc",
  "preemption_sync_manager.cc",
)
_STACK = ("*** Check failure stack trace", "    @ ")
# The lines of one message come within milliseconds of each other.
_PATIENCE_S = 2.0

_GOES_ON = "started again together, they go on from the last checkpoint"


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the log does not say about the process that wrote it."""

  process_id: int
  num_processes: int
  coordinator_address: str
  join_timeout_s: int
  heartbeat_timeout_s: int


def translate(message: str, facts: Facts) -> str | None:
  """The sentence that a fatal message of jax 0.10 means, None if unknown."""
  this, total = facts.process_id, facts.num_processes
  if "Wait_for_all_tasks_to_register" in message:
    late = _numbers(message, r"timed out task names:\n((?:\d+\n)+)")
    return (
      f"{_processes(late, total)} did not join within"
      f" {facts.join_timeout_s} s; process {this} ends. Look at the output of"
      " what did not join, or give --join_timeout more time."
    )
  if found := re.search(r"(\d+) unexpectedly tried to connect", message):
    return (
      f"A second process {found[1]} of {total} connected: two were given the"
      " same --process_id, or one died and came back alone; process"
      f" {this} ends. All processes are started together."
    )
  if "newer incarnation" in message:
    return (
      f"Another process joined as process {this} of {total}: every process"
      " needs a --process_id of its own."
    )
  lost = _numbers(message, r"sending heartbeats\):\n((?:\d+\n)+)")
  lost |= set(map(int, re.findall(r"Task (\d+) heartbeat timeout", message)))
  if lost:
    was = "was" if len(lost) == 1 else "were"
    return (
      f"{_processes(lost, total)} {was} lost (no sign of life for"
      f" {facts.heartbeat_timeout_s} s); process {this} ends as well. All"
      f" {total} processes are needed: {_GOES_ON}."
    )
  if "/RegisterTask" in message and "DEADLINE_EXCEEDED" in message:
    return (
      f"Process {this} of {total} could not join at"
      f" {facts.coordinator_address}: process 0 must run on that machine with"
      " this address, and its port must be reachable from here."
    )
  if "Failed to send RPC to coordination service" in message:
    return (
      f"Process 0 of {total}, which coordinates the others at"
      f" {facts.coordinator_address}, was lost; process {this} ends as well."
      f" All {total} processes are needed: {_GOES_ON}."
    )
  return None


def _numbers(message: str, pattern: str) -> set[int]:
  return {
    int(n) for found in re.findall(pattern, message) for n in found.split()
  }


def _processes(numbers: set[int], total: int) -> str:
  names = ", ".join(map(str, sorted(numbers))) or "Some"
  if len(numbers) == 1:
    return f"Process {names} of {total}"
  return f"Processes {names} of {total}" if numbers else f"{names} of {total}"


class Filter:
  """Passes lines on; holds messages of the coordination service back.

  Held lines are written when they turn out to mean something else: when
  nothing follows them for a while, when another part of the program writes,
  or at a fatal message that `translate` does not know.
  """

  def __init__(
    self, facts: Facts, write: Callable[[str], None], *, verbatim: bool = False
  ):
    """`verbatim` passes everything on and adds the sentence."""
    self._facts = facts
    self._write = write
    self._verbatim = verbatim
    self._said = False
    self.held: list[str] = []

  def line(self, line: str) -> None:
    """Takes one line, its newline included."""
    header = _HEADER.match(line)
    # A line without a header belongs to the message before it.
    inside = self._said or bool(self.held)
    ours = header[2] in _SOURCES if header else inside
    if line.startswith(_STACK):
      self.decide()
      ours = self._said
    if not ours:
      self.decide()
    if self._verbatim or not ours:
      self._write(line)
    # What follows from that which was said needs no telling.
    if ours and not self._said:
      self.held.append(line)

  def decide(self) -> None:
    """Nothing more belongs to the held lines: says what they mean."""
    held, self.held = "".join(self.held), []
    if self._said or not held:
      return
    fatal = "Terminating process because" in held
    sentence = translate(held, self._facts) if fatal else None
    if sentence:
      self._said = True
      self._write(sentence + "\n")
    elif not self._verbatim:
      self._write(held)


def main() -> None:
  options = json.loads(sys.argv[1])
  verbatim = options.pop("verbatim")
  # It ends with the training process, whoever else is told to end.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)

  def write(text: str) -> None:
    os.write(1, text.encode(errors="replace"))

  lines = Filter(Facts(**options), write, verbatim=verbatim)
  rest = b""
  while True:
    patience = _PATIENCE_S if lines.held else None
    if not select.select([0], [], [], patience)[0]:
      lines.decide()
      continue
    chunk = os.read(0, 1 << 16)
    if not chunk:
      break
    *whole, rest = (rest + chunk).split(b"\n")
    for line in whole:
      lines.line(line.decode(errors="replace") + "\n")
  if rest:
    lines.line(rest.decode(errors="replace") + "\n")
  lines.decide()


if __name__ == "__main__":
  main()
