"""Every registered rule against its operator, by numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fgcompile.errors import CouplingError
from fgcompile.gates import op as gate_op
from fgcompile.rules import registry
from fgcompile.rules.movement import movement_names
from fgcompile.rules.oracle import check_rule
from fgcompile.rules.registry import DimRule, dim_rule, registered_rules

assert gate_op is not None  # it registers fgcompile::gate
NO_OPERATOR = {"transformers::grouped_mm_fallback": "made by transformers"}
NO_RULE_IN_USE = {"aten::addbmm": "sums over the batch", "aten::diagonal": "no dim"}


def t(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def example(name: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Overload, arguments and keyword arguments of a call of the operator `name`."""
    x, image, volume = t(2, 3, 4), t(2, 4, 5, 6), t(2, 3, 4, 5, 6)
    index, mask = torch.tensor([[2, 0], [1, 3]]), t(3, 4) > 0
    calls: dict[str, tuple[str, tuple[Any, ...]]] = {
        "_grouped_mm": ("", (t(6, 8), t(2, 8, 4), torch.tensor([2, 6]))),
        "_adaptive_avg_pool3d": ("", (volume, [2, 2, 3])),
        "_prelu_kernel": ("", (x, t(2, 1, 4))),
        "_safe_softmax": ("", (x, -1)),
        "_softmax": ("", (x, -1, False)),
        "_upsample_bicubic2d_aa": ("", (image, [7, 7], False)),
        "_upsample_bilinear2d_aa": ("", (image, [7, 7], False)),
        "adaptive_avg_pool1d": ("", (x, [2])),
        "adaptive_avg_pool2d": ("", (image, [2, 3])),
        "adaptive_max_pool2d": ("", (image, [2, 3])),
        "addbmm": ("", (t(3, 5), t(2, 3, 4), t(2, 4, 5))),
        "addmm": ("", (t(5), t(3, 4), t(4, 5))),
        "addmv": ("", (t(3), t(3, 4), t(4))),
        "all": ("dim", (mask, 1)),
        "aminmax": ("", (x,)),
        "alpha_dropout": ("", (x, 0.1, False)),
        "amax": ("", (x, [1])),
        "amin": ("", (x, [1])),
        "any": ("dim", (mask, 1)),
        "argmax": ("", (x, 1)),
        "argmin": ("", (x, 1)),
        "argsort": ("", (x, 1)),
        "avg_pool1d": ("", (x, [2])),
        "avg_pool2d": ("", (image, [2, 2])),
        "avg_pool3d": ("", (volume, [2, 2, 2])),
        "baddbmm": ("", (t(2, 3, 5), x, t(2, 4, 5))),
        "batch_norm": (
            "",
            (image, t(4), t(4), t(4), t(4).abs() + 1, False, 0.1, 1e-5, False),
        ),
        "bilinear": ("", (x, t(2, 3, 5), t(6, 4, 5), t(6))),
        "bmm": ("", (x, t(2, 4, 5))),
        "conv1d": ("", (t(2, 3, 7), t(5, 3, 3), t(5))),
        "conv2d": ("", (image, t(6, 2, 3, 3), t(6), [1, 1], [1, 1], [1, 1], 2)),
        "conv3d": ("", (t(2, 3, 4, 4, 4), t(5, 3, 2, 2, 2), t(5))),
        "conv_transpose1d": ("", (t(2, 3, 4), t(3, 5, 2), t(5))),
        "conv_transpose2d": ("input", (image, t(4, 3, 2, 2), t(3))),
        "cummax": ("", (x, 1)),
        "cummin": ("", (x, 1)),
        "cumprod": ("", (x, 1)),
        "cumsum": ("", (x, 1)),
        "div": ("Tensor", (x, t(4).abs() + 1)),
        "dot": ("", (t(4), t(4))),
        "dropout": ("", (x, 0.1, False)),
        "einsum": ("", ("btd,hde->bthe", [x, t(5, 4, 2)])),
        "embedding": ("", (t(5, 3), index)),
        "expand": ("", (t(3, 1, 4), [2, 3, 5, 4])),
        "feature_dropout": ("", (x, 0.1, False)),
        "full_like": ("", (x, 0.0)),
        "gather": ("", (t(4, 3), 0, torch.tensor([[1, 0, 2], [3, 3, 0]]))),
        "group_norm": ("", (image, 2, t(4), t(4))),
        "instance_norm": ("", (image, t(4), t(4), None, None, True, 0.1, 1e-5, False)),
        "kthvalue": ("", (x, 2, 1)),
        "layer_norm": ("", (x, [3, 4], t(3, 4), t(3, 4))),
        "linalg_vector_norm": ("", (x, 2, [1])),
        "linear": ("", (x, t(5, 4), t(5))),
        "log_softmax": ("int", (x, 1)),
        "logcumsumexp": ("", (x, 1)),
        "logical_and": ("", (x > 0, mask)),
        "logsumexp": ("", (x, [1])),
        "masked_fill": ("Scalar", (x, mask, 0.0)),
        "matmul": ("", (t(2, 1, 3, 4), t(5, 4, 3))),
        "max": ("dim", (x, 1)),
        "max_pool1d": ("", (x, [2])),
        "max_pool2d": ("", (image, [2, 2])),
        "max_pool2d_with_indices": ("", (image, [2, 2])),
        "max_pool3d_with_indices": ("", (volume, [2, 2, 2])),
        "mean": ("dim", (x, [1, 2])),
        "median": ("dim", (x, 1)),
        "min": ("dim", (x, 1)),
        "mm": ("", (t(3, 4), t(4, 5))),
        "mode": ("", (x, 1)),
        "mul": ("Tensor", (x, t(3, 1))),
        "mv": ("", (t(3, 4), t(4))),
        "nanmedian": ("dim", (x, 1)),
        "ones_like": ("", (x,)),
        "prod": ("dim_int", (x, 1)),
        "rms_norm": ("", (x, [4], t(4), 1e-5)),
        "scaled_dot_product_attention": (
            "",
            (t(2, 4, 3, 6), t(2, 2, 5, 6), t(2, 2, 5, 7), t(3, 5), 0.0, False),
        ),
        "softmax": ("int", (x, 1)),
        "sort": ("", (x, 1)),
        "std": ("dim", (x, [1])),
        "sum": ("dim_IntList", (x, [1])),
        "to": ("dtype", (x, torch.float32)),
        "topk": ("", (x, 2, 1)),
        "tril": ("", (x,)),
        "triu": ("", (x, 1)),
        "type_as": ("", (x, t(2))),
        "upsample_bicubic2d": ("", (image, [7, 7], False)),
        "upsample_bilinear2d": ("", (image, [7, 7], False)),
        "upsample_linear1d": ("", (x, [7], False)),
        "upsample_nearest1d": ("", (x, [7])),
        "upsample_nearest2d": ("", (image, [7, 7])),
        "upsample_nearest3d": ("", (volume, [7, 7, 7])),
        "upsample_trilinear3d": ("", (volume, [7, 7, 7], False)),
        "var": ("dim", (x, [1])),
        "var_mean": ("dim", (x, [1])),
        "where": ("self", (mask, x, t(4))),
        "zeros_like": ("", (x,)),
        "gate": ("", (x, t(4), -1)),
        "_to_copy": ("", (x,)),
        **{
            copies: ("", (x,))
            for copies in (
                "alias",
                "clone",
                "contiguous",
                "detach",
                "detach_",
                "lift_fresh",
                "lift_fresh_copy",
                "relu_",
                "silu_",
            )
        },
        # Movement.
        "_unsafe_view": ("", (x, [6, 4])),
        "adjoint": ("", (x,)),
        "channel_shuffle": ("", (image, 2)),
        "chunk": ("", (x, 2, 2)),
        "constant_pad_nd": ("", (x, [1, 2, 0, 1])),
        "diagonal": ("", (x,)),
        "flatten": ("using_ints", (x, 1)),
        "flip": ("", (x, [1])),
        "im2col": ("", (image, [2, 3], [1, 1], [0, 0], [2, 1])),
        "index": ("Tensor", (x, [None, torch.tensor([2, 0, 1, 1])])),
        "index_select": ("", (x, 2, torch.tensor([3, 0]))),
        "mT": ("", (x,)),
        "movedim": ("int", (x, 0, 2)),
        "narrow": ("", (x, 2, 1, 2)),
        "numpy_T": ("", (t(3, 4),)),
        "pad": ("", (x, [1, 0])),
        "permute": ("", (x, [2, 0, 1])),
        "pixel_shuffle": ("", (image, 2)),
        "pixel_unshuffle": ("", (t(2, 3, 4, 6), 2)),
        "repeat": ("", (x, [2, 1, 3, 2])),
        "repeat_interleave": ("self_int", (x, 3, 1)),
        "reshape": ("", (x, [2, 2, 6])),
        "reshape_as": ("", (x, t(4, 6))),
        "roll": ("", (x, [1], [2])),
        "select": ("int", (x, 1, 2)),
        "slice": ("Tensor", (x, 2, 1, 4, 2)),
        "split": ("Tensor", (x, 3, 2)),
        "split_with_sizes": ("", (x, [1, 2], 1)),
        "squeeze": ("dim", (t(2, 1, 3), 1)),
        "swapaxes": ("", (x, 0, 1)),
        "swapdims": ("", (x, 0, 2)),
        "t": ("", (t(3, 4),)),
        "tensor_split": ("sections", (x, 2, 2)),
        "tile": ("", (x, [3, 1])),
        "transpose": ("int", (x, 1, 2)),
        "unbind": ("int", (x, 1)),
        "unflatten": ("int", (x, 2, [2, 2])),
        "unfold": ("", (x, 1, 2, 1)),
        "unsafe_chunk": ("", (x, 2, 2)),
        "unsafe_split": ("Tensor", (x, 3, 2)),
        "unsqueeze": ("", (x, 1)),
        "view": ("", (x, [6, 2, 2])),
        "view_as": ("", (x, t(4, 6))),
    }
    keywords = {"enable_gqa": True} if name.startswith("scaled_dot") else {}
    if name == "_grouped_mm":
        return calls[name][0], _bfloat(calls[name][1]), keywords
    return *calls[name], keywords


