"""All mutants."""

from __future__ import annotations

from tests.mutants import analyses, rewrites, written

MUTANTS = (*analyses.MUTANTS, *rewrites.MUTANTS, *written.MUTANTS)
