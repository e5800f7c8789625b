"""Damage for any file: flipped bits, cuts, and JSON with values nobody expects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

PATHS = (
    *("../outside/secret", "../outside/secret.safetensors", "/etc/passwd"),
    *("../../../../../../etc/passwd", "a/../../outside/secret.data", "~/.ssh/id_rsa"),
    *("//etc/passwd", ".", "..", "", "\x00", "a\x00b", "C:\\x", "file:///etc/passwd"),
)
"""Places that no file may lead to."""

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**62),
    *(2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 0.0, -0.0, 0.5, -1.5, 1e-320, 1e308),
    *(math.inf, -math.inf, math.nan),
)
TEXTS = (
    *("x" * 100_000, "\ud800", "\u202e", "__class__", "__import__('os').getcwd()"),
    *("os.system", "1e999", "0x10", "true", "${HOME}", "%s%n", "<script>", "\n# x\n"),
)


def damaged_bytes(random: Random, content: bytes) -> tuple[bytes, str]:
    """Another content, and what was done to it."""
    how = random.choice(_BYTES)
    return how(random, bytearray(content)), how.__name__.strip("_")


def damaged_json(random: Random, content: bytes) -> tuple[bytes, str]:
    """A JSON document with one to three changes; seldom one that does not parse."""
    if random.random() < 0.25:
        how = random.choice(_TEXT)
        return how(random, content), how.__name__.strip("_")
    document = json.loads(content)
    done = []
    for _ in range(random.randint(1, 3)):
        document, change = _changed(random, document)
        done.append(change)
    return json.dumps(document).encode(), ", ".join(done)


def strange_value(random: Random) -> Any:
    """A value of a type, size or spelling that a reader may not expect."""
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1:
        return random.choice(PATHS)
    if kind == 2:
        return random.choice(TEXTS)
    if kind == 3:
        return random.choice(NUMBERS[:20])
    return random.choice(
        (None, True, False, [], {}, [None], {"": {}}, [[[]]], _nest(50), [0] * 5000)
    )


def _nest(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def _changed(random: Random, document: Any) -> tuple[Any, str]:
    """The document with one place changed; places that are values are likelier."""
    places = list(_places(document, ()))
    if not places:
        return strange_value(random), "all"
    path = random.choice(places)
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    last, how = path[-1], random.randrange(10)
    if how == 0:
        del holder[last]
    elif how == 1 and isinstance(holder, dict):
        holder[strange_key(random)] = holder.pop(last)
    elif how == 2 and isinstance(holder, list):
        holder.extend([holder[last]] * random.choice((1, 3, 1000)))
    elif how == 3:
        other = random.choice(places)
        holder[last] = _at(document, other)
    elif how == 4 and isinstance(holder[last], int | float):
        holder[last] = holder[last] * random.choice((-1, 2, 10, 1000)) + 1
    else:
        holder[last] = strange_value(random)
    # A place moved into itself is a loop, which JSON cannot hold.
    try:
        json.dumps(document)
    except (ValueError, RecursionError):
        holder[last] = None
    return document, "/".join(map(str, path))[:80]


def strange_key(random: Random) -> str:
    """A name that a reader may not expect."""
    return str(random.choice((*PATHS, *TEXTS[1:], "__metadata__", "weight.weight")))


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:20]
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return json.loads(json.dumps(document))


def _cut(random: Random, content: bytearray) -> bytes:
    return bytes(content[: random.randrange(len(content) + 1)])


def _flip_bits(random: Random, content: bytearray) -> bytes:
    for _ in range(random.choice((1, 2, 8, 64))):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(content)


def _set_bytes(random: Random, content: bytearray) -> bytes:
    for _ in range(random.choice((1, 2, 8))):
        place = random.randrange(len(content))
        content[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(content)


def _insert(random: Random, content: bytearray) -> bytes:
    place = random.randrange(len(content))
    content[place:place] = random.randbytes(random.choice((1, 2, 9, 300)))
    return bytes(content)


def _remove(random: Random, content: bytearray) -> bytes:
    place = random.randrange(len(content))
    del content[place : place + random.choice((1, 2, 9, 300))]
    return bytes(content)


def _repeat(random: Random, content: bytearray) -> bytes:
    place = random.randrange(len(content))
    piece = content[place : place + random.choice((1, 4, 60, 2000))]
    content[place:place] = piece * random.choice((1, 2, 50))
    return bytes(content)


def _foreign(random: Random, content: bytearray) -> bytes:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    return random.choice(
        (b"", b"\x80\x04K\x01.", pointer, b"PK\x03\x04", b"\x89PNG", b"null", b"{}")
    )


_BYTES: tuple[Callable[[Random, bytearray], bytes], ...] = (
    *(_cut, _flip_bits, _flip_bits, _set_bytes, _insert, _remove, _repeat, _foreign),
)


def _damaged(random: Random, content: bytes) -> bytes:
    return damaged_bytes(random, content)[0]


def _nested(random: Random, content: bytes) -> bytes:
    """As deep as parsers that recurse do not expect."""
    depth = random.choice((500, 2000, 100_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opening * depth + b"1" + closing * depth
    return random.choice((deep, content.replace(b": ", b": " + deep + b', "z": ', 1)))


def _twice(random: Random, content: bytes) -> bytes:
    """A key twice, with another value."""
    key = random.choice([k for k in json.loads(content)] or [""])
    value = json.dumps(strange_value(random)).encode()
    first = content.index(b"{") + 1
    return (
        content[:first]
        + json.dumps(key).encode()
        + b":"
        + value
        + b","
        + content[first:]
    )


def _digits(random: Random, content: bytes) -> bytes:
    """A number of more digits than Python converts."""
    return content.replace(b"1", b"1" * random.choice((400, 5000, 200_000)), 1)


def _encoded(random: Random, content: bytes) -> bytes:
    code = random.choice(("utf-16", "utf-8-sig", "utf-32"))
    return content.decode().encode(code)


_TEXT: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_damaged, _damaged, _nested, _twice, _digits, _encoded),
)
