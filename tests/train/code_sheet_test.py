"""The picture of codes in use."""

import numpy as np

from star_jax.scales import ScaleSchedule
from star_jax.train import code_sheet


def test_common_codes_are_darker_and_unused_ones_white():
  usage_KV = np.zeros((2, 16))
  usage_KV[0, 3] = 100.0
  usage_KV[1, 5] = 1.0
  panel = code_sheet._panel(usage_KV.sum(0), used_share=0.01)
  dots = panel[:: code_sheet.ZOOM, :: code_sheet.ZOOM][1:-1, 1:-1].reshape(-1)
  assert dots[3] < dots[5] < 255
  assert (np.delete(dots, [3, 5]) == 255).all()
  assert code_sheet._figures(usage_KV[0], 0.08) == "6% used, perp. 1"
  schedule = ScaleSchedule.from_patch_nums((1, 2))
  sheet = code_sheet.code_sheet(usage_KV, schedule, 0.08)
  assert sheet.mode == "RGB" and np.asarray(sheet).min() < 100
