"""Folders that a smaller model is saved to and loaded from, without pickle.

A folder holds safetensors, a `config.json` where the model has a configuration, and a
manifest that says which shapes and attributes differ from what the class would build.
"""

from __future__ import annotations

from fgcompile.checkpoint.load import load
from fgcompile.checkpoint.manifest import MANIFEST, Manifest
from fgcompile.checkpoint.save import save_module

__all__ = ["MANIFEST", "Manifest", "load", "save_module"]
