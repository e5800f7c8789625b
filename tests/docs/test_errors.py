"""The error index is complete, and documents no message that does not exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.test_layout import source_files

GAP = "…"
"""Stands for what differs between two errors of one kind."""

COMPOSED = {
    ("GateError", "fgcompile/gates/placement.py"),
    ("GateError", "fgcompile/gates/status.py"),
    ("GateError", "fgcompile/methods/distillation.py"),
    ("GateError", "fgcompile/methods/weight_hooks.py"),
}
"""Files in which a message is put together elsewhere than where it is raised."""

TREES = {
    str(file.relative_to(ROOT)): ast.parse(file.read_text("utf-8"))
    for file in source_files()
}


@dataclass(frozen=True)
class Raised:
    """The first line of an error's message, as it stands in a file."""

    error: str
    file: str
    line: int
    text: str

    @property
    def computed(self) -> bool:
        """Whether none of it is text."""
        return not self.text.replace(GAP, "").strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text}"


def error_classes() -> dict[str, ast.ClassDef]:
    """All subclasses of FgcompileError, by name."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    found: dict[str, ast.ClassDef] = {}
    for _ in classes:
        known = {"FgcompileError", *found}
        more = {c.name: c for c in classes if known & {*map(ast.unparse, c.bases)}}
        if more == found:
            break
        found = more
    return found


ERRORS = error_classes()
OWN_TEXT = {
    name
    for name, cls in ERRORS.items()
    if any(isinstance(f, ast.FunctionDef) and f.name == "__init__" for f in cls.body)
}
"""Classes that make their messages themselves."""


_INIT = "super().__init__"


def raised() -> Iterator[Raised]:
    """All messages in the source, `…` in place of what is computed."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            for call, error in _messages(node):
                text = _template(call.args[0]).partition("\n")[0]
                yield Raised(error, file, call.lineno, text)


def _messages(node: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Calls that make the message of an error, and its class."""
    if (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in ERRORS.keys() - OWN_TEXT
    ):
        yield node, ast.unparse(node.func)
    if isinstance(node, ast.ClassDef) and node.name in OWN_TEXT:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == _INIT:
                yield call, node.name


def _template(text: ast.AST) -> str:
    if isinstance(text, ast.Constant):
        return str(text.value)
    if isinstance(text, ast.JoinedStr):
        return "".join(map(_template, text.values))
    if isinstance(text, ast.BinOp):
        return _template(text.left) + _template(text.right)
    return GAP


def documented() -> dict[str, dict[str, list[str]]]:
    """Messages and what is said about them, by the class whose section they are in."""
    found: dict[str, dict[str, list[str]]] = {}
    section, message = "", ""
    for line in (DOCS / "errors.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
            found[section] = {}
        elif entry := re.fullmatch(r"`(.+)`", line):
            message = entry[1]
            assert message not in found[section], f"twice: {message}"
            found[section][message] = []
        elif line.startswith(": "):
            found[section][message].append(line.removeprefix(": "))
    return found


def covers(entry: str, text: str) -> bool:
    """Whether a documented message stands for one in the source."""
    parts = map(re.escape, entry.split(GAP))
    return re.fullmatch(".*".join(parts), text) is not None


ALL = list(raised())
INDEX = documented()


def test_every_class_has_a_section() -> None:
    assert sorted(INDEX) == sorted(ERRORS)


@pytest.mark.parametrize("name", sorted(INDEX))
def test_every_message_is_documented(name: str) -> None:
    own = [found for found in ALL if found.error == name and not found.computed]
    assert own
    missing = [
        f for f in own if not any(covers(entry, f.text) for entry in INDEX[name])
    ]
    assert [*map(str, missing)] == [], "describe them in docs/errors.md"


@pytest.mark.parametrize("name", sorted(INDEX))
def test_every_documented_message_occurs(name: str) -> None:
    texts = [found.text for found in ALL if found.error == name]
    for error, file in COMPOSED:
        if error == name:
            texts += _strings(TREES[file])
    invented = [e for e in INDEX[name] if not any(covers(e, text) for text in texts)]
    assert invented == []


def _strings(tree: ast.AST) -> list[str]:
    """All texts in a file, each without its later lines."""
    kinds = (ast.JoinedStr, ast.Constant)
    texts = [_template(n) for n in ast.walk(tree) if isinstance(n, kinds)]
    return [text.partition("\n")[0] for text in texts]


@pytest.mark.parametrize("name", sorted(INDEX))
def test_every_entry_has_cause_and_remedy(name: str) -> None:
    assert INDEX[name]
    assert [entry for entry, said in INDEX[name].items() if len(said) != 2] == []


def test_computed_messages_are_the_known_ones() -> None:
    assert {(found.error, found.file) for found in ALL if found.computed} == COMPOSED
