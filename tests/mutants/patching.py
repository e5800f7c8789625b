"""Replacing a function of fgcompile in every place that holds it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

Make = Callable[[Any], Any]
"""Makes the broken function from the right one."""


@contextlib.contextmanager
def broken(place: str, make: Make) -> Iterator[None]:
    """In the body, `place` ("module:name") is what `make` makes of it.

    Modules import functions by name and keep them in tables, so that every global,
    dict and tuple of the package that holds the right one holds the broken one.
    """
    module, _, name = place.partition(":")
    right: Any = import_module(module)
    *owners, last = name.split(".")
    for owner in owners:
        right = getattr(right, owner)
    if owners:  # a method: its class is the only place
        with _set(vars_of := right, last, make(getattr(vars_of, last))):
            yield
        return
    right = getattr(right, last)
    wrong = make(right)
    with contextlib.ExitStack() as stack:
        places = list(_holders(right, wrong))
        for holder, key, value in places:
            stack.enter_context(_set(holder, key, value))
        yield


def _holders(right: Any, wrong: Any) -> Iterator[tuple[Any, Any, Any]]:
    for name, module in list(sys.modules.items()):
        if not name.startswith("fgcompile") or module is None:
            continue
        for key, value in list(vars(module).items()):
            if value is right:
                yield module, key, wrong
            elif isinstance(value, dict):
                for inner in [k for k, v in value.items() if v is right]:
                    yield value, inner, wrong
            elif isinstance(value, tuple) and any(v is right for v in value):
                yield module, key, tuple(wrong if v is right else v for v in value)


@contextlib.contextmanager
def _set(holder: Any, key: Any, value: Any) -> Iterator[None]:
    table = isinstance(holder, dict)
    before = holder[key] if table else vars(holder)[key]
    _write(holder, key, value)
    try:
        yield
    finally:
        _write(holder, key, before)


def _write(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    else:
        setattr(holder, key, value)
