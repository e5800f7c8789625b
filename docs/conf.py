"""The documentation site: `python -m sphinx --fail-on-warning docs out/site`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fgcompile

project = "fgcompile"
author = "the fgcompile authors"
release = fgcompile.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # links such as targets.md#decoders
suppress_warnings = ["myst.header"]  # reports start where a comment on GitHub does

# Docstrings put names between single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# What `--help` says, as a page. The last verb is for git, not for people.
_docs = [sys.executable, "-m", "typer", "fgcompile.cli", "utils", "docs"]
_root = Path(__file__).resolve().parents[1]
_text = subprocess.check_output([*_docs, "--name", "fgcompile"], cwd=_root, text=True)
_page = _root / "docs" / "generated" / "cli.md"
_page.parent.mkdir(exist_ok=True)
_lines = _text.partition("## `fgcompile textconv`")[0].splitlines()
_shown = [line for line in _lines if not line.startswith("* `textconv`")]
_page.write_text("\n".join(_shown) + "\n", encoding="utf-8")
exclude_patterns = ["generated"]

html_theme = "furo"
html_title = f"fgcompile {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
smartquotes = False  # `--explain` in a text is two hyphens
