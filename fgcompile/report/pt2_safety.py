"""Whether a `.pt2` file may be opened: torch's loader runs what some of them hold.

It unpickles weights and constants that say so, evaluates sizes as Python expressions,
writes names into the source code of functions, and imports modules that the structure
of inputs names. Files that `torch.export.save` writes of ordinary models do none of
this, or only in ways that can be checked.
"""

from __future__ import annotations

import ast
import io
import json
import keyword
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fgcompile.errors import FormatError

_FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow"),
        *("Max", "Min", "Mod", "Abs", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or"),
        *("Not", "Piecewise", "floor", "ceiling", "FloorDiv", "CeilDiv", "CleanDiv"),
        *("ModularIndexing", "PythonMod", "IntTrueDiv", "FloatTrueDiv", "PowByNatural"),
        *("FloatPow", "FloorToInt", "CeilToInt", "TruncToInt", "TruncToFloat"),
        *("RoundToInt", "RoundDecimal", "ToFloat", "Identity", "LShift", "RShift"),
        *("Where", "BitwiseFn_bitwise_and", "BitwiseFn_bitwise_or", "IsNonOverlapping"),
    )
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}|oo|int_oo|True|False")
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.Name),
    *(ast.Constant, ast.Load, ast.keyword, ast.operator, ast.unaryop, ast.cmpop),
)
_NAMES = ("name", "as_name", "forward_arg_names")
_VALUES = (
    *("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"),
    "custom_obj_values",
)
_LONGEST = 2000
_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_NAMED = ("transformers.modeling_outputs.", "transformers.cache_utils.")
_MODELS = re.compile(r"[^/]+/models/[^/]+\.json")
_KNOWN = re.compile(
    r"[^/]+/(?:models/[^/]+\.json|data/weights/[\w.]+|data/sample_inputs/[^/]+\.pt"
    r"|data/constants/(?:tensor_\w+|[^/]+_config\.json)|extra/[^/]+|\.data/\w+"
    r"|archive_format|archive_version|byteorder|version)"
)
"""What `torch.export.save` writes. Compiled libraries, for one, are not among it."""


def check_pt2(file: Path) -> None:
    """Refuses a `.pt2` file that could run code when it is opened.

    Raises:
        FormatError: If it holds a pickle that is more than tensors, a size that is
            more than arithmetic, or a name that is none. Also if it is of a format
            that torch 2.8 and later do not write.
        OSError, ValueError, zipfile.BadZipFile: If it is no such archive.
    """
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        models = [name for name in names if _MODELS.fullmatch(name)]
        if not models:
            raise _refused(file, "it holds no program in the format of today's torch")
        for name in names:
            if not _KNOWN.fullmatch(name) or names.count(name) > 1:
                raise _refused(file, f"it holds {name[:80]!r}, or that twice")
            if name.endswith((".pt", ".pth", ".pkl")):
                _check_tensors(file, archive.read(name))
            if name.endswith(".json") and name not in models:
                _check_config(file, json.loads(archive.read(name)))
        for name in models:
            _check_program(file, json.loads(archive.read(name)))


def _check_tensors(file: Path, content: bytes) -> None:
    """Example inputs: torch falls back to a full unpickling where this one fails."""
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise _refused(file, "it holds a pickle of more than tensors") from error


def _check_config(file: Path, found: Any) -> None:
    for key, value in _items(found):
        if key == "use_pickle" and value:
            raise _refused(file, "it holds pickled weights")


def _check_program(file: Path, found: Any) -> None:
    for key, value in _items(found):
        if key == "expr_str" and not _is_arithmetic(value):
            raise _refused(file, f"a size in it is no arithmetic: {value!r:.80}")
        if key == "range_constraints" and isinstance(value, dict):
            bad = [name for name in value if not _is_arithmetic(name)]
            if bad:
                raise _refused(file, f"a size in it is no arithmetic: {bad[0]!r:.80}")
        if key in ("in_spec", "out_spec"):
            _check_structure(file, value)
        # Values of the graph are arguments and variables in generated source code.
        names = list(value) if key in _VALUES and isinstance(value, dict) else value
        if key in (*_VALUES, *_NAMES) and not _are_names(names):
            raise _refused(file, f"a name in it is none: {value!r:.80}")
        if key == "target" and not _is_operator(value):
            raise _refused(file, f"it calls what is no operator: {value!r:.80}")


def _items(found: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth; without recursion."""
    waiting = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_arithmetic(text: Any) -> bool:
    """Whether Python reads `text` as sums, products and known functions of symbols."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        plain = all(isinstance(word.value, ast.Constant) for word in node.keywords)
        return named and plain and not _is_tower(node)
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small(node.right)
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return bool(_SYMBOL.fullmatch(node.value))
        return isinstance(node.value, int | float) and abs(node.value) < 1 << 64
    return isinstance(node, _NODES)


def _is_tower(call: ast.Call) -> bool:
    """Powers of powers of numbers, which would never end."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    powers = name in ("Pow", "PowByNatural", "FloatPow", "LShift")
    return powers and not all(map(_is_small, call.args[1:]))


def _is_small(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_small(node.operand)
    if isinstance(node, ast.Call) and len(node.args) == 1:
        return _is_small(node.args[0])
    if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
        return False
    return abs(node.value) <= 64


def _check_structure(file: Path, text: Any) -> None:
    """Inputs and outputs are nests of Python's types, with plain names for keys."""
    if not text:
        return
    for key, value in _items(json.loads(text)):
        if key == "type" and isinstance(value, str):
            known = value in _TYPES or value.startswith(_NAMED)
            if not known:
                raise _refused(file, f"its inputs or outputs are of type {value:.80}")
        if key == "context" and not _are_names(_context(value)):
            raise _refused(file, f"a name in it is none: {value!r:.80}")


def _context(value: Any) -> Any:
    """The keys of a dict, which are stored as JSON in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _are_names(value: Any) -> bool:
    """Whether Python takes all texts in a list of them for names."""
    if isinstance(value, list):
        return all(map(_are_names, value))
    if isinstance(value, str):
        return not value or (value.isidentifier() and not keyword.iskeyword(value))
    return value is None or type(value) is int


def _is_operator(value: Any) -> bool:
    known = ("torch.ops.", "_operator.", "math.", "torch.sym_")
    if not isinstance(value, str):
        return True
    return value.startswith(known) or all(map(str.isidentifier, value.split(".")))


def _refused(file: Path, fact: str) -> FormatError:
    return FormatError(
        f"{file.name} could run code when it is opened, and was not\n  {fact}\n"
        "  If you trust it: diff(torch.export.load(path), ...)."
    )
