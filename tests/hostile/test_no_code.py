"""Nothing in the package runs code that a file holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layout import source_files

_CALLS = {"eval", "exec", "compile", "__import__", "input"}
_METHODS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "marshal.loads"),
    *("numpy.load", "np.load", "importlib.import_module", "runpy.run_path"),
}
_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
_ALLOWED = {
    # A fixed name, to make the classes of transformers known to torch.
    ("load_program.py", "importlib.import_module"),
    # The names of optional dependencies.
    ("extras.py", "importlib.import_module"),
    # With weights_only=True, to see whether that suffices.
    ("pt2_safety.py", "torch.load"),
}


def dangers(source: str, file: str) -> Iterator[str]:
    """What in `source` may run code that comes from elsewhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"imports {n}" for n in names if n.split(".")[0] in _MODULES)
        elif isinstance(node, ast.Call):
            yield from _of_call(node, file)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                    yield from _of_trust(value)


def _of_call(node: ast.Call, file: str) -> Iterator[str]:
    name = ast.unparse(node.func)
    words = {word.arg: word.value for word in node.keywords}
    bare = isinstance(node.func, ast.Name)
    safe = (
        name == "torch.load" and ast.unparse(words.get("weights_only", node)) == "True"
    )
    allowed = (file, name) in _ALLOWED and (name != "torch.load" or safe)
    if ((bare and name in _CALLS) or name in _METHODS) and not allowed:
        yield f"calls {name}"
    if "trust_remote_code" in words:
        yield from _of_trust(words["trust_remote_code"])
    shell = words.get("shell")
    if shell is not None and ast.unparse(shell) != "False":
        yield "runs a shell"


def _of_trust(value: ast.expr) -> Iterator[str]:
    if not (isinstance(value, ast.Constant) and value.value is False):
        yield "trusts remote code"


def test_no_file_of_the_package_runs_what_it_reads() -> None:
    found = [
        f"{file.name}: {danger}"
        for file in source_files()
        for danger in dangers(file.read_text("utf-8"), file.name)
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(text)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "options = {'trust_remote_code': trust}",
        "subprocess.run(c, shell=True)",
    ],
)
def test_what_runs_code_is_seen(source: str) -> None:
    assert list(dangers(source, Path("pt2_safety.py").name))
