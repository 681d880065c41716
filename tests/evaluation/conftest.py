"""What the tests of this folder share."""

import importlib.util
import sys
import types

import pytest


class _Anything(types.ModuleType):
  """A module in which every name is an empty class."""

  __path__ = ()

  def __getattr__(self, name):
    if name.startswith("__"):
      raise AttributeError(name)
    return type(name, (), {})


@pytest.fixture
def torch(monkeypatch):
  """torch, where torch_fidelity is installed beside it.

  Only its data loading needs torchvision, which is replaced.
  """
  torch = pytest.importorskip("torch")
  if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip("torch_fidelity is not installed")
  for name in (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.transforms",
    "torchvision.transforms.functional",
  ):
    module = _Anything(name)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent:
      setattr(sys.modules[parent], child, module)
  return torch
