"""The captured graph against the model whose code it came from.

Everything later is compared with the graph; this is what makes the graph a reference.
"""

from __future__ import annotations

from torch.fx import GraphModule

from fgcompile.program import Program
from fgcompile.targets.verify import outputs_of, verify_equal

_REMEDY = (
    "  Nothing was written. The model's code may choose by values or sizes what it "
    "computes,\n  of which a graph holds one choice: give example_inputs like those "
    "that it will see."
)


def verify_captured(program: Program) -> None:
    """Runs `program` and the model that it was captured from, in eval mode.

    Raises:
        VerifyError: If they differ on some inputs that both take.
    """
    model = program.user_model
    if model is None or isinstance(model, GraphModule):
        return
    verify_equal(
        program,
        program,
        reference=lambda **inputs: outputs_of(model, inputs),
        name="the captured graph",
        remedy=_REMEDY,
    )
