"""Reads cases in a child process with limits; a case that hangs or dies is reported.

The child is forked from a process that has everything imported, and reads one case
after the other when it is told to. If it does not answer, it is killed, and a new
child goes on with the next case.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fgcompile.errors import FgcompileError
from tests.hostile.guard import Guard, TrespassError

SECONDS = 10.0
"""Processor time that a case may take, or sleep without using any."""
BYTES = 2 << 30
"""Address space that cases may take, above what the process has before them."""
_POLL = 0.5
_FORK = multiprocessing.get_context("fork")
_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "Unable to allocate", "ENOMEM")


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        name: On the command line and in the table.
        share: How many of all inputs it gets, relative to the others.
        build: Writes good files into a folder.
        attack: Damages a copy of them in place; says what it did.
        use: Reads the copy.
        commands: Programs that it may run.
    """

    name: str
    share: float
    build: Callable[[Path], None]
    attack: Callable[[Random, Path], str]
    use: Callable[[Path], None]
    commands: tuple[str, ...] = ()


@dataclass
class Outcome:
    """How a case ended: "accepted", "refused", or a defect."""

    kind: str
    detail: str = ""
    change: str = ""
    seconds: float = 0.0
    megabytes: int = 0

    @property
    def defect(self) -> bool:
        return self.kind not in ("accepted", "refused")

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail} ({self.change})"


@dataclass
class Tally:
    """Outcomes of a target's cases.

    Attributes:
        defects: Numbers of cases, by what went wrong.
    """

    counts: Counter[str] = field(default_factory=Counter)
    defects: dict[str, list[int]] = field(default_factory=dict)
    slowest: float = 0.0
    megabytes: int = 0

    def add(self, number: int, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        self.megabytes = max(self.megabytes, outcome.megabytes)
        if outcome.defect:
            key = f"{outcome.kind}: {outcome.detail}"
            self.defects.setdefault(key, []).append(number)


def damage(target: Target, random: Random, work: Path) -> str:
    """Makes a damaged copy of the target's good files; says what was done to it."""
    good, case = build(target, work), work / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case, symlinks=True, copy_function=_copied)
    return target.attack(random, case)


def numbered(target: Target, seed: int, number: int) -> Random:
    """What decides about an input: the same one for the same seed and number."""
    return Random(f"{seed}:{target.name}:{number}")


def read_case(target: Target, work: Path, guard: Guard) -> Outcome:
    """The damaged copy, read in this process."""
    start = time.process_time()
    guard.start(target.commands)
    try:
        kind, detail = _outcome(target, work / "case")
    finally:
        guard.stop()
    if guard.found:
        kind, detail = "trespass", guard.found[0]
    return Outcome(kind, detail, seconds=time.process_time() - start)


def build(target: Target, work: Path) -> Path:
    """The folder of the target's good files."""
    good = work / target.name
    if not good.exists():
        good.mkdir()
        target.build(good)
    return good


def _copied(source: str, target: str) -> None:
    os.link(source, target) if _is_special(source) else shutil.copyfile(source, target)


def _is_special(file: str) -> bool:
    return not os.path.isfile(file)


def _outcome(target: Target, case: Path) -> tuple[str, str]:
    streams = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            target.use(case)
    except FgcompileError as error:
        if _ran_out(error):
            return "memory", _place(error)
        return "refused", type(error).__name__
    except TrespassError as error:
        return "trespass", str(error)
    except MemoryError as error:
        return "memory", _place(error)
    except Exception as error:
        kind = "memory" if _ran_out(error) else "error"
        return kind, f"{type(error).__name__} at {_place(error)}"
    return "accepted", ""


def _ran_out(error: BaseException | None) -> bool:
    """Whether an error was caused by a lack of memory, however it was renamed."""
    while error is not None:
        text = str(error)
        if isinstance(error, MemoryError) or any(t in text for t in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(error: BaseException) -> str:
    """The last line of the package in the traceback, and the last one of all."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/fgcompile/" in f.filename or "/passes/" in f.filename]
    names = [f"{Path(f.filename).name}:{f.lineno}" for f in (*own[-1:], *frames[-1:])]
    return " < ".join(dict.fromkeys(names))


class Reader:
    """Reads the inputs of a target in a child, which is replaced when it fails."""

    def __init__(self, target: Target, work: Path) -> None:
        """Writes the good files below `work`."""
        build(target, work)
        self._target, self._work = target, work
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def read(self, random: Random) -> Outcome:
        """How an input ends that is damaged as `random` says."""
        change = damage(self._target, random, self._work)
        if self._process is None:
            self._start()
        self._pipe.send("read")
        outcome = self._answer()
        outcome.change = change
        return outcome

    def _start(self) -> None:
        self._pipe, theirs = _FORK.Pipe()
        arguments = (self._target, self._work, theirs, self._pipe)
        self._process = _FORK.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()

    def _answer(self) -> Outcome:
        if fault := _wait(self._pipe, self._process.pid):
            self._stop()
            return Outcome(fault, seconds=SECONDS)
        try:
            outcome: Outcome = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._stop()
            return Outcome("crash", f"exit {code}")
        return outcome

    def _stop(self) -> None:
        if self._process is None:
            return
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self._pipe.close()
        self._process = None


def run(
    target: Target, seed: int, numbers: range, work: Path, tell: Callable[[str], None]
) -> Tally:
    """All cases of a target; each defect is told when it is found."""
    tally = Tally()
    with Reader(target, work) as reader:
        for number in numbers:
            outcome = reader.read(numbered(target, seed, number))
            tally.add(number, outcome)
            if outcome.defect:
                tell(f"{target.name}:{number} {outcome}")
    return tally


def _wait(pipe: Any, pid: int) -> str:
    """Nothing, or "hang" if the child works or sleeps for too long.

    Time in which a busy machine does not let it run does not count.
    """
    _, begin = _status(pid)
    last, asleep = begin, 0.0
    while not pipe.poll(_POLL):
        state, used = _status(pid)
        asleep = asleep + _POLL if state in "SD" and used == last else 0.0
        last = used
        if used - begin > SECONDS or asleep > SECONDS:
            return "hang"
    return ""


def _status(pid: int) -> tuple[str, float]:
    """State of a process, such as "R" or "S", and its processor time [s]."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # no such file system, or the process is gone
        return "S", 0.0
    fields = text.rpartition(")")[2].split()
    return fields[0], sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _serve(target: Target, work: Path, pipe: Any, parents: Any) -> None:
    """The child: it never returns to the parent's code."""
    parents.close()
    tempfile.tempdir = str(work)
    sys.dont_write_bytecode = True
    sys.stdin = io.StringIO()
    guard = Guard(work, work / "outside")
    used = _address_space()
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    before = _peak()
    with contextlib.suppress(EOFError):
        while pipe.recv():
            outcome = read_case(target, work, guard)
            outcome.megabytes = (_peak() - before) >> 20
            pipe.send(outcome)
    os._exit(0)


def _address_space() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
