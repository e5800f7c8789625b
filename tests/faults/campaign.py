"""Processes that die while they write, and two that write at once."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

from tests.faults.killing import kill_once, measure, start_child
from tests.faults.places import fresh
from tests.faults.writers import Writer

LEFT = (".fgcompile-*", ".*.tmp", "*.safetensors.*")
"""What a killed process may leave beside the files."""


def kill(writer: Writer, times: int, seed: int, work: Path) -> Counter[str]:
    """States after `times` kills: "old", "new", "nothing", or what is wrong.

    Every fifth attempt finds no old state. After every fourth, the next write must
    succeed and leave nothing of the killed one.
    """
    found: Counter[str] = Counter()
    random = Random(f"{seed}:{writer.name}")
    path = fresh(work, writer)
    events, seconds = measure(partial(writer.write, "new", path))
    for attempt in count():
        if found["killed"] == times:
            return found
        has_old = attempt % 5 != 0
        path = fresh(work, writer, has_old)
        killed = kill_once(partial(writer.write, "new", path), random, events, seconds)
        state = writer.state(path, has_old)
        bad = state not in (("old", "new") if has_old else ("nothing", "new"))
        found["killed" if killed else "done before"] += 1
        found[f"BROKEN {state}" if bad else state] += 1
        if attempt % 4 == 0:
            writer.write("new", path)
            again = writer.state(path)
            left = leftovers(path.parent)
            if again != "new" or left:
                found[f"BROKEN next write: {again}, left {left}"] += 1
    return found


def leftovers(folder: Path) -> list[str]:
    """Names of files that a killed process left below `folder`."""
    return sorted({f.name for pattern in LEFT for f in folder.rglob(pattern)})


def two_writers(writer: Writer, work: Path, rounds: int) -> Counter[str]:
    """States that a reader sees while two processes write, and afterwards."""
    found: Counter[str] = Counter()
    path = fresh(work, writer)

    def repeat(state: str) -> None:
        for _ in range(rounds):
            writer.write(state, path)

    children = [start_child(partial(repeat, state)) for state in ("old", "new")]
    while children:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                found["writer done" if status == 0 else "BROKEN writer failed"] += 1
        found[_seen(writer, path)] += 1
    if leftovers(path.parent):
        writer.write("new", path)
        left = leftovers(path.parent)
        found[
            "leftovers gone with the next write" if not left else f"BROKEN {left}"
        ] += 1
    return found


def _seen(writer: Writer, path: Path) -> str:
    """What a reader finds; one that opens files one by one may have to look twice."""
    for _ in range(5):
        state = writer.state(path)
        if state in ("old", "new"):
            return state
    return f"BROKEN {state}"
