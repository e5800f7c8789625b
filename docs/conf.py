"""The documentation site: `python -m sphinx --fail-on-warning docs out/site`."""

from __future__ import annotations

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

html_theme = "furo"
html_title = f"fgcompile {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