def _bfloat(args: tuple[Any, ...]) -> tuple[Any, ...]:
    rows, weights, ends = args
    return rows.float(), weights.float(), ends.int()


def names() -> Iterator[str]:
    for name in (*registered_rules(), *movement_names()):
        if name not in NO_OPERATOR and name not in NO_RULE_IN_USE:
            yield name.partition(".")[0]


@pytest.mark.parametrize("name", sorted(set(names())))
def test_rule_tells_the_truth(name: str) -> None:
    namespace, _, op = name.partition("::")
    overload, args, kwargs = example(op)
    packet = getattr(getattr(torch.ops, namespace), op)
    check_rule(getattr(packet, overload or "default"), *args, **kwargs)


def test_pooling_without_a_batch_keeps_the_channels_apart() -> None:
    same_size = {"stride": [1, 1], "padding": [1, 1]}
    check_rule(torch.ops.aten.max_pool2d.default, t(3, 4, 5), [3, 3], **same_size)
    check_rule(torch.ops.aten.avg_pool1d.default, t(3, 4), [3], [1], [1])


@pytest.mark.parametrize("order", [-math.inf, -1, 0, 0.5, 2, math.inf])
def test_zeros_count_where_a_norm_looks_for_the_smallest(order: float) -> None:
    check_rule(torch.ops.aten.linalg_vector_norm.default, t(2, 3, 4), order, [1])


