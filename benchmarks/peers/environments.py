"""An environment of its own for each peer, made once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.cache import cache

_EXPORT = ("onnx==1.23.2", "onnxscript==0.7.2")
_MODELS = ("torch==2.13.0", "transformers==5.23.0", *_EXPORT)

PEERS: dict[str, tuple[str, ...]] = {
    "fgcompile": (),
    "script": (),
    "torch.ao": (),
    "torch-pruning": (*_MODELS, "torch-pruning==1.6.1"),
    "onnxsim": (*_MODELS, "onnxsim==0.8.1", "onnxruntime==1.31.1"),
}
"""What each needs. What torch has by itself runs where this program runs."""


def interpreter(peer: str) -> str:
    """Python with what `peer` needs; installs it if that was not done yet.

    Raises:
        CalledProcessError: If pip cannot install it.
    """
    needs = PEERS[peer]
    if not needs:
        return sys.executable
    digest = hashlib.sha256(" ".join((sys.version, *needs)).encode()).hexdigest()[:12]
    folder = cache() / "peers" / f"{peer}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *needs]
        subprocess.run(install, check=True)
        (folder / "ready").touch()
    return str(python)


def installed(python: str, peer: str) -> str:
    """Version of a peer as its environment has it, "" if it is a part of torch."""
    package = next((n.split("==")[0] for n in PEERS[peer][::-1] if peer in n), "")
    if not package:
        return ""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


def folder_for(name: str) -> Path:
    """An empty folder in the cache."""
    folder = cache() / "peers" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
