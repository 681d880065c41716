"""What a fit found, as markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from star_jax.metrics.report import table
from star_jax.scaling.points import Points


def formula(law: Mapping[str, Any], variable: str) -> str:
  """A law of one variable as text: "0.81 + (2.0e-04 N)^-0.25"."""
  power = f"({law['beta'][0]:.2g} {variable})^{law['alpha'][0]:.3f}"
  return f"{law['floor']:.3g} + {power}" if law["floor"] else power


def write_tables(fit: Mapping[str, Any], points: Points) -> str:
  """Laws, predictions, the frontier and the runs."""
  parts = [
    f"### Laws\n\n{law_table(fit['measures'])}",
    f"### The held-out size\n\n{prediction_table(fit['measures'])}",
    f"### Compute-optimal frontier\n\n{frontier_table(fit['measures'])}",
    f"### Runs\n\n{run_table(points)}\n\n{gap_line(fit['gaps'])}",
  ]
  return "\n\n".join(parts) + "\n"


def law_table(measures: Mapping[str, Any]) -> str:
  """Every law with the interval of its exponent and Pearson's coefficient."""
  rows = []
  for found in measures.values():
    for kind, variable in (("size", "N"), ("compute", "C_min")):
      for name in ("plain", "floor"):
        law = found[kind].get(name)
        if law is None:
          continue
        low, high = law["alpha_interval"]
        rows.append(
          (
            found["title"],
            formula(law, variable),
            f"[{low:.3f}, {high:.3f}]",
            f"{found[kind]['pearson']:.4f}" if name == "plain" else "",
            f"{law['residual']:.2%}",
          )
        )
  header = ("of", "law", "90% of the exponent", "Pearson", "residual")
  return table(rows, header)


def prediction_table(measures: Mapping[str, Any]) -> str:
  """The measured gain of the held-out size beside the predicted ones."""
  rows = []
  for found in measures.values():
    one = found["prediction"]
    rows.append(
      (
        f"{found['title']}, {one['held_out']} over {one['over']}",
        "measured",
        f"{one['gain']:.4f}",
        "",
        "",
      )
    )
    for name, law in one["laws"].items():
      low, high = law["interval"]
      inside = "holds it" if law["inside"] else "misses it"
      rows.append(
        (
          "",
          f"law, {name}",
          f"{law['gain']:.4f}",
          f"{law['off']:.0%}",
          f"[{low:.4f}, {high:.4f}] {inside}",
        )
      )
    for name, guess in one["naive"].items():
      rows.append(("", name, f"{guess['gain']:.4f}", f"{guess['off']:.0%}", ""))
  return table(rows, ("of", "by", "gain", "off by", "90% interval"))


def frontier_table(measures: Mapping[str, Any]) -> str:
  """The loss over all scales that each compute buys, and by which size."""
  found = measures["loss all"]["compute"]
  rows = [
    (f"{p['flops']:.3g}", p["size"], f"{p['value']:.4f}")
    for p in found["points"]
  ]
  text = table(rows, ("C_min, FLOP", "size", "loss, all scales"))
  if "size_exponent" in found:
    text += f"\n\nThe best N grows as C_min^{found['size_exponent']:.2f}."
  return text


def run_table(points: Points) -> str:
  """Loss and error of every size and budget, means over the seeds."""
  means, rows = points.means(), []
  order = np.lexsort((means.fraction_n, means.params_n))
  for i in order:
    same = (points.size_n == means.size_n[i]) & (
      points.fraction_n == means.fraction_n[i]
    )
    rows.append(
      (
        means.size_n[i],
        f"{means.params_n[i]:,.0f}",
        f"{means.tokens_n[i] / 1e6:.2f}M",
        f"{means.flops_n[i]:.3g}",
        *(f"{y_n[i]:.4f}" for y_n in means.values.values()),
        str(same.sum()),
        f"{points.gap_n[same].max():.2%}",
      )
    )
  header = ("size", "N", "tokens", "C", "loss, last", "loss, all")
  header += ("error, last", "error, all", "seeds", "gap")
  return table(rows, header)


def gap_line(found: Mapping[str, Any]) -> str:
  """Whether new examples are as likely as seen ones in every run."""
  line = (
    f"Largest gap between the loss of new and of seen examples:"
    f" {found['largest']:.2%}; allowed are {found['allowed']:.0%}."
  )
  return line + "".join(f"\nOver it: {one}." for one in found["over"])
