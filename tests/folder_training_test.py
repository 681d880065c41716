"""The three commands of docs/your_data.md, from a folder to a picture."""

import numpy as np
import pytest
from PIL import Image

from tests.train_script_test import STAR, TOKENIZER, script

TINY = (
  "--config.num_steps=4",
  "--config.batch_size=4",
  "--config.eval_batches=1",
  "--config.optimizer.warmup_steps=1",
)


@pytest.fixture
def photos(tmp_path):
  """Forty captioned discs and squares, one in eight held out by its name."""
  folder = tmp_path / "photos"
  folder.mkdir()
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:72, :90]
  for i in range(40):
    near = (
      np.hypot(y - 36, x - 45)
      if i % 2
      else np.maximum(abs(y - 36), abs(x - 45))
    )
    pixels = np.where(
      (near < 25)[..., None], rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    )
    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:04d}.png")
    caption = f"{'disc' if i % 2 else 'square'} number {i}"
    (folder / f"{i:04d}.txt").write_text(caption)
  return folder


def run(name, *args):
  code, out, err = script(*map(str, args), name=name)
  assert code == 0, err
  return out


@pytest.mark.long
def test_three_commands_lead_to_a_picture(photos, tmp_path):
  source = f"--config.data_options.folder.path={photos}"
  share = "--config.data_options.folder.heldout_share=0.2"
  tokenizer, model = tmp_path / "my_tokenizer", tmp_path / "my_model"
  cache = f"--config.cache.directory={tmp_path / 'my_tokens'}"
  bundle = f"--config.tokenizer_path={tokenizer / 'bundle'}"
  codes = "--config.tokenizer.vocab_size=64"
  run(
    "train",
    TOKENIZER,
    *("--config.data=folder", source, share, codes, *TINY),
    "--config.codebook.init_batches=4",
    f"--workdir={tokenizer}",
  )
  run(
    "encode_dataset",
    STAR,
    *("--config.cache.source=folder", source, share, bundle, cache),
    "--config.cache.examples=64",
    "--config.cache.heldout_examples=8",
    "--config.cache.batch_size=4",
    "--config.cache.shard_examples=24",
    "--processes=2",
  )
  out = run(
    "train",
    STAR,
    *(bundle, cache, *TINY, "--config.model.vocab_size=64"),
    "--config.model.depth=2",
    "--config.sampling.prompts=('disc number 1',)",
    f"--workdir={model}",
  )
  assert "Finished 4 steps" in out
  run("sample", f"--ckpt={model / 'bundle'}", f"--out={tmp_path}", "a disc")
  pictures = [p for p in tmp_path.glob("*.png") if "sheet" not in p.name]
  assert [Image.open(p).size for p in pictures] == [(64, 64)]
