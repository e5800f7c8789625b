"""The jinja environment that all text templates share."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from jinja2 import BaseLoader, Environment, FunctionLoader, StrictUndefined

_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@cache
def environment() -> Environment:
    """Templates from this package; HTML and SVG escape by themselves."""
    loader: BaseLoader = FunctionLoader(template_text)
    env = Environment(
        loader=loader,
        autoescape=lambda name: (name or "").endswith((".html", ".svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["code"] = code
    env.filters["cell"] = cell
    env.filters["plain"] = plain
    return env


def template_text(name: str) -> str:
    """Text of a file beside the templates."""
    return files("fgcompile.report").joinpath("templates", name).read_text("utf-8")


def plain(text: object) -> str:
    """One line without control or direction characters.

    Names come from files that anybody may have written.
    """
    return _CONTROL.sub(" ", str(text))


def code(text: object) -> str:
    """A Markdown code span that its content cannot leave."""
    inner = plain(text).replace("`", "'").replace("|", "\\|")
    return f"`{inner}`" if inner.strip() else ""


def cell(text: object) -> str:
    """Markdown text in which nothing is markup, a mention or a link."""
    inner = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return re.sub(r"([\\`*_\[\]@#])(?!\|)", r"\\\1", inner)
