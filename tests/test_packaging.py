"""What is installed: the package alone, with its command, its data and its metadata."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import diffjax

ROOT = Path(__file__).parents[1]
CODE = """
import distutils.core, json
dist = distutils.core.run_setup("setup.py", stop_after="init")
print(json.dumps({
    "packages": dist.packages, "scripts": dist.entry_points["console_scripts"],
    "version": dist.metadata.version, "python": str(dist.python_requires),
    "classifiers": dist.metadata.classifiers, "urls": dist.metadata.project_urls,
    "data": dist.package_data, "extras": sorted(dist.extras_require),
}))
"""


@pytest.fixture(scope="module")
def described():
    code = "import setuptools\n" + CODE
    command = [sys.executable, "-W", "ignore", "-c", code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def _list_packages():
    """Every folder of diffjax with Python files."""
    return {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "diffjax").rglob("*.py")
        if "__pycache__" not in path.parts
    }


def test_the_package_alone_is_installed(described):
    """A folder without __init__.py would be left out; configs and experiments stay outside."""
    assert set(described["packages"]) == _list_packages()


def test_the_command_exists(described):
    (script,) = described["scripts"]
    name, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", script).groups()
    assert name == "diffjax"
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_version_and_changelog_agree(described):
    assert described["version"] == diffjax.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    released = headings[1:] or [diffjax.__version__]
    assert released[0] == diffjax.__version__


def test_metadata(described):
    assert all((ROOT / path).exists() for path in described["urls"].values())
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(described["classifiers"]))
    low, high = re.findall(r"3\.(\d+)", described["python"])
    assert {f">=3.{low}", f"<3.{high}"} == set(described["python"].split(","))
    assert versions == [f"3.{minor}" for minor in range(int(low), int(high))]
    for package, patterns in described["data"].items():
        assert all(list((ROOT / package).glob(pattern)) for pattern in patterns)


@pytest.mark.slow
def test_a_wheel_holds_the_package_alone(tmp_path):
    """Builds a wheel as pip does, in an environment that pip makes from the registry."""
    source = tmp_path / "source"  # builds leave files beside setup.py
    for name in ("diffjax", "configs", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, source]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if built.returncode and "No matching distribution" in built.stderr:
        pytest.skip("there is no setuptools to build with, and none can be fetched")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {name.partition("/")[0] for name in names} == {
        "diffjax",
        f"diffjax-{diffjax.__version__}.dist-info",
    }
    assert "diffjax = diffjax.cli.__main__:main" in entry and "diffjax/py.typed" in names
