"""Our metrics against torch-fidelity's on equal features, where it is."""

import numpy as np
import pytest

from star_jax.evaluation.class_score import ClassSums, draw_splits
from star_jax.evaluation.distances import (
  frechet_distance,
  kernel_subsets,
  precision_recall,
)
from star_jax.evaluation.moments import Moments


@pytest.mark.long
def test_metrics_of_torch_fidelity(torch):
  from torch_fidelity.metric_fid import (
    fid_features_to_statistics,
    fid_statistics_to_metric,
  )
  from torch_fidelity.metric_isc import isc_features_to_metric
  from torch_fidelity.metric_kid import kid_features_to_metric
  from torch_fidelity.metric_prc import prc_features_to_metric

  rng = np.random.default_rng(0)
  mix = rng.standard_normal((48, 48))
  x = np.abs(rng.standard_normal((700, 48)) @ mix).astype(np.float32)
  y = np.abs(rng.standard_normal((600, 48)) @ mix + 1).astype(np.float32)
  tx, ty = torch.from_numpy(x), torch.from_numpy(y)

  theirs = fid_statistics_to_metric(
    *(fid_features_to_statistics(t) for t in (tx, ty)), verbose=False
  )["frechet_inception_distance"]
  # The spatial distance of sFID is the same function of other features.
  ours = frechet_distance(Moments.of(x), Moments.of(y))
  np.testing.assert_allclose(ours, theirs, rtol=1e-3)

  their = kid_features_to_metric(
    tx,
    ty,
    kid_subsets=5,
    kid_subset_size=200,
    kid_kernel="poly",
    kid_kernel_poly_degree=3,
    kid_kernel_poly_gamma=None,
    kid_kernel_poly_coef0=1,
    rng_seed=2020,
    verbose=False,
  )
  ours = kernel_subsets(x, y, 5, 200, 2020)
  np.testing.assert_allclose(
    ours,
    (
      their["kernel_inception_distance_mean"],
      their["kernel_inception_distance_std"],
    ),
    rtol=1e-3,
  )

  their = isc_features_to_metric(tx, 10, True, 2020)
  sums = ClassSums.empty(10, 48)
  sums.add(draw_splits(700, 10, 2020), x)
  np.testing.assert_allclose(
    sums.score(),
    (their["inception_score_mean"], their["inception_score_std"]),
    rtol=1e-3,
  )

  their = prc_features_to_metric(
    tx,
    ty,
    prc_neighborhood=3,
    prc_batch_size=1000,
    save_cpu_ram=False,
    verbose=False,
  )
  ours = precision_recall(y, x, 3)
  np.testing.assert_allclose(
    ours, (their["precision"], their["recall"]), rtol=1e-3
  )
