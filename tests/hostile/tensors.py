"""Damage for safetensors files: the header, its numbers, and what follows it."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.hostile.documents import NUMBERS, damaged_bytes, damaged_json, strange_key

_DTYPES = ("F32", "F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "F4", "C64", "")


def damaged_safetensors(random: Random, content: bytes) -> tuple[bytes, str]:
    """Another file, and what was done to it."""
    if random.random() < 0.25:
        return damaged_bytes(random, content)
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    how = random.randrange(8)
    if how == 0:
        claimed = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        return claimed.to_bytes(8, "little") + text + data, f"header of {claimed}"
    if how == 1:
        return _file(text, data[: random.randrange(len(data) + 1)]), "data cut"
    if how == 2:
        return _file(text + b" " * random.choice((1, 10**6)), data), "header padded"
    if how == 3:
        text, done = damaged_json(random, text)
        return _file(text, data), f"header: {done}"
    header = json.loads(text)
    for _ in range(random.randint(1, 2)):
        done = _edit(random, header)
    return _file(json.dumps(header).encode(), data), done


def _edit(random: Random, header: dict[str, Any]) -> str:
    """Changes one entry to something that parses as a header."""
    name = random.choice([key for key in header if key != "__metadata__"] or [""])
    if not name:
        return "nothing"
    entry, how = header[name], random.randrange(7)
    if how == 0:
        entry["dtype"] = random.choice(_DTYPES)
    elif how == 1:
        entry["shape"] = [random.choice(NUMBERS) for _ in range(random.randint(0, 4))]
    elif how == 2:
        entry["shape"] = entry["shape"][::-1] or [1] * random.choice((1, 64, 5000))
    elif how == 3:
        entry["data_offsets"] = [random.choice(NUMBERS), random.choice(NUMBERS)]
    elif how == 4:
        entry["data_offsets"] = random.choice(list(header.values())).get(
            "data_offsets", [0, 0]
        )
    elif how == 5:
        header[strange_key(random)] = header.pop(name)
    else:
        del header[name]
    return f"{name[:40]}: edit {how}"


def _file(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data
