"""Runs one peer in its environment.

    python -m benchmarks.peers.worker PEER FOLDER OPTIONS

The folder holds `facts.json`; the peer leaves `model.onnx` and `result.json` in it.
Options are JSON, and go to the function `prune` of the peer.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main(peer: str, folder: Path, options: dict[str, Any]) -> None:
    """Prunes and exports; seconds and memory of both together go into the result."""
    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.peers.{peer}")
    prepared = module.prepare(folder)
    before = _peak()
    start, busy = time.perf_counter(), _processor_time()
    told = module.prune(prepared, folder, **options)
    seconds = time.perf_counter() - start
    result = {
        "seconds": round(seconds, 3),
        "process_seconds": round(_processor_time() - busy, 3),
        "megabytes": round((_peak() - before) / 1e6, 1),
        "note": told or "",
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor_time() -> float:
    """Time of all threads of this process, and of processes that it started [s]."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
