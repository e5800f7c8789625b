"""The factor notation of dimension rules: `"... i, o i, o -> ... o"`.

Operands are separated by commas; each token names the factor of one dim, from
left to right. `...` stands for any number of leading dims, aligned from the
right as in broadcasting. `(g i)` is a compound dim, `g` outermost, as in einops.
`_` is a dim that the rule says nothing about: units there are pinned.

The notation follows einops and Shardy's op sharding rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

Dim = tuple[str, ...]
"""Factors of one dim, outermost first; () for a dim that is not described."""

_TOKEN = re.compile(r"\.\.\.|\([a-z]\w*(?: [a-z]\w*)*\)|[a-z]\w*|_")


class PatternError(ValueError):
    """The text is not a pattern, or does not fit the operands."""


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: one tuple of tokens per operand and per output."""

    operands: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]

    def operand_dims(self, position: int, rank: int) -> tuple[Dim, ...]:
        """Factors of each of the `rank` dims of the operand at `position`."""
        if position >= len(self.operands):
            raise PatternError(
                f"the pattern has {len(self.operands)} operands, not {position + 1}"
            )
        return _label(self.operands[position], rank)

    def output_dims(self, rank: int) -> tuple[Dim, ...]:
        """Factors of each of the `rank` dims of the output."""
        return _label(self.output, rank)


@cache
def parse(text: str) -> Pattern:
    """The pattern that `text` spells.

    >>> parse("... i, o i -> ... o").operand_dims(0, 3)
    (('e1',), ('e0',), ('i',))

    Raises:
        PatternError: If `text` has no single `->`, or a token is malformed.
    """
    left, arrow, right = text.partition("->")
    if not arrow or "->" in right:
        raise PatternError(f"pattern {text!r} must have exactly one '->'")
    operands = tuple(_tokens(part, text) for part in left.split(","))
    return Pattern(operands, _tokens(right, text))


def _tokens(part: str, text: str) -> tuple[str, ...]:
    tokens = tuple(_TOKEN.findall(part))
    if "".join(tokens).replace(" ", "") != part.replace(" ", ""):
        raise PatternError(f"cannot read {part.strip()!r} in pattern {text!r}")
    if tokens.count("...") > 1:
        raise PatternError(f"two '...' in one operand of pattern {text!r}")
    return tokens


def _label(tokens: tuple[str, ...], rank: int) -> tuple[Dim, ...]:
    if "..." not in tokens:
        if len(tokens) != rank:
            raise PatternError(f"{' '.join(tokens)!r} does not fit a rank of {rank}")
        return tuple(map(_factors, tokens))
    at = tokens.index("...")
    free = rank - (len(tokens) - 1)
    if free < 0:
        raise PatternError(f"{' '.join(tokens)!r} does not fit a rank of {rank}")
    ellipsis = tuple((f"e{k}",) for k in reversed(range(free)))
    before, after = tokens[:at], tokens[at + 1 :]
    return (*map(_factors, before), *ellipsis, *map(_factors, after))


def _factors(token: str) -> Dim:
    if token == "_":
        return ()
    return tuple(token.strip("()").split())
