"""What pictures are compared with: a folder of real ones, or statistics.

Statistics are those that this program wrote, or OpenAI's reference batches
(guided-diffusion/evaluations): mu, sigma [2048], mu_s, sigma_s [2023] of the
whole data set, and arr_0, 10,000 pictures of it for precision and recall.
pytorch-fid's files hold mu and sigma alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.evaluation.collect import Extractor, collect
from star_jax.evaluation.moments import Moments
from star_jax.evaluation.pictures import PictureArray, open_pictures
from star_jax.evaluation.statistics import Statistics, check_same_network

Progress = Callable[[int, int], None]


def load_reference(
  path: str | Path,
  extractor: Extractor,
  settings: dict[str, Any],
  folder: Path,
  *,
  save_seconds: float,
  progress: Progress = lambda done, total: None,
) -> Statistics:
  """Statistics of the reference, with the feature network of the extractor.

  Args:
    path: a folder of pictures, a .npz of pictures, or one of statistics.
    folder: where statistics that have to be collected are kept.

  Other arguments as in `collect`.

  Raises:
    ValueError: nothing there, or statistics of another feature network.
  """
  path = Path(path)
  keys = _keys(path) if path.suffix == ".npz" and path.is_file() else ()
  if "star_jax" in keys:
    found = Statistics.load(path)
    check_same_network(found.identity, extractor.network.identity)
    if found.done < found.total:
      raise ValueError(
        f"{path} holds {found.done} of {found.total} pictures: its run was"
        " stopped and has to be finished first."
      )
    return found
  run = lambda pictures, name: collect(  # noqa: E731
    pictures,
    extractor,
    settings,
    folder / name,
    save_seconds=save_seconds,
    progress=progress,
  )
  if "mu" in keys:
    out = read_published(path, extractor.network)
    if "arr_0" in keys:
      out.sample = run(PictureArray(path), "reference_sample.npz").sample
    return out
  return run(open_pictures(path), "reference.npz")


def _keys(path: Path) -> tuple[str, ...]:
  try:
    with np.load(path, allow_pickle=False) as data:
      return tuple(data.files)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is not a readable .npz file.") from error


def read_published(path: str | Path, network) -> Statistics:
  """mu and sigma of OpenAI or pytorch-fid, without a sample.

  Args:
    path: the .npz.
    network: the feature network that is in use; those files are of InceptionV3
      and do not say so, their widths are checked.

  Raises:
    ValueError: another feature network, or arrays that do not belong together.
  """
  try:
    with np.load(path, allow_pickle=False) as data:
      found = {
        key: np.asarray(data[key], np.float64)
        for key in ("mu", "sigma", "mu_s", "sigma_s")
        if key in data.files
      }
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} holds no readable statistics.") from error
  width = network.widths["pool"]
  if found["mu"].shape != (width,) or "inception" not in network.name:
    raise ValueError(
      f"{path} holds statistics of {found['mu'].size} features (InceptionV3 has"
      f" 2048); the feature network here is {network.name} with {width}: they"
      " cannot be compared."
    )
  pool = _moments(found, "", width, path)
  spatial = None
  if "mu_s" in found:
    spatial = _moments(found, "_s", network.widths["spatial"], path)
  return Statistics(
    network.identity,
    {"published": Path(path).name},
    pool.count,
    pool.count,
    pool,
    spatial,
    None,
    None,
  )


def _moments(found, suffix: str, width: int, path) -> Moments:
  mean, cov = found[f"mu{suffix}"], found.get(f"sigma{suffix}")
  if mean.shape != (width,) or cov is None or cov.shape != (width, width):
    shape = None if cov is None else cov.shape
    raise ValueError(
      f"{path} has mu{suffix} {mean.shape} and sigma{suffix} {shape}; expected"
      f" are ({width},) and ({width}, {width})."
    )
  return Moments.from_statistics(mean, cov)
