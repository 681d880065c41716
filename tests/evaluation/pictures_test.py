"""Folders and arrays of pictures to a result file, end to end and refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs.evaluate import get_config
from star_jax.evaluation import collect as collect_lib
from star_jax.evaluation import command, networks, speed
from star_jax.evaluation.collect import Extractor, collect
from star_jax.evaluation.networks import Network, load_network
from star_jax.evaluation.pictures import (
  PictureArray,
  PictureFolder,
  batches,
  open_pictures,
)
from star_jax.evaluation.reference import load_reference
from star_jax.evaluation.statistics import Statistics

SETTINGS = {"reservoir": 64, "seed": 0, "class_splits": 2}


def tiny_network(name="efficientnet-lite0", weights="abc"):
  """Features that are means of the pixels, weighted at random."""
  rng = np.random.default_rng(0)
  params = {
    key: rng.standard_normal((3, width)).astype(np.float32)
    for key, width in (("pool", 8), ("spatial", 5), ("logits", 4))
  }

  def apply(params, image_BHW3):
    mean_B3 = image_BHW3.astype(np.float32).mean((1, 2)) / 64 - 2
    spread = image_BHW3.astype(np.float32).std((1, 2)) / 64
    return {k: mean_B3 @ w + spread @ w[:, ::-1] for k, w in params.items()}

  return Network(
    name=name,
    weights=weights,
    resize="none",
    widths={"pool": 8, "spatial": 5, "logits": 4},
    words=load_words(),
    params=params,
    apply=apply,
  )


def load_words():
  return networks._EFFICIENTNET_WORDS


def draw(n, seed=0, size=(6, 5), low=0):
  rng = np.random.default_rng(seed)
  base = rng.integers(low, 200, (n, 1, 1, 3))
  return (base + rng.integers(0, 56, (n, *size, 3))).astype(np.uint8)


def save(folder, images):
  folder.mkdir(parents=True, exist_ok=True)
  for i, image in enumerate(images):
    Image.fromarray(image).save(folder / f"{i:04d}.png")
  return folder


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setattr(command, "load_network", lambda *_: tiny_network())
  config = get_config().pictures
  config.batch_size, config.class_splits = 8, 2
  config.kernel_subset_size, config.kernel_subsets = 20, 3
  return config


def test_folders_to_a_result(tmp_path, config):
  fake, real = draw(30, low=90), draw(41, seed=1)
  result = command.evaluate_pictures(
    save(tmp_path / "fake", fake),
    save(tmp_path / "real", real),
    config,
    tmp_path / "out",
    print_line=lambda line: None,
  )
  stored = json.loads((tmp_path / "out" / "pictures.json").read_text())
  assert stored["values"]["frechet"] == result["values"]["frechet"] > 0.01
  assert stored["protocol"]["weights"] == "abc"
  names = [row[0] for row in stored["table"]]
  assert names[0] == "EfficientNet-lite0 Frechet distance" and len(names) == 6
  assert not any("FID" in name or "KID" in name for name in names)
  # All features at once give the same.
  network = tiny_network()
  x, y = (
    np.asarray(network.apply(network.params, z)["pool"]) for z in (fake, real)
  )
  from star_jax.evaluation.distances import frechet_distance
  from star_jax.evaluation.moments import Moments

  expected = frechet_distance(Moments.of(x), Moments.of(y))
  np.testing.assert_allclose(stored["values"]["frechet"], expected, rtol=1e-5)
  # Statistics of an earlier run serve as the reference.
  again = command.evaluate_pictures(
    tmp_path / "fake",
    tmp_path / "out" / "reference.npz",
    config,
    tmp_path / "again",
    print_line=lambda line: None,
  )
  assert again["values"] == result["values"]


def test_categories(tmp_path, config):
  for name, seed in (("art", 0), ("food", 1)):
    save(tmp_path / "fake" / name, draw(12, seed))
    save(tmp_path / "real" / name, draw(14, seed + 5))
  run = lambda: command.evaluate_pictures(  # noqa: E731
    tmp_path / "fake",
    tmp_path / "real",
    config,
    tmp_path / "out",
    per_category=True,
    print_line=lambda line: None,
  )
  values = run()["values"]
  assert set(values["categories"]) == {"art", "food"}
  assert values["generated"] == 24 and values["sample"] == [24, 28]
  save(tmp_path / "fake" / "logo", draw(12))
  with pytest.raises(ValueError, match="lacks the categories logo"):
    run()
  save(tmp_path / "fake", draw(1))
  with pytest.raises(ValueError, match=r"0000.png is in none"):
    run()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
  network, images = tiny_network(), draw(30)
  folder = PictureFolder.of(save(tmp_path / "x", images))
  extractor = Extractor(network, 4, jax.devices()[:2])
  path = tmp_path / "state.npz"
  run = lambda path, **more: collect(  # noqa: E731
    folder, extractor, SETTINGS, path, save_seconds=0, **more
  )
  whole = run(tmp_path / "whole.npz")

  def stop(done, total):
    if done == 12:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(path, progress=stop)
  # The batch that was being worked on is lost.
  assert Statistics.load(path).done == 8
  seen = []
  monkeypatch.setattr(
    collect_lib,
    "batches",
    lambda p, size, start: seen.append(start) or batches(p, size, start),
  )
  resumed = run(path)
  assert seen == [8] and resumed.done == 30
  np.testing.assert_allclose(resumed.pool.outer_DD, whole.pool.outer_DD)
  np.testing.assert_array_equal(resumed.sample.rows_RD, whole.sample.rows_RD)
  assert resumed.classes.score() == whole.classes.score()
  # Another picture: nothing old is used.
  save(tmp_path / "x", draw(1, seed=9))
  run2 = collect(
    PictureFolder.of(tmp_path / "x"), extractor, SETTINGS, path, save_seconds=9
  )
  assert seen[-1] == 0 and not np.allclose(run2.pool.sum_D, whole.pool.sum_D)


def test_reading_is_never_far_ahead(tmp_path):
  """So that memory does not grow with the number of pictures."""

  class Endless:
    identity = "endless"
    done = 0

    def __init__(self):
      self.ahead = []

    def __len__(self):
      return 120

    def read(self, start, stop):
      self.ahead.append(stop - self.done)
      return draw(stop - start, seed=start)

    def progress(self, done, total):
      self.done = done

  pictures = Endless()
  extractor = Extractor(tiny_network(), 4, jax.devices()[:1])
  collect(
    pictures,
    extractor,
    SETTINGS,
    tmp_path / "s.npz",
    save_seconds=99,
    progress=pictures.progress,
  )
  assert max(pictures.ahead) <= 4 * extractor.batch_size


def test_the_speed_command_runs(monkeypatch):
  monkeypatch.setattr(speed, "load_network", lambda *_: tiny_network())
  found = speed.measure("tiny", "", 12, 16, 4)
  assert found["pictures"] == 12 and found["all_mib"] > 0
  assert "% of the network's rate" in speed.to_markdown(found)


def test_arrays_are_streamed(tmp_path):
  images = draw(7)
  np.savez(tmp_path / "a.npz", arr_0=images)
  np.savez_compressed(tmp_path / "c.npz", arr_0=images)
  np.save(tmp_path / "a.npy", images)
  for name in ("a.npz", "c.npz", "a.npy"):
    pictures = open_pictures(tmp_path / name)
    assert len(pictures) == 7
    parts = [image for _, image in batches(pictures, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), images)
    np.testing.assert_array_equal(pictures.read(1, 2), images[1:2])
  np.savez(tmp_path / "f.npz", arr_0=images.astype(np.float32))
  with pytest.raises(ValueError, match="pictures are uint8"):
    PictureArray(tmp_path / "f.npz")
  np.savez(tmp_path / "o.npz", other=images)
  with pytest.raises(ValueError, match="array arr_0 is missing"):
    PictureArray(tmp_path / "o.npz")


def test_refusals_of_pictures(tmp_path):
  with pytest.raises(ValueError, match="There are no pictures at"):
    open_pictures(tmp_path / "none")
  with pytest.raises(ValueError, match="holds no pictures"):
    open_pictures(tmp_path)
  save(tmp_path / "x", [*draw(2), *draw(1, size=(7, 5))])
  with pytest.raises(ValueError, match=r"sizes: 5 x 6 .* 0002.png, 5 x 7"):
    PictureFolder.of(tmp_path / "x").read(0, 3)
  (tmp_path / "x" / "0001.png").write_bytes(b"half")
  with pytest.raises(ValueError, match=r"0001.png is not a readable"):
    PictureFolder.of(tmp_path / "x").read(0, 2)


def test_refusals_of_statistics(tmp_path):
  pictures = PictureFolder.of(save(tmp_path / "x", draw(5)))
  extractor = Extractor(tiny_network(), 4, jax.devices()[:1])
  load = lambda path, e=extractor: load_reference(  # noqa: E731
    path, e, SETTINGS, tmp_path, save_seconds=9
  )
  collect(pictures, extractor, SETTINGS, tmp_path / "s.npz", save_seconds=9)
  other = dataclasses.replace(extractor.network, weights="def")
  with pytest.raises(
    ValueError, match="weights is 'abc' on one side and 'def'"
  ):
    load(tmp_path / "s.npz", Extractor(other, 4, jax.devices()[:1]))
  np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
  with pytest.raises(ValueError, match=r"lite0 with 8: they cannot"):
    load(tmp_path / "adm.npz")
  (tmp_path / "b.npz").write_bytes(b"half")
  with pytest.raises(ValueError, match=r"not a readable \.npz"):
    load(tmp_path / "b.npz")
  one = PictureFolder.of(save(tmp_path / "one", draw(1)))
  with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
    collect(one, extractor, SETTINGS, tmp_path / "1.npz", save_seconds=9)


def test_published_statistics_of_openai(tmp_path):
  network = tiny_network(name="inception")
  rng = np.random.default_rng(0)
  x, s = rng.standard_normal((50, 8)), rng.standard_normal((50, 5))
  images = draw(9)
  arrays = {
    "mu": x.mean(0),
    "sigma": np.cov(x, rowvar=False),
    "mu_s": s.mean(0),
    "sigma_s": np.cov(s, rowvar=False),
    "arr_0": images,
  }
  np.savez(tmp_path / "VIRTUAL.npz", **arrays)
  extractor = Extractor(network, 4, jax.devices()[:1])
  found = load_reference(
    tmp_path / "VIRTUAL.npz", extractor, SETTINGS, tmp_path, save_seconds=9
  )
  np.testing.assert_allclose(found.pool.covariance, arrays["sigma"], atol=1e-9)
  np.testing.assert_allclose(found.spatial.mean, arrays["mu_s"], atol=1e-12)
  assert len(found.sample.rows_RD) == 9
  del arrays["sigma_s"]
  np.savez(tmp_path / "bad.npz", **arrays)
  with pytest.raises(ValueError, match="sigma_s None; expected"):
    load_reference(
      tmp_path / "bad.npz", extractor, SETTINGS, tmp_path, save_seconds=9
    )


def test_missing_weights_say_which_file_to_get():
  with pytest.raises(ValueError, match=r"none given.*torch-fidelity.*weights="):
    load_network("inception")
  with pytest.raises(ValueError, match="no file at /none"):
    load_network("inception-torch", "/none")
  with pytest.raises(ValueError, match=r"'vgg'; known are efficientnet-lite0"):
    load_network("vgg")
