"""A model of the hub whose download stops half-way: an error, and then a second try."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal, get_args

from tests.faults.hub import REPOSITORY, Hub, serve
from tests.faults.places import fresh
from tests.faults.writers import Writer, lower_arguments, streaming

Interruption = Literal["cut", "killed"]
INTERRUPTIONS: tuple[Interruption, ...] = get_args(Interruption)
_PATIENCE = 300
"""Seconds after which a process that shall end hangs."""


def interrupted(how: Interruption, work: Path) -> Counter[str]:
    """What became of the output after an interrupted download, and after the next try.

    Args:
        how: "cut", the connection ends and ends again whenever the client resumes;
            or "killed", the client dies while the weights come.
        work: Folder for files of the check.
    """
    writer = streaming(work)
    path = fresh(work, writer)
    command = [sys.executable, "-m", "fgcompile.cli"]
    command += lower_arguments(REPOSITORY, work / "gates-new", path)
    found: Counter[str] = Counter()
    with (
        serve(work / "dense") as hub,
        tempfile.TemporaryDirectory(dir=work) as home,
    ):
        environment = _environment(hub, home)
        first = _cut if how == "cut" else _killed
        told = first(hub, command, environment)
        found[_judged(writer, path, told, "old", "stopped, old intact")] += 1
        hub.line = "whole"
        told = _run(command, environment)
        found[_judged(writer, path, told, "new", "next try complete")] += 1
    return found


def _environment(hub: Hub, home: str) -> dict[str, str]:
    """The user's, but all that the hub's client gets and keeps is this server's."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}
    own |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    others = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))
    }
    return others | own


def _cut(hub: Hub, command: list[str], environment: dict[str, str]) -> str:
    hub.line = "cut"
    told = _run(command, environment)
    # A lost line looks like a wrong name to transformers; the user learns both.
    parts = ("error: cannot open model", "Behind it: ", "try again")
    if told.startswith("1: ") and all(part in told for part in parts):
        return ""
    return f"unclear, exit status {told}"


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Exit status and the last of what it said, or nothing where all went well."""
    done = subprocess.run(
        *(command,),
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    said = done.stderr.strip()
    return f"{done.returncode}: {said}" if done.returncode else ""


def _killed(hub: Hub, command: list[str], environment: dict[str, str]) -> str:
    hub.line = "stalled"
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet
    ) as child:
        halfway = hub.half_sent.wait(_PATIENCE)
        child.kill()
    return "" if halfway else "no download began"


def _judged(writer: Writer, path: Path, told: str, wanted: str, good: str) -> str:
    state = writer.state(path)
    if told or state != wanted:
        return f"BROKEN {state} {told}"
    return good
