"""pyproject.toml, requirements.lock and environment.yml say the same; nothing names a machine or a package index."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
]
INSTALL = "-c requirements.lock -e .[notebooks,test]"


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pinned_version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"{pin} is not one version"
    return Version(specifier.version)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_dependency_is_pinned_as_pyproject_allows(requirement):
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned_version(pin)), f"{pin} does not satisfy {requirement}"


def test_the_lock_holds_nothing_but_versions_that_exist_everywhere():
    for pin in pins().values():
        assert pin.url is None and pinned_version(pin).local is None, f"{pin} can only be had from one index"


def test_the_lock_is_complete_and_lean():
    """What a fresh set-up would install follows from the lock alone: every dependency of a pin here is pinned, too."""
    from importlib.metadata import PackageNotFoundError, requires

    pinned = pins()
    for pin in pinned:
        if pin == "torch":  # its CUDA build has dependencies of its own
            continue
        try:
            requirements = requires(pin) or []
        except PackageNotFoundError:  # of the extra `cluster`, not installed here
            assert pin.startswith("snakemake-executor-plugin-slurm"), f"{pin} is pinned but not installed"
            continue
        for text in requirements:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pinned, f"{pin} needs {needed}"
    assert not {"pyarrow", "sphinx"} & set(pinned)


def test_slurm_is_not_installed_by_default_and_dask_only_for_tests():
    extras = PROJECT["optional-dependencies"]
    named = {extra: {canonicalize_name(Requirement(text).name) for text in texts} for extra, texts in extras.items()}
    assert not {"dask", "distributed"} & named["notebooks"]
    assert all("snakemake-executor-plugin-slurm" not in names for extra, names in named.items() if extra != "cluster")


def test_torch_is_pinned_to_a_minor_version():
    (torch,) = (r for r in REQUIREMENTS if r.name == "torch")
    assert re.fullmatch(r"==\d+\.\d+\.\*", str(torch.specifier))


def test_conda_installs_through_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, pip = environment["dependencies"]
    assert " ".join(pip["pip"]) == INSTALL
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.removeprefix("python="))


def test_make_installs_through_the_lock():
    assert INSTALL in (ROOT / "Makefile").read_text().replace('"', "")


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.lock", "environment.yml", "Makefile", ".ci/run"])
def test_no_index_or_machine_is_named(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"https?://|--index-url|--extra-index-url|--find-links|/home/|/root/|\+cpu", text)


def test_citation_is_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == PROJECT["version"]
    assert "2303.16154" in str(citation["preferred-citation"])


def test_the_core_imports_without_the_extras():
    """``import gtl_core`` needs torch, numpy and safetensors only."""
    extras = [r.name for r in REQUIREMENTS if r.name not in {"torch", "numpy", "safetensors"}]
    modules = [name.replace("-", "_") for name in extras] + ["PIL", "yaml"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules}, None)); sys.modules.pop('packaging'); "
        "import gtl_core, gtl_core.tasks, gtl_core.training"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
