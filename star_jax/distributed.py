"""Several processes as one run: joining them, and leaving when one is lost.

`jax.distributed` does the work. Here are the settings it is given, and one
sentence for everything that can go wrong:

  with session(settings):
    train_and_evaluate(...)

A process that jax ends from C++ (nobody answers, one never joins, one is lost)
says so through `star_jax.peer_log`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

from absl import flags

from star_jax import cli, peer_log

# jax 0.10.2 reads the first and the last of these itself, the two between
# nowhere; launchers set all of them.
ADDRESS_ENV = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES_ENV = "JAX_NUM_PROCESSES"
PROCESS_ID_ENV = "JAX_PROCESS_ID"
DEVICES_ENV = "JAX_LOCAL_DEVICE_IDS"

# How long a process waits longer than the service that tells who is missing.
_ANSWER_S = 15
# What a broken connection to another process is called by gloo, NCCL, gRPC,
# the coordination service and the sockets below them.
_LOST = re.compile(
  r"gloo|nccl|coordination|UNAVAILABLE|DEADLINE_EXCEEDED|barrier"
  r"|connection (closed|reset|refused)",
  re.IGNORECASE,
)
# Time for the others to say their own error before process 0, on which they
# all depend, is gone.
_LAST_WORDS_S = 3.0
# Runs star_jax.peer_log; there is one stderr and so one of these.
_reporter: subprocess.Popen | None = None

# The flags below belong to the script that defines them, and to its --help.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class Settings:
  """How this process finds the others; see `define_flags`.

  Without the first four it is a run of one process.
  """

  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  auto_detect: bool = False
  join_timeout_s: int = 300
  heartbeat_timeout_s: int = 100


def define_flags() -> None:
  """Defines the flags of a script whose run can have several processes."""
  flags.DEFINE_string(
    "coordinator_address",
    None,
    "host:port on which process 0 of a run of several processes listens"
    f" (or {ADDRESS_ENV}).",
  )
  flags.DEFINE_integer(
    "num_processes",
    None,
    f"How many processes the run has (or {NUM_PROCESSES_ENV}).",
  )
  flags.DEFINE_integer(
    "process_id",
    None,
    f"Which of them this one is, from 0 (or {PROCESS_ID_ENV}).",
  )
  flags.DEFINE_bool(
    "distributed",
    False,
    "Let jax find out what is not given of these three: under Slurm, Open MPI,"
    " on TPU pods and in Kubernetes jobs.",
  )
  flags.DEFINE_integer(
    "join_timeout",
    Settings.join_timeout_s,
    "Seconds within which all processes must have joined.",
    lower_bound=1,
  )
  flags.DEFINE_integer(
    "heartbeat_timeout",
    Settings.heartbeat_timeout_s,
    "Seconds without a sign of life after which a process counts as lost and"
    " the others end.",
    lower_bound=1,
  )


def settings_from_flags() -> Settings:
  """What the flags of `define_flags` say, and the environment where they don't.

  Raises:
    ValueError: a variable of the environment is no number.
  """
  values = flags.FLAGS
  num_processes, process_id = values.num_processes, values.process_id
  if num_processes is None:
    num_processes = _number_from(NUM_PROCESSES_ENV)
  if process_id is None:
    process_id = _number_from(PROCESS_ID_ENV)
  return Settings(
    coordinator_address=values.coordinator_address
    or os.environ.get(ADDRESS_ENV)
    or None,
    num_processes=num_processes,
    process_id=process_id,
    auto_detect=values.distributed,
    join_timeout_s=values.join_timeout,
    heartbeat_timeout_s=values.heartbeat_timeout,
  )


@contextlib.contextmanager
def session(settings: Settings) -> Iterator[None]:
  """Joins the processes of the run for the length of a `with` block.

  Does nothing in a run of one process. In others an exception that leaves the
  block ends the program here, with one sentence and without the meeting of
  all processes that a good end has: the others could be waiting for this one
  somewhere else. If the exception is a broken connection, the coordination
  service is given its time to tell which process was lost.

  Raises:
    ValueError: see `initialize`.
  """
  alone = not initialize(settings)
  try:
    yield
  except BaseException as error:
    if alone or (isinstance(error, SystemExit) and not error.code):
      raise
    _leave(error, settings)


def initialize(settings: Settings) -> bool:
  """Joins the other processes. Must come before anything that asks for devices.

  Returns when all have joined. Where one is missing, jax ends this process
  (status 134) after a sentence on stderr.

  Returns:
    False, and nothing was done, where the settings name no other processes.

  Raises:
    ValueError: incomplete or wrong settings, no cluster found, an unknown host
      name, a port that process 0 cannot have.
  """
  settings, local_device_ids = _complete(settings)
  if settings.num_processes is None:
    return False
  import jax
  from jax._src.lib import _jax

  _check(settings)
  host, _, port = settings.coordinator_address.rpartition(":")
  _wait_for_name(host.strip("[]"), settings.join_timeout_s)
  if settings.process_id == 0:
    _check_port(int(port))
  _start_reporter(settings)
  # jax has no parameter for this: by default the service waits an hour, and
  # processes give up before it says which one is missing.
  start_service = _jax.get_distributed_runtime_service
  _jax.get_distributed_runtime_service = functools.partial(
    start_service, cluster_register_timeout=settings.join_timeout_s
  )
  try:
    jax.distributed.initialize(
      settings.coordinator_address,
      settings.num_processes,
      settings.process_id,
      local_device_ids=local_device_ids,
      initialization_timeout=settings.join_timeout_s + _ANSWER_S,
      heartbeat_timeout_seconds=settings.heartbeat_timeout_s,
    )
  finally:
    _jax.get_distributed_runtime_service = start_service
  return True


def _complete(settings: Settings) -> tuple[Settings, list[int] | None]:
  """The settings with what jax detects, and the devices of this process.

  Unchanged, without a number of processes, where nothing was given.
  """
  devices = os.environ.get(DEVICES_ENV)
  local = [int(number) for number in devices.split(",")] if devices else None
  found = (
    settings.coordinator_address,
    settings.num_processes,
    settings.process_id,
  )
  if settings.auto_detect:
    *found, local = _detect(*found, local, settings.join_timeout_s)
  names = ("--coordinator_address", "--num_processes", "--process_id")
  missing = [name for name, value in zip(names, found) if value is None]
  if len(missing) == len(names) and not settings.auto_detect:
    return settings, None
  if missing:
    if settings.auto_detect:
      raise ValueError(
        "--distributed: jax finds no cluster here (Slurm, Open MPI, a TPU pod,"
        f" a Kubernetes job); {' and '.join(missing)} must be given."
      )
    raise ValueError(
      f"{' and '.join(missing)} must be given too: a run of several processes"
      f" needs {', '.join(names)} (or {ADDRESS_ENV}, {NUM_PROCESSES_ENV},"
      f" {PROCESS_ID_ENV}), or --distributed on a cluster."
    )
  address, num_processes, process_id = found
  return dataclasses.replace(
    settings,
    coordinator_address=address,
    num_processes=num_processes,
    process_id=process_id,
  ), local


def _detect(*known) -> tuple:
  """Lets jax fill in what is None; the same call as jax.distributed makes."""
  from jax._src.clusters import ClusterEnv

  *values, local, timeout = known
  try:
    return ClusterEnv.auto_detect_unset_distributed_params(
      *values, local, None, timeout
    )
  except (RuntimeError, ImportError, KeyError, ValueError) as error:
    raise ValueError(
      f"--distributed: jax could not read this cluster ({cli.sentence(error)})."
    ) from error


def _check(settings: Settings) -> None:
  total, this = settings.num_processes, settings.process_id
  if total < 1:
    raise ValueError(f"--num_processes is 1 or more, got {total}.")
  if not 0 <= this < total:
    raise ValueError(
      f"--process_id is from 0 to {total - 1} in a run of {total} processes,"
      f" got {this}."
    )
  host, colon, port = settings.coordinator_address.rpartition(":")
  numeric = port.isdecimal() and 0 < int(port) < 65536
  if not (host and colon and numeric):
    raise ValueError(
      "--coordinator_address is host:port with a port from 1 to 65535, got"
      f" {settings.coordinator_address!r}."
    )


def _wait_for_name(host: str, timeout_s: int) -> None:
  """Waits until `host` has an address: in Kubernetes names come with pods."""
  end = time.monotonic() + timeout_s
  told = False
  while True:
    try:
      socket.getaddrinfo(host, None)
      return
    except (OSError, UnicodeError) as error:
      if time.monotonic() >= end:
        raise ValueError(
          f"No machine called {host!r} is known here after {timeout_s} s; see"
          " --coordinator_address and --join_timeout."
        ) from error
    if not told:
      print(
        f"Waiting for a machine called {host!r} to become known, up to"
        f" {timeout_s} s.",
        file=sys.stderr,
        flush=True,
      )
      told = True
    time.sleep(1)


def _check_port(port: int) -> None:
  """Of process 0: jax 0.10.2 crashes where another program has the port."""
  ipv6 = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if ipv6 else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=ipv6).close()
  except OSError as error:
    raise ValueError(
      f"Process 0 cannot listen on port {port} of this machine"
      f" ({error.strerror}); is another run using it, or a second process 0?"
    ) from error


def _start_reporter(settings: Settings) -> None:
  """From here on, what C++ writes to stderr goes through peer_log.

  Python keeps the real stderr: progress bars see the terminal they write to.
  """
  global _reporter
  if _reporter is not None:
    return
  facts = peer_log.Facts(
    settings.process_id,
    settings.num_processes,
    settings.coordinator_address,
    settings.join_timeout_s,
    settings.heartbeat_timeout_s,
  )
  options = dataclasses.asdict(facts) | {
    "verbatim": bool(os.environ.get(cli.TRACEBACK_ENV))
  }
  sys.stderr.flush()
  stderr = os.dup(2)
  _reporter = subprocess.Popen(
    [sys.executable, "-I", "-S", peer_log.__file__, json.dumps(options)],
    stdin=subprocess.PIPE,
    stdout=stderr,
    # Ctrl-C in the terminal is for the training process alone.
    start_new_session=True,
  )
  os.dup2(_reporter.stdin.fileno(), 2)
  # The reporter ends when the last copy of this end of the pipe is closed.
  _reporter.stdin.close()
  sys.stderr = os.fdopen(
    stderr, "w", buffering=1, errors="backslashreplace", closefd=False
  )


def _leave(error: BaseException, settings: Settings) -> None:
  """Says what the error is and ends this process, and no other."""
  import jax

  this = f"Process {jax.process_index()} of {jax.process_count()}"
  text = cli.sentence(error)
  if isinstance(error, Exception) and _LOST.search(text):
    wait = settings.heartbeat_timeout_s + _ANSWER_S
    print(
      f"{this}: the connection to another process broke; which one is known"
      f" within {wait} s.",
      file=sys.stderr,
      flush=True,
    )
    # If one was lost, jax ends this process while it sleeps.
    time.sleep(wait)
  user_error = isinstance(error, (ValueError, OSError))
  if isinstance(error, KeyboardInterrupt):
    status, text = 130, "interrupted."
  elif isinstance(error, SystemExit):
    status, text = 1, f"ends with status {error.code}."
    if isinstance(error.code, int):
      status = error.code
  else:
    status = cli.EXIT_BAD_INPUT if user_error else 1
    if not user_error or os.environ.get(cli.TRACEBACK_ENV):
      traceback.print_exception(error)
  print(f"{this}: {text}", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    time.sleep(_LAST_WORDS_S)
  os._exit(status)


def _number_from(variable: str) -> int | None:
  text = os.environ.get(variable)
  if not text:
    return None
  try:
    return int(text)
  except ValueError as error:
    raise ValueError(f"{variable} is a whole number, got {text!r}.") from error
