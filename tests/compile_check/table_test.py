"""The table of targets: rows from files, what fits, what is skipped."""

import pytest

from star_jax.compile_check import bounds, commands, memory, records, table
from star_jax.compile_check.collectives import Collective
from star_jax.compile_check.roofline import Roofline, Sent
from star_jax.sharding import make_mesh


def keep(folder, batch, peak):
  """A record of a made-up program on eight devices."""
  mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
  target = commands.find_target("v5e:2x4")
  request = commands.Request(target, mesh, (batch,), False, "tiny", folder)
  gathered = Collective("all-gather", 3_000_000, ("f32[9]",), (0, 1), "", "x")
  found = bounds.Bounds(
    model_flops=1e12,
    executed_flops=2e12,
    traced_flops=2e12,
    roofline=Roofline(
      seconds=0.02,
      compute=0.019,
      exposed=0.001,
      flops=2_100_000_000_000,
      sent=[Sent(gathered, 3, 0.001, 0.001)],
    ),
    mfu=0.25,
    counted=True,
  )
  sizes = memory.Memory(peak, 0, 0, 0, 0, 1.0, "HLO")
  return records.write(request, "train", batch, sizes, found)


def test_figures_are_kept_in_a_file_a_program(tmp_path):
  path = keep(tmp_path, 4, 2 * 10**9)
  assert path.name == "tiny_train_v5e-2x4_data2-fsdp2-tensor2_b4.json"
  (record,) = records.read(tmp_path)
  assert record["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
  assert record["parts"] == 4
  assert record["memory"]["peak"] == 2 * 10**9
  assert record["bounds"]["bound"] == "compute"
  assert record["bounds"]["bytes_sent"] == {"all-gather": 9_000_000}
  assert "hlo" not in record["memory"]


def test_rows_and_the_batch_that_fits(tmp_path):
  keep(tmp_path, 4, 2 * 10**9)
  # 95% of 17.18 GB are 16.32 GB; one more picture a part costs 1.5 GB.
  keep(tmp_path, 8, 35 * 10**8)
  (row,) = table.rows(records.read(tmp_path))
  assert row == (
    "tiny", "train", "v5e:2x4", "data=2, fsdp=2, tensor=2", "-", "8",
    "3.50 GB",
    "20%", "10", "2.10", "+5.0%", "20.0 ms", "compute", "5.0%", "25.0%", "3 MB",
  )  # fmt: skip


def test_the_table_takes_its_place_in_a_file(tmp_path):
  keep(tmp_path, 4, 10**9)
  path = tmp_path / "targets.md"
  path.write_text(f"Before\n{table.BEGIN}\nold\n{table.END}\nAfter\n")
  table.write(path, records.read(tmp_path))
  text = path.read_text()
  assert text.startswith("Before\n") and text.endswith("\nAfter\n")
  assert "| tiny | train |" in text and "old" not in text
  wanted = [
    table.Job(name, "c.py", "v5e:2x4") for name in ("tiny", "huge", "vast")
  ]
  table.write(path, records.read(tmp_path), wanted)
  assert "Not compiled yet:\n\n- v5e:2x4: huge, vast\n" in path.read_text()
  path.write_text("no marks")
  with pytest.raises(ValueError, match="has no place for a table"):
    table.write(path, [])


def test_what_has_ended_is_not_run_again(tmp_path, monkeypatch):
  ran = []

  def run(command, **_):
    ran.append(command)
    status = {"--target=a100": 1, "--target=h100": 2}[command[4]]
    return table.subprocess.CompletedProcess(command, status, "out", "why")

  monkeypatch.setattr(table.subprocess, "run", run)
  wanted = [table.Job("m", "c.py", target) for target in ("a100", "h100")]
  table.fill(tmp_path, wanted)
  table.fill(tmp_path, wanted)
  # Above a limit is a result; a missing compiler is none.
  assert [command[4] for command in ran] == [
    "--target=a100", "--target=h100", "--target=h100",
  ]  # fmt: skip
  assert (tmp_path / "m_a100.md").read_text() == "out"


def test_every_preset_is_meant_for_every_target():
  from configs.presets import PRESETS

  found = table.jobs()
  official = {name for name in PRESETS if name[:4] in ("star", "var_")}
  assert {job.model for job in found} == official
  assert len(found) == 5 * len(official)
  (largest,) = (job for job in found if job.name == "star_d30_1024_v5e-16x16")
  assert largest.parts == 64 and dict(largest.mesh)["sequence"] == 4
  assert f"--batch={64 * largest.pictures}" in largest.command("runs")


def test_one_batch_says_how_many_fit_at_least():
  sizes = dict(peak=8e9, arguments=3e9, unread=1e9, of=10e9)
  record = dict(batch=8, parts=4, memory=sizes)
  # 4 GB of two pictures, and 1.5 GB of room.
  assert table.fitting([record]) == ">= 2"
  # Too large already.
  large = dict(record, memory=dict(sizes, peak=12e9))
  assert table.fitting([large]) == "<= 1"
