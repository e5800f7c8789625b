"""What is built from the tree is complete, also from a tree without links."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from shutil import copyfile

import pytest

from tests.test_layout import ROOT, source_files

SMOKE = """
import torch, fgcompile, fgcompile.passes.pipeline
from fgcompile.cli import main
from torch.nn import Linear, ReLU
model = torch.nn.Sequential(Linear(4, 8), ReLU(), Linear(8, 2))
fgcompile.insert_gates(model, (torch.ones(2, 4),), fgcompile.GateConfig(kinds=("mlp",)))
fgcompile.gates(model)["mlp"].close([0, 1, 2])
lowered = fgcompile.lower(model.eval())
assert lowered.model.get_parameter("0.weight").shape == (5, 4)
assert "5" in lowered.report.to_html()
try:
    main(["--help"])
except SystemExit as done:
    assert not done.code
print(fgcompile.__file__)
"""


def run(*command: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(root: Path) -> list[str]:
    """Files that git knows; links are files to it."""
    return run("git", "ls-files", "-z", cwd=root).rstrip("\0").split("\0")


def unpack_as_zip(target: Path) -> Path:
    """The tree as many tools unpack it: a link becomes a file that holds its target."""
    for name in tracked(ROOT):
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.write_text(os.readlink(source))
        elif source.is_file():
            copyfile(source, copy)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("link", ["kept", "lost", "left out"])
def test_wheel_and_sdist_work_from_any_copy_of_the_tree(
    link: str, tmp_path: Path
) -> None:
    pytest.importorskip("build")
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no clone")
    tree = unpack_as_zip(tmp_path / "tree")
    place = tree / "fgcompile" / "passes"
    assert place.read_text() == "../passes"
    if link != "lost":
        place.unlink()
    if link == "kept":
        place.symlink_to("../passes", target_is_directory=True)
    # The sdist is made from the tree, the wheel from the sdist.
    run(sys.executable, "-m", "build", "--no-isolation", cwd=tree)
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    (wheel,) = (tree / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        packed.extractall(tmp_path / "site")
    modules = {n for n in names if n.endswith(".py")}
    assert modules == {
        str(Path("fgcompile", file.relative_to(ROOT)))
        if file.is_relative_to(ROOT / "passes")
        else str(file.relative_to(ROOT))
        for file in source_files()
    }
    assert "fgcompile/py.typed" in names
    with tarfile.open(sdist) as packed:
        assert any(name.endswith("/passes/pipeline.py") for name in packed.getnames())
    site = str(tmp_path / "site")
    printed = run(sys.executable, "-c", SMOKE, cwd=tmp_path, PYTHONPATH=site)
    assert printed.splitlines()[-1].startswith(site)


def built(folder: Path) -> list[Path]:
    """Wheel and sdist, from a copy of the tree."""
    pytest.importorskip("build")
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no clone")
    tree = unpack_as_zip(folder / "tree")
    (tree / "fgcompile" / "passes").unlink()
    run(sys.executable, "-m", "build", "--no-isolation", cwd=tree)
    return sorted((tree / "dist").iterdir())


def environment(folder: Path) -> Path:
    """A virtual environment that also sees the packages of this one."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder.parent)
    bin_folder = "Scripts" if os.name == "nt" else "bin"
    (site,) = folder.rglob("site-packages")
    # After the environment's own, so that an fgcompile installed here wins.
    (site / "base.pth").write_text(sysconfig.get_path("purelib"))
    return folder / bin_folder


@pytest.mark.slow
def test_wheel_and_sdist_are_installed_by_pip(tmp_path: Path) -> None:
    packages = built(tmp_path)
    assert [package.suffix for package in packages] == [".whl", ".gz"]
    for package in packages:
        folder = tmp_path / package.suffix.strip(".")
        programs = environment(folder)
        python, scratch = str(programs / "python"), folder / "scratch"
        scratch.mkdir()
        options = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir")
        run(python, "-m", "pip", "install", *options, str(package), cwd=scratch)
        assert "lower" in run(str(programs / "fgcompile"), "--help", cwd=scratch)
        printed = run(python, "-c", SMOKE, cwd=scratch)
        assert printed.splitlines()[-1].startswith(str(folder))


@pytest.mark.slow
def test_wheel_works_as_the_zip_that_it_is(tmp_path: Path) -> None:
    wheel = next(p for p in built(tmp_path) if p.suffix == ".whl")
    printed = run(sys.executable, "-c", SMOKE, cwd=tmp_path, PYTHONPATH=str(wheel))
    assert printed.splitlines()[-1].startswith(str(wheel))
