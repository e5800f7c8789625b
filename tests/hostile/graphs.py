"""Damage for ONNX files: any field of any message, and graphs made to hurt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.hostile.documents import NUMBERS, PATHS, TEXTS, damaged_bytes

_WHOLE = [n for n in NUMBERS if isinstance(n, int)]
_MESSAGE, _ENUM, _STRING, _BYTES, _FLOATS = 11, 14, 9, 12, (1, 2)


def damaged_onnx(random: Random, content: bytes) -> tuple[bytes, str]:
    """Another file, and what was done to it."""
    if random.random() < 0.3:
        return damaged_bytes(random, content)
    model = onnx.ModelProto()
    model.ParseFromString(content)
    done = []
    for _ in range(random.choice((1, 1, 2, 4))):
        how = random.choice((_field, _field, _field, *_ATTACKS))
        done.append(how.__name__.strip("_") + str(how(random, model) or ""))
    return model.SerializeToString(), ", ".join(done)


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == _MESSAGE:
            for inner in value if _repeated(message, field) else [value]:
                yield from _messages(inner)


def _repeated(message: Any, field: Any) -> bool:
    value = getattr(message, field.name)
    return hasattr(value, "append") or hasattr(value, "add")


def _field(random: Random, model: onnx.ModelProto) -> str:
    """Sets, removes, repeats or reorders one field."""
    message = random.choice(list(_messages(model)))
    field = random.choice(list(message.DESCRIPTOR.fields))
    if _repeated(message, field):
        _repeated_field(random, getattr(message, field.name), field)
    elif field.type == _MESSAGE:
        inner = getattr(message, field.name)
        inner.Clear() if random.random() < 0.5 else inner.SetInParent()
    elif random.random() < 0.15:
        message.ClearField(field.name)
    else:
        with contextlib.suppress(ValueError):  # some enumerations are closed
            setattr(message, field.name, _value(random, field))
    return f" {message.DESCRIPTOR.name}.{field.name}"


def _repeated_field(random: Random, values: Any, field: Any) -> None:
    how = random.randrange(4)
    if values and how == 0:
        del values[random.randrange(len(values)) :]
    elif values and how == 1:
        place = random.randrange(len(values))
        values.extend([values[place]] * random.choice((1, 2, 100)))
    elif field.type == _MESSAGE:
        values.add()
    elif values and how == 2:
        values[random.randrange(len(values))] = _value(random, field)
    else:
        values.append(_value(random, field))


def _value(random: Random, field: Any) -> Any:
    if field.type == _STRING:
        # Only what a string field can hold.
        return random.choice([t for t in (*PATHS, *TEXTS) if t.isprintable()] + [""])
    if field.type == _BYTES:
        return random.choice((b"", b"\xff\xfe", b"\x00" * 100, random.randbytes(9)))
    if field.type in _FLOATS:
        return random.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if field.type == _ENUM:
        return random.choice((0, 1, 6, 7, 16, 22, 23, 30))
    small = random.random() < 0.4
    options = range(-3, 40) if small else [n for n in _WHOLE if -(2**31) <= n < 2**31]
    wide = field.type in (3, 4, 16, 18)
    options = [n for n in _WHOLE if -(2**63) <= n < 2**63] if wide else options
    return random.choice([n for n in options if n >= 0 or field.type not in (4, 13)])


def _dims(random: Random, model: onnx.ModelProto) -> None:
    """Sizes that overflow, or that no memory holds."""
    tensors = [m for m in _messages(model) if isinstance(m, TensorProto)]
    if tensors:
        tensor = random.choice(tensors)
        tensor.dims[:] = random.choice(
            ([2**62, 4], [2**63 - 1] * 3, [0, 2**62], [-1], [1] * 500, [2**40], [2**31])
        )


def _type_sizes(random: Random, model: onnx.ModelProto) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    for dim in value.type.tensor_type.shape.dim:
        dim.dim_value = random.choice((0, -1, 2**31, 2**62))


def _cycle(random: Random, model: onnx.ModelProto) -> None:
    nodes = [n for n in model.graph.node if n.input and n.output]
    if nodes:
        first, second = random.choice(nodes), random.choice(nodes)
        first.input[0] = second.output[0]


def _dangling(random: Random, model: onnx.ModelProto) -> None:
    nodes = [n for n in model.graph.node if n.input]
    if nodes:
        node = random.choice(nodes)
        node.input[random.randrange(len(node.input))] = random.choice(("", "nowhere"))


def _deep(random: Random, model: onnx.ModelProto) -> str:
    """Branches in branches."""
    depth = random.choice((5, 20, 30))
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for _ in range(depth):
        node = helper.make_node("If", ["x"], ["y"], then_branch=inner)
        inner = helper.make_graph([node], "g", [], [])
    node = model.graph.node.add(op_type="If", input=["x"], output=["deep"])
    node.attribute.append(helper.make_attribute("else_branch", inner))
    return f" {depth}"


def _wide(random: Random, model: onnx.ModelProto) -> str:
    """A long chain, read from the last node to the first."""
    length = random.choice((300, 300, 1500, 4000))
    for k in reversed(range(length)):
        model.graph.node.add(op_type="Neg", input=[f"c{k}"], output=[f"c{k + 1}"])
    return f" {length}"


def _functions(random: Random, model: onnx.ModelProto) -> str:
    """Functions that call themselves, or that double with every level."""
    depth = random.choice((1, 3, 24, 60))
    loop = random.random() < 0.4
    opsets = list(model.opset_import)
    for level in range(depth):
        last = level + 1 == depth
        callee = "F0" if last and loop else "Neg" if last else f"F{level + 1}"
        domain = "" if callee == "Neg" else "hostile"
        nodes = [
            helper.make_node(callee, ["a"], [out], domain=domain) for out in ("b", "c")
        ]
        model.functions.append(
            helper.make_function("hostile", f"F{level}", ["a"], ["c"], nodes, opsets)
        )
    source = model.graph.input[0].name if model.graph.input else ""
    node = helper.make_node("F0", [source], ["called"], domain="hostile")
    model.graph.node.append(node)
    return f" {depth}{' in a loop' if loop else ''}"


def _constant_bomb(random: Random, model: onnx.ModelProto) -> str:
    """Small tables from which large ones are computed."""
    size = random.choice((2**20, 2**33, 2**40))
    tensor = helper.make_tensor("big", TensorProto.INT64, [1], [size])
    op = random.choice(("ConstantOfShape", "Expand", "Range", "Tile"))
    model.graph.initializer.append(tensor)
    zero = helper.make_tensor("zero", TensorProto.INT64, [], [0])
    one = helper.make_tensor("one", TensorProto.INT64, [], [1])
    flat = helper.make_tensor("flat", TensorProto.INT64, [], [size])
    line = helper.make_tensor("line", TensorProto.INT64, [1], [1])
    model.graph.initializer.extend([zero, one, flat, line])
    operands = {
        "ConstantOfShape": ["big"],
        "Expand": ["line", "big"],
        "Range": ["zero", "flat", "one"],
        "Tile": ["line", "big"],
    }[op]
    model.graph.node.append(helper.make_node(op, operands, ["bomb"]))
    model.graph.node.append(helper.make_node("Neg", ["bomb"], ["after"]))
    return f" {op} {size}"


def _external(random: Random, model: onnx.ModelProto) -> str:
    """Weights said to lie in another file, or elsewhere in it."""
    tensors = list(model.graph.initializer)
    if not tensors:
        return ""
    tensor = random.choice(tensors)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    where = random.choice(
        (*PATHS, "model.data", "link.data", "linked/secret.data", "pipe", "folder")
    )
    numbers = [str(n) for n in _WHOLE] + ["", "1e3", "٣", "²", " 8", "9" * 5000]
    for key, value in (
        ("location", where),
        ("offset", random.choice(["0", "0", *numbers])),
        ("length", random.choice(["0", "64", *numbers])),
    ):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return f" {where!r}"


def _metadata(random: Random, model: onnx.ModelProto) -> str:
    """Provenance that a reader parses."""
    texts = (
        "[" * 5000,
        "(" * 150 + ")" * 150,
        "['a'," * 90 + "]" * 90,
        "-" * 20_000 + "1",
        "9" * 5000,
        "['x'] * 10**9",
        "__import__('os').system('id')",
        "[1, 2, None]",
        "['a', 'b'",
        "{'a': 1}",
    )
    text = random.choice(texts)
    nodes = list(model.graph.node)
    if nodes:
        node = random.choice(nodes)
        kind = random.choice(("name_scopes", "class_hierarchy", "stack_trace"))
        entry = node.metadata_props.add()
        entry.key, entry.value = f"pkg.torch.onnx.{kind}", text
    return f" {text[:20]!r}"


def _attribute(random: Random, model: onnx.ModelProto) -> str:
    """A permutation, axis or table of another kind."""
    nodes = [n for n in model.graph.node if n.attribute]
    if not nodes:
        return ""
    attribute = random.choice(list(random.choice(nodes).attribute))
    value: Any = random.choice(
        ([9, 9, 9], [2**62], [], 1.5, "text", [0.5, float("nan")], -99, [b"\xff"])
    )
    if value == []:
        del attribute.ints[:]
        return f" {attribute.name}"
    other = helper.make_attribute(attribute.name, value)
    attribute.CopyFrom(other)
    return f" {attribute.name}"


_ATTACKS: tuple[Callable[[Random, onnx.ModelProto], Any], ...] = (
    *(_dims, _type_sizes, _cycle, _dangling, _deep, _wide, _functions),
    *(_constant_bomb, _external, _external, _metadata, _attribute),
)
