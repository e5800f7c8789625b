"""How much is masked after how many optimizer steps."""

from __future__ import annotations

WARM, COOL = 0.1, 0.7
"""Parts of the training before the sparsity rises, and after which it is final."""


def cubic_sparsity(step: int, steps: int, final: float, initial: float = 0.0) -> float:
    """Fraction that is masked after `step` of `steps` optimizer steps.

    `initial` up to a tenth of the training, `final` after seven tenths, and a cubic
    between them that is steep first: most goes while there is time to recover.

    Source: PST (arXiv 2205.11005), the authors' code, after Zhu and Gupta 2017.
    """
    if step <= WARM * steps:
        return initial
    if step > COOL * steps:
        return final
    progress = (step - WARM * steps) / ((COOL - WARM) * steps)
    return final + (initial - final) * (1 - progress) ** 3
