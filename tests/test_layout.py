"""The tree keeps its shape: layers, import style, packaging, README and CI."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent

# A module may import its own layer's namesake and every layer above it in this list;
# names that share a line do not know each other.
LAYERS = (
    ("errors",),
    ("files",),
    ("units",),
    ("program",),
    ("printer",),
    ("rules",),
    ("capture",),
    ("analysis",),
    ("gates",),
    ("passes",),
    ("report",),
    ("targets",),
    ("checkpoint",),
    ("lowering",),
    ("compiler", "lowering"),
    ("methods",),
    ("zoo",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Optional packages, and the layers that may import them inside a function.
OPTIONAL = {
    "accelerate": {"checkpoint"},
    "google": {"targets", "report"},  # protobuf comes with onnx
    "matplotlib": {"gates"},
    "onnx": {"targets", "report"},
    "onnx_ir": {"targets", "report"},
    "onnxruntime": {"targets", "report"},
    "onnxscript": {"targets", "report"},
    "openvino": {"targets"},
    "transformers": {
        *("capture", "gates", "targets", "checkpoint", "compiler", "methods", "zoo"),
        "cli",
    },
}


@dataclass(frozen=True)
class Import:
    """One imported module, and where it is imported."""

    file: str
    line: int
    layer: str
    module: str
    level: int
    late: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.layer}) imports {self.module}"


def source_files() -> list[Path]:
    """Files of the package; `passes` is walked by itself, as rglob skips links."""
    link = ROOT / "fgcompile" / "passes"
    own = [f for f in (ROOT / "fgcompile").rglob("*.py") if link not in f.parents]
    return sorted(own + list((ROOT / "passes").rglob("*.py")))


def layer_of(file: Path) -> str:
    """Name in LAYERS of the module or sub-package that holds `file`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "passes" else parts[1]


def imports_of(file: Path) -> Iterator[Import]:
    """Every import in `file`; late ones stand in a function or are for types only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for inner in ast.walk(outer)
    }
    place = str(file.relative_to(ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            names, level = list(_targets(node)), node.level
        else:
            continue
        for name in names:
            yield Import(
                place, node.lineno, layer_of(file), name, level, id(node) in late
            )


def _targets(node: ast.ImportFrom) -> Iterator[str]:
    # `from fgcompile import errors` names a layer only together with its alias.
    for alias in node.names:
        yield f"{node.module}.{alias.name}" if node.module else alias.name


ALL_IMPORTS = [found for file in source_files() for found in imports_of(file)]


def climbs(found: Import) -> bool:
    """Whether the import goes to a layer that the importing one must not know."""
    parts = found.module.split(".")
    if parts[0] != "fgcompile" or found.layer == "__init__":
        return False
    if len(parts) == 1 or parts[1] not in RANK:  # names of fgcompile/__init__.py
        return found.layer != "cli" and parts[1:] != ["__version__"]
    return parts[1] != found.layer and RANK[parts[1]] >= RANK[found.layer]


def test_every_module_has_a_layer() -> None:
    unknown = {layer_of(file) for file in source_files()} - RANK.keys()
    assert unknown == {"__init__"}


def test_no_layer_imports_one_above_it() -> None:
    assert [str(found) for found in ALL_IMPORTS if climbs(found)] == []


@pytest.mark.parametrize(
    ("layer", "module", "bad"),
    [
        ("analysis", "fgcompile.passes.base", True),
        ("rules", "fgcompile.capture.capture", True),
        ("program", "fgcompile.insert_gates", True),
        ("passes", "fgcompile.analysis.liveness", False),
        ("passes", "fgcompile.passes.base", False),
        ("units", "torch", False),
    ],
)
def test_layer_rule_tells_good_imports_from_bad(
    layer: str, module: str, bad: bool
) -> None:
    assert climbs(Import("f.py", 1, layer, module, 0, False)) is bad


def test_imports_are_absolute() -> None:
    assert [str(found) for found in ALL_IMPORTS if found.level] == []


def test_passes_is_imported_by_its_full_name() -> None:
    bare = [f for f in ALL_IMPORTS if f.module.split(".")[0] == "passes"]
    assert [str(found) for found in bare] == []


def test_optional_packages_are_imported_late_and_where_they_belong() -> None:
    bad = [
        str(found)
        for found in ALL_IMPORTS
        if (package := found.module.split(".")[0]) in OPTIONAL
        and not (found.late and found.layer in OPTIONAL[package])
    ]
    assert bad == []


def test_units_do_not_know_graphs() -> None:
    known = [f.module for f in ALL_IMPORTS if f.layer == "units"]
    assert not [module for module in known if module.startswith("torch.fx")]


def test_every_third_party_import_is_a_declared_dependency() -> None:
    declared = {normal(d) for d in project()["dependencies"]}
    dists = packages_distributions()
    used = {found.module.split(".")[0] for found in ALL_IMPORTS}
    used -= {"fgcompile", *OPTIONAL, *sys.stdlib_module_names}
    stray = {
        name for name in used if not {normal(d) for d in dists.get(name, [])} & declared
    }
    assert stray == set()


def test_package_imports_without_optional_packages() -> None:
    blocked = ", ".join(f"{name!r}: None" for name in OPTIONAL)
    code = f"import sys; sys.modules.update({{{blocked}}}); import fgcompile"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_passes_link_points_at_the_folder() -> None:
    assert (ROOT / "fgcompile" / "passes").samefile(ROOT / "passes")


def test_every_package_folder_is_listed() -> None:
    listed = pyproject()["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in source_files()
        if file.name == "__init__.py"
    }
    found = {name if name != "passes" else "fgcompile.passes" for name in folders}
    assert sorted(found) == sorted(listed)


def test_every_data_file_is_shipped() -> None:
    patterns = pyproject()["tool"]["setuptools"]["package-data"]
    shipped = {
        file
        for package, globs in patterns.items()
        for glob in globs
        for file in ROOT.joinpath(*package.split(".")).glob(glob)
    }
    present = {
        file
        for folder in (ROOT / "fgcompile", ROOT / "passes")
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    assert present == shipped


def test_every_extra_is_pinned_by_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = {normal(line) for line in lines if "==" in line}
    asked = set(project()["dependencies"])
    for extra in project()["optional-dependencies"].values():
        asked.update(extra)
    assert {normal(name) for name in asked} - exact == {"fgcompile"}


def test_readme_shell_blocks_are_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    install = "python -m pip install -c constraints.txt -e"
    assert [block.splitlines() for block in blocks[:2]] == [
        [f'{install} ".[examples]"', "python examples/quickstart.py"],
        [f'{install} ".[test]"', "python -m pytest -n 2"],
    ]
    runner = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "/^```sh$/" in runner
    assert "pip install -" not in runner


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    return pyproject()["project"]


def normal(requirement: str) -> str:
    """Name of a requirement, spelled as indexes compare it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()
