"""pyproject.toml, requirements.lock and environment.yml say the same; nothing names a machine or a package index."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_PINNED = {"clients", "site", "site-test"}  # nothing is computed with them
EXTRAS = {extra: texts for extra, texts in PROJECT["optional-dependencies"].items() if extra not in NOT_PINNED}
REQUIREMENTS = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
OF_CORE = {"gtl_core/py.typed", *(f"gtl_core/_engine/{name}" for name in ("blocks.c", "pooled.c", "vectors.h"))}
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
    from importlib.metadata import PackageNotFoundError, requires, version

    pinned = pins()
    for pin in pinned:
        if pin == "torch":  # its CUDA build has dependencies of its own
            continue
        try:
            requirements = requires(pin) or []
        except PackageNotFoundError:  # of the extra `cluster`, not installed here
            assert pin.startswith("snakemake-executor-plugin-slurm"), f"{pin} is pinned but not installed"
            continue
        if not pinned[pin].specifier.contains(version(pin)):
            pytest.skip(f"{pin} is not what the lock names: this is another environment, as that of make test-lowest")
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


def imports(source: str) -> set[str]:
    """The packages that a module imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def sources(folder: str) -> dict[str, str]:
    """Of each module or notebook in a folder, its code."""
    found = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / folder).glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        found[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert found, f"{folder} is empty"
    return found


def test_the_core_imports_nothing_but_torch_numpy_and_safetensors():
    allowed = {*sys.stdlib_module_names, "torch", "numpy", "safetensors", "gtl_core"}
    for name, source in sources("gtl_core").items():
        assert imports(source) <= allowed, name
        if Path(name).name in ("guide.py", "scouting.py", "guided.py"):  # the paper
            assert imports(source) <= allowed - {"numpy", "safetensors"}, name


@pytest.mark.parametrize(
    "folder, allowed",
    [("gtl_core", set()), ("experiments", {"gtl_core"}), ("notebooks", {"gtl_core", "experiments"})],
)
def test_arrows_go_from_notebooks_over_experiments_to_the_core(folder, allowed):
    ours = {path.stem for path in ROOT.iterdir()} | {path.stem for path in ROOT.glob("workflow/*.py")}
    for name, source in sources(folder).items():
        assert imports(source) & ours <= {folder, *allowed}, name


def test_the_core_imports_without_the_extras():
    """Every module of it, where torch, numpy and safetensors are all there is."""
    extras = [r.name for r in REQUIREMENTS if r.name not in {"torch", "numpy", "safetensors"}]
    hidden = [name.replace("-", "_") for name in extras] + ["PIL", "yaml", "experiments"]
    modules = [name.removesuffix(".py").replace("/", ".") for name in sources("gtl_core")]
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden}, None)); import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def built(what: str, checkout: Path, **environment: str) -> Path:
    """A ``wheel`` or ``sdist``, made for real from a copy of the checkout, which has the experiments and tests, too."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("gtl_core", "experiments", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    code = f"import setuptools.build_meta as backend; backend.build_{what}('made')"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, env=os.environ | environment, check=True)
    (made,) = (checkout / "made").iterdir()
    return made


def test_the_source_distribution_holds_the_core_and_what_builds_it(tmp_path):
    with tarfile.open(built("sdist", tmp_path / "checkout")) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    of_setuptools = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    expected = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", *OF_CORE, *sources("gtl_core")}
    assert names - of_setuptools == expected


@pytest.mark.parametrize("compiler", ["cc", "false"])
def test_what_is_installed_is_the_core(compiler, tmp_path):
    """A wheel, with a compiler and without, the same to the last byte wherever and whenever it is built."""
    if shutil.which(compiler) is None:
        pytest.skip("no compiler")
    settings = {"CC": compiler, "SOURCE_DATE_EPOCH": "1800000000"}
    wheel, again = (built("wheel", tmp_path / folder, **settings) for folder in ("one", "another place"))
    assert wheel.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    libraries = {name for name in files if re.fullmatch(r"gtl_core/_engine/_blocks_\w+\..*(so|pyd)", name)}
    assert bool(libraries) == (compiler == "cc")
    assert files - libraries == {*sources("gtl_core"), *OF_CORE}
    needed = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    always = {r.name for r in needed if r.marker is None}
    assert always == {"torch", "numpy", "safetensors"} and len(needed) > len(always)
