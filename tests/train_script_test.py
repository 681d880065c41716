"""launch/train.py as a user meets it: flags, refusals, a whole tiny run."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZER = "--config=configs/tokenizer_scenes64.py"
STAR = "--config=configs/star_scenes64.py"


def script(*args, name="train"):
  done = subprocess.run(
    [sys.executable, f"launch/{name}.py", *args],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


def test_print_config_shows_the_merged_tree_and_trains_nothing():
  code, out, _ = script(
    TOKENIZER, "--print_config", "--config.optimizer.learning_rate=0.125"
  )
  assert code == 0
  assert "learning_rate: 0.125" in out and "usage_decay: 0.99" in out


@pytest.mark.parametrize(
  "args,message",
  [
    ([TOKENIZER, "--config.optimizer.lr=1"], "no key 'lr'"),
    ([TOKENIZER, "--config.batch_size=many"], "batch_size"),
    ([TOKENIZER + ":huge"], "'huge'"),
    (["--config=configs/absent.py"], "absent.py"),
    (
      [TOKENIZER + ":runlocal", "--config.data_options.size=(30, 30)"],
      "config.data_options.size = (30, 30) is not a multiple of 4",
    ),
    ([], "--config is needed"),
    ([TOKENIZER, "extra"], "extra"),
    ([TOKENIZER, "--compare_to=absent.json"], "No curves at absent.json"),
    ([TOKENIZER, "--profile_steps=5"], "such as 10:15"),
  ],
)
def test_a_wrong_flag_is_one_sentence(args, message):
  code, _, err = script(*args)
  assert code == 2, err
  assert message in err
  assert len(err.strip().splitlines()) == 1, err


def test_the_cache_script_needs_a_config_too():
  code, _, err = script(name="encode_dataset")
  assert code == 2 and "--config is needed" in err


@pytest.mark.long
@pytest.mark.parametrize("config", [TOKENIZER, STAR])
def test_runlocal_runs_without_data_and_goes_on(config, tmp_path):
  workdir = f"--workdir={tmp_path}"
  code, out, err = script(f"{config}:runlocal", workdir)
  assert code == 0, err
  for part in ("Parameters", "GFLOP a step", "images/s", "ETA", "Finished 20"):
    assert part in out
  assert (tmp_path / "bundle" / "bundle.json").exists()
  code, out, err = script(
    f"{config}:runlocal",
    workdir,
    "--config.num_steps=22",
    f"--compare_to={tmp_path / 'curves.json'}",
  )
  assert code == 0, err
  assert "Restored step 20" in out
  assert (tmp_path / "curves.png").exists()