def test_reductions_of_everything_and_those_that_keep_the_dim() -> None:
    aten, x = torch.ops.aten, t(2, 3, 4)
    for op in (aten.median.default, aten.nanmedian.default, aten.sum.default):
        check_rule(op, x)
    for op in (aten.aminmax.default, aten.mode.default, aten.median.dim):
        keywords = {"dim": -1, "keepdim": True}
        check_rule(op, x, **keywords)
    check_rule(aten.kthvalue.default, x, 2)


def test_a_call_without_a_rule_is_an_error_that_says_so() -> None:
    with pytest.raises(CouplingError) as caught:
        check_rule(torch.ops.aten.addbmm.default, t(3, 5), t(2, 3, 4), t(2, 4, 5))
    assert str(caught.value) == (
        "no dimension rule for aten.addbmm.default: its rule returns None for this "
        "call\n  operands are [3, 5], [2, 3, 4], [2, 4, 5]\n"
        '  Register one: @dim_rule("aten::addbmm").'
    )
    with pytest.raises(CouplingError, match="no plane can follow"):
        check_rule(torch.ops.aten.diagonal.default, t(3, 4))


@pytest.fixture
def rule_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a rule for the time of one test, instead of the one there is."""
    rules = dict(registry._RULES)
    monkeypatch.setattr(registry, "_RULES", rules)

    def register(name: str, rule: DimRule) -> None:
        rules.pop(name, None)
        dim_rule(name)(lambda node: rule)

    return register


def test_a_dim_that_is_mixed_but_not_described_is_found(rule_of: Any) -> None:
    rule_of("aten::cumsum", DimRule("b t -> b t", kind="pointwise"))
    with pytest.raises(CouplingError) as caught:
        check_rule(torch.ops.aten.cumsum.default, t(2, 3), 1)
    assert str(caught.value) == (
        'the rule of aten.cumsum.default is wrong: "b t -> b t", pointwise\n'
        "  output 0 moves at [0, 1] and 3 other places when operand_0 changes at dim "
        "1, index 0\n  operands are [2, 3]\n"
        "  Give those dims a common factor, contract or pin it, or write _."
    )


def test_a_false_annihilator_is_found(rule_of: Any) -> None:
    rule_of(
        "aten::add",
        DimRule("..., ... -> ...", kind="pointwise", annihilators=(1,)),
    )
    with pytest.raises(CouplingError, match="though operand_1 is zero"):
        check_rule(torch.ops.aten.add.Tensor, t(2, 3), t(2, 3))


def test_a_contraction_that_is_no_sum_of_products_is_found(rule_of: Any) -> None:
    rule_of("aten::cdist", DimRule("q d, k d -> q k"))
    with pytest.raises(CouplingError):
        check_rule(torch.ops.aten.cdist.default, t(3, 4), t(5, 4))


def test_a_sum_that_counts_zeros_is_found(rule_of: Any) -> None:
    rule_of("aten::logsumexp", DimRule("b t -> b", kind="reduction", zero_safe=True))
    with pytest.raises(CouplingError):
        check_rule(torch.ops.aten.logsumexp.default, t(2, 3), [1])


def test_an_operator_that_depends_on_places_is_found(rule_of: Any) -> None:
    rule_of("aten::triu", DimRule("b t -> b t", kind="pointwise", annihilators=(0,)))
    with pytest.raises(CouplingError) as caught:
        check_rule(torch.ops.aten.triu.default, t(2, 3))
    assert str(caught.value) == (
        "the rule of aten.triu.default is wrong\n"
        "  output 0 differs at [1, 0] though all elements of the operands are alike\n"
        "  operands are [2, 3]\n"
        '  It depends on places: it is no "pointwise", but "mixing".'
    )


def test_a_forgotten_group_is_found(rule_of: Any) -> None:
    rule_of("aten::conv1d", DimRule("b i _, o i _ -> b o _"))
    image, weight = t(2, 4, 5), t(6, 2, 3)
    with pytest.raises(CouplingError):
        check_rule(torch.ops.aten.conv1d.default, image, weight, None, [1], [1], [1], 2)
