"""The loss of the last scales of several runs: mean, table, figure, errors."""

import json

import pytest

from star_jax.metrics import fine_loss
from star_jax.scales import ScaleSchedule

SCHEDULE = ScaleSchedule.from_patch_nums([1, 2, 4])


def written(folder, name, points):
  path = folder / f"{name}.json"
  curves = {"heldout/loss_k": points} if points else {}
  path.write_text(json.dumps({"name": name, "curves": curves}))
  return str(path)


def test_tokens_of_the_last_scales_count_alike():
  run = {"name": "x", "curves": {"heldout/loss_k": [[5, [9.0, 1.0, 2.0]]]}}
  found = fine_loss.fine_loss(run, SCHEDULE, 2)
  assert found == {5: pytest.approx((4 * 1.0 + 16 * 2.0) / 20)}
  assert fine_loss.fine_loss(run, SCHEDULE, 1) == {5: 2.0}


def test_runs_are_drawn_together_and_listed_by_step(tmp_path, capsys):
  first = written(tmp_path, "first", [[0, [3, 3, 3]], [10, [1, 1, 1]]])
  second = written(tmp_path, "second", [[0, [4, 4, 4]], [20, [2, 2, 2]]])
  out = tmp_path / "new" / "figure.png"
  fine_loss.main(["--schedule=1,2,4", f"--out={out}", first, second])
  rows = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in capsys.readouterr().out.splitlines()
  ]
  assert rows[0] == ["step", "first", "second"]
  assert rows[2:] == [
    ["0", "3.000", "4.000"],
    ["10", "1.000", "-"],
    ["20", "-", "2.000"],
  ]
  assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
  ("points", "args", "sentence"),
  [
    ([[0, [1, 1]]], [], "The run x has 2 scales, --schedule 3."),
    ([], [], "The run x has no curve heldout/loss_k."),
    ([[0, [1, 1, 1]]], ["--scales=4"], r"--scales is in \[1, 3\] for this"),
  ],
)
def test_curves_that_do_not_fit(tmp_path, points, args, sentence):
  path = written(tmp_path, "x", points)
  with pytest.raises(SystemExit, match=sentence):
    fine_loss.main(["--schedule=1,2,4", *args, path])
