"""Every error that fgcompile raises on purpose."""

from __future__ import annotations


class FgcompileError(Exception):
    """Root of all errors of this package; catch it to catch them all."""


class CaptureError(FgcompileError):
    """The model could not be turned into a graph."""


class CouplingError(FgcompileError):
    """A dimension rule and the shapes in the graph contradict each other."""


class GateError(FgcompileError):
    """Gates were inserted, addressed or configured wrongly."""


class VerifyError(FgcompileError):
    """A program is malformed, or computes something else than it should."""


class ExportError(FgcompileError):
    """A lowered model could not be written or run by its target."""


class FormatError(FgcompileError):
    """A file is damaged, foreign, or of an unknown version."""
