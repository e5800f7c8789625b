"""What accuracies say about the claims, and the page about them."""

from __future__ import annotations

from typing import Any

from scipy.stats import ttest_rel

from benchmarks.markdown import table

CLAIMS = (
    *(("adapt", "learned", other) for other in ("closed alike", "smallest", "random")),
    *(("adapt", "learned", other) for other in ("head", "bitfit", "lora")),
    *(
        ("selection", "activation, small", other)
        for other in ("random", "activation, large", "weight, small", "gradient, small")
    ),
    ("fusion", "apart", "together"),
)
"""Which is said to be better than which."""


def verdicts(accuracies: dict[str, Any]) -> list[dict[str, Any]]:
    """For each claim the mean difference and its interval, paired by seed."""
    rows = []
    for claim, better, worse in CLAIMS:
        values = accuracies[claim]
        test = ttest_rel(values[better], values[worse])
        low, high = (float(v) for v in test.confidence_interval(0.95))
        mean = sum(values[better]) / len(values[better])
        rows.append(
            {
                "claim": claim,
                "better": better,
                "than": worse,
                "difference": mean - sum(values[worse]) / len(values[worse]),
                "low": low,
                "high": high,
                "holds": low > 0,
            }
        )
    return rows


def page(found: dict[str, Any]) -> str:
    """docs/claims.md."""
    rows = [_cells(row) for row in found["verdicts"]]
    heads = ("claim", "better", "than", "by points", "95 % interval", "verdict")
    seeds = len(found["accuracies"]["adapt"]["learned"])
    gone = found["accuracies"]["adapt"]["removed"]
    return "\n".join(
        [
            _HEAD.format(seeds=seeds, low=min(gone), high=max(gone)),
            table(heads, rows, left=3),
            _SWITCHING,
        ]
    )


_HEAD = """\
# The papers' claims on a small network

A residual network with two hidden layers of 96 learns scikit-learn's digits, and is
then adapted from 200 rows to digits that lie a pixel further right. {seeds} seeds,
accuracy on rows that nothing was trained on, differences paired by seed. Made by
`python -m benchmarks.claims`, which says more. So small a network decides nothing about
large ones.

- **adapt**: FineGates as published ("learned") removes {low:.0%} to {high:.0%} of the
  four matrices; "closed alike" closes the same units, but leaves factors of 1 instead
  of the trained ones; "smallest" and "random" close as many of other rows and columns.
  The rest removes nothing. All train the head.
- **selection**: what S2FT selects a quarter of the channels by.
- **fusion**: two tasks (right, and down) with an adapter each, fused into one model, by
  the accuracy that this costs: with other channels ("apart") or with the same ones.
"""
_SWITCHING = """\
Whether adapters of S2FT are exchanged faster than those of LoRA (figure 6) is a matter
of time, and in [methods](methods.md#s2ft).
"""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, difference, high = (100 * row[k] for k in ("low", "difference", "high"))
    word = "holds" if low > 0 else "**the opposite**" if high < 0 else "open"
    interval = f"{low:+.1f} to {high:+.1f}"
    cells = (row["claim"], row["better"], row["than"], f"{difference:+.1f}")
    return (*cells, interval, word)
