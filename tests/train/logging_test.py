import json
import re
import resource

import numpy as np
import pytest
from PIL import Image

from star_jax.train import curves
from star_jax.train.logging import (
  Progress,
  RunLog,
  format_seconds,
  read_metrics,
)


def write(workdir, steps, start=0):
  log = RunLog(workdir, start)
  for step in steps:
    log.scalars(step, "train", {"loss": 1 / step, "loss_k": np.ones(2) * step})
  log.close()


def test_rows_past_the_resumed_step_are_replaced(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  write(tmp_path, [3, 4, 5], start=2)
  rows = read_metrics(tmp_path)
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
  assert rows[1]["loss"] == 0.5 and rows[1]["loss_k"] == [2.0, 2.0]


def test_a_run_that_starts_anew_measures_its_start_anew(tmp_path):
  for loss in (1.0, 2.0):
    log = RunLog(tmp_path, 0)
    log.scalars(0, "heldout", {"loss": loss})
    log.close()
  assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
  write(tmp_path, [1, 2])
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text()[:-10])
  assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_pictures_lie_in_samples(tmp_path):
  log = RunLog(tmp_path, 0)
  path = log.picture(12, "grid", Image.new("RGB", (3, 2), (9, 8, 7)))
  log.close()
  assert path == tmp_path / "samples" / "grid-0000012.png"
  assert Image.open(path).getpixel((2, 1)) == (9, 8, 7)


@pytest.mark.parametrize(
  "seconds,text",
  [(0, "0s"), (59.9, "59s"), (192, "3m12s"), (18_180, "5h03m"),
   (187_200, "2d04h")],
)  # fmt: skip
def test_format_seconds(seconds, text):
  assert format_seconds(seconds) == text


def test_progress_leaves_pauses_out_and_shows_what_is_left(monkeypatch):
  now = [100.0]
  monkeypatch.setattr("time.perf_counter", lambda: now[0])
  progress = Progress(first_step=10, num_steps=110, batch_size=8)
  now[0] += 30
  progress.pause(10)
  rates = progress.rates(20)
  assert rates["steps_per_second"] == pytest.approx(0.5)
  assert rates["images_per_second"] == pytest.approx(4.0)
  line = progress.line(
    20, {"loss": 1.25, "gflops_per_second": 3, "hidden": 1, **rates}
  )
  assert "step 20/110 (18.2%) loss 1.25 |" in line
  assert "ETA 3m00s" in line and "hidden" not in line


def test_curves_are_thinned_and_keep_their_scales(tmp_path):
  write(tmp_path, range(1, 1001))
  run = json.loads(curves.write_curves(tmp_path, "mine").read_text())
  assert run["name"] == "mine"
  points = run["curves"]["train/loss_k"]
  assert len(points) == curves.MAX_POINTS
  assert points[-1] == [1000, [995.5, 995.5]]
  assert (tmp_path / curves.CURVES_FILE).stat().st_size < 20_000


def test_two_runs_in_one_figure(tmp_path):
  (tmp_path / "a").mkdir()
  write(tmp_path / "a", [1, 2])
  run = curves.run_curves(tmp_path / "a", "a")
  path = curves.draw_curves([run, run | {"name": "b"}], tmp_path / "c.png")
  assert Image.open(path).size[0] > 100


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1, "curves": 2}'])
def test_a_file_that_holds_no_curves_is_refused(tmp_path, text):
  path = tmp_path / "x.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"x.json holds no curves"):
    curves.read_curves(path)
  with pytest.raises(ValueError, match=r"No curves at .*absent"):
    curves.read_curves(tmp_path / "absent")


@pytest.fixture
def full_disk():
  """A limit on file size makes writes fail, as a full disk does."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(
    resource.RLIMIT_FSIZE, (size, before[1])
  )
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("scales", [1, 8])
def test_a_full_disk_is_an_error_and_never_a_wait(tmp_path, full_disk, scales):
  """Of many scales the curves outgrow the limit long before the rows."""
  log = RunLog(tmp_path, 0)
  full_disk(3_000)
  said = []
  for step in range(1, 101):
    try:
      log.scalars(step, "train", {"loss_k": np.ones(scales)})
    except OSError as error:
      said.append(str(error))
  assert len(said) > 20
  for text in said:
    assert re.match(
      rf"What step \d+ gave could not be written to {tmp_path} \(File too", text
    )
  log.close()


def test_restarts_within_a_second_keep_their_curves(tmp_path):
  write(tmp_path, [1, 2])
  write(tmp_path, [3], start=2)
  found = sorted((tmp_path / "tensorboard").iterdir())
  assert len(found) == 2
  assert [path.read_bytes().count(b"train/loss_k/1") for path in found] == [
    2,
    1,
  ]


def test_a_row_that_is_there_is_not_written_again(tmp_path):
  write(tmp_path, [1, 2])
  log = RunLog(tmp_path, 2)
  assert log.has_scalars(2, "train") and not log.has_scalars(2, "heldout")
  log.scalars(2, "train", {"loss": 9.0})
  log.close()
  assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 0.5]
