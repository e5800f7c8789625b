"""Runs one peer in its environment: `python -m benchmarks.peers.worker PEER FOLDER`.

The folder holds `facts.json`; the peer leaves `model.onnx` and `result.json` in it.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from pathlib import Path

import torch


def main(peer: str, folder: Path) -> None:
    """Prunes and exports; seconds and memory of both together go into the result."""
    torch.set_num_threads(1)
    module = importlib.import_module(f"benchmarks.peers.{peer}")
    prepared = module.prepare(folder)
    before = _peak()
    start = time.perf_counter()
    told = module.prune(prepared, folder)
    seconds = time.perf_counter() - start
    result = {
        "seconds": round(seconds, 3),
        "megabytes": round((_peak() - before) / 1e6, 1),
        "note": told or "",
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
