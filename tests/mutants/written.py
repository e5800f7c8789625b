"""Mutants of the capture and of the targets: a right graph, a wrong file or module."""

from __future__ import annotations

from typing import Any

import torch

from tests.mutants import models
from tests.mutants.mutant import Mutant

TARGETS = "fgcompile.targets"
CAPTURE = "fgcompile.capture"
GATES = "fgcompile.gates"
aten = torch.ops.aten


def _as_difference(right: Any) -> Any:
    """The sum before a norm is written as another operator."""

    def keep(graph: Any) -> None:
        right(graph)
        for node in graph.all_nodes():
            if node.op_type in ("Add", "Sum") and len(node.inputs) == 2:
                node.op_type = "Mul"
                return

    return keep


def _swapped_outputs(right: Any) -> Any:
    def save(converted: Any, path: Any) -> None:
        outputs = converted.model.graph.outputs
        outputs[0], outputs[1] = outputs[1], outputs[0]
        one, two = outputs[0].name, outputs[1].name
        outputs[0].name, outputs[1].name = "swapped", one
        outputs[0].name = two
        right(converted, path)

    return save


def _changed_weight(change: Any) -> Any:
    """Makes a writer that changes the largest weight on its way."""

    def make(right: Any) -> Any:
        def save(converted: Any, path: Any) -> None:
            import onnx_ir

            values = converted.model.graph.initializers.values()
            largest = max(values, key=lambda v: v.const_value.nbytes)
            array = change(largest.const_value.numpy().copy())
            largest.const_value = onnx_ir.tensor(array, name=largest.name)
            right(converted, path)

        return save

    return make


def _fixed_sizes(right: Any) -> Any:
    return lambda value: {}


def _first_place_only(right: Any) -> Any:
    """Of a parameter with several names only the first one is sliced."""
    return lambda model, names, tensor: right(model, names[:1], tensor)


def _flipped(right: Any) -> Any:
    return lambda model, names, tensor: right(
        model, names, tensor.flip(0) if tensor.dim() == 1 else tensor
    )


def _stale_attributes(right: Any) -> Any:
    def correct(model: Any, choices: Any, works: Any) -> Any:
        attributes, _ = right(model, choices, works)
        for path, numbers in attributes.items():
            module = model.get_submodule(path)
            for name in numbers:
                if name == "num_heads":
                    module.num_heads = 2 * module.num_heads
        return attributes, None

    return correct


def _no_restraint(right: Any) -> Any:
    return lambda self, flow: None


def _bias_unscaled(right: Any) -> Any:
    def plan(model: Any, container: Any) -> Any:
        return [fold for fold in right(model, container) if fold.name != "bias"]

    return plan


def _one_further(right: Any) -> Any:
    return lambda mask: right(mask) + 1


def _cache_mixed_up(right: Any) -> Any:
    """Keys and values of the cache change places."""
    return lambda layers, past: right(layers, [(v, k) for k, v in past])


def _last_layer_only(right: Any) -> Any:
    """The new tokens are written to the cache of the first layer only."""

    def forward(self: Any, tokens: Any, past: Any) -> Any:
        logits, present = right(self, tokens, past)
        return logits, [present[0]] * len(present)

    return forward


def _without_last(names: str) -> Any:
    """Makes a clean-up that removes one operator too many."""

    def make(right: Any) -> Any:
        def clean(graph_module: Any) -> Any:
            found = right(graph_module)
            for node in reversed(graph_module.graph.nodes):
                schema = getattr(node.target, "_schema", None)
                if schema is not None and schema.name == names:
                    node.replace_all_uses_with(node.args[0])
                    graph_module.graph.erase_node(node)
                    break
            return found

        return clean

    return make


def _other_twin(right: Any) -> Any:
    """An in-place sum becomes a difference."""

    def twin(node: Any) -> Any:
        found = right(node)
        return aten.sub.Tensor if found is aten.add.Tensor else found

    return twin


def _last_name_first(right: Any) -> Any:
    return lambda ports, names: right(ports, names[::-1])


def _as_it_is(right: Any) -> Any:
    return lambda program: program


MUTANTS = (
    Mutant(
        "capture drops an activation",
        f"{CAPTURE}.tidy:remove_identities",
        _without_last("aten::tanh"),
        models.square,
        captured=True,
    ),
    Mutant(
        "an in-place sum is captured as a difference",
        f"{CAPTURE}.functional:_functional_twin",
        _other_twin,
        models.in_place,
        captured=True,
    ),
    Mutant(
        "ONNX: a sum is written as a product",
        f"{TARGETS}.onnx:_keep_norms_apart",
        _as_difference,
        models.mlp,
        "onnx",
    ),
    Mutant(
        "ONNX: two outputs change places",
        f"{TARGETS}.onnx:save_onnx",
        _swapped_outputs,
        models.two_outputs,
        "onnx",
    ),
    Mutant(
        "ONNX: a square weight is transposed",
        f"{TARGETS}.onnx:save_onnx",
        _changed_weight(lambda array: array.T.copy()),
        models.square_whole,
        "onnx",
    ),
    Mutant(
        "ONNX: a weight is stored in half precision",
        f"{TARGETS}.onnx:save_onnx",
        _changed_weight(lambda array: array.astype("float16").astype("float32")),
        models.square_whole,
        "onnx",
    ),
    Mutant(
        "ONNX: the batch size is fixed",
        f"{TARGETS}.exported:_dynamic",
        _fixed_sizes,
        models.mlp,
        "onnx",
    ),
    Mutant(
        "module: a tied parameter is sliced once only",
        f"{TARGETS}.module.resize:_put",
        _first_place_only,
        models.tied_inner,
        "module",
    ),
    Mutant(
        "module: vectors keep their units in another order",
        f"{TARGETS}.module.resize:_put",
        _flipped,
        models.mlp,
        "module",
    ),
    Mutant(
        "module: the number of heads is stale",
        f"{TARGETS}.module.lower:correct_attributes",
        _stale_attributes,
        models.own_heads,
        "module",
    ),
    Mutant(
        "module: attention takes the scale of its new head size",
        f"{TARGETS}.module.expressible:Kept.restrict",
        _no_restraint,
        models.fused_attention_sizes,
        "module",
    ),
    Mutant(
        "module: a folded gate forgets the bias",
        f"{GATES}.fold:plan_folds",
        _bias_unscaled,
        models.own_heads_fractional,
        "module",
    ),
    Mutant(
        "decoder: positions are one too far",
        f"{TARGETS}.decoder.run:positions_of",
        _one_further,
        models.gpt2,
        "onnx",
        cache=True,
    ),
    Mutant(
        "decoder: keys and values change places in the cache",
        f"{TARGETS}.decoder.cached:_as_cache",
        _cache_mixed_up,
        models.gpt2,
        "onnx",
        cache=True,
    ),
    Mutant(
        "decoder: all layers are given the first one's cache",
        f"{TARGETS}.decoder.cached:CachedModel.forward",
        _last_layer_only,
        models.gpt2,
        "onnx",
        cache=True,
    ),
    Mutant(
        "OpenVINO: two outputs change names",
        f"{TARGETS}.openvino:_set_names",
        _last_name_first,
        models.two_outputs,
        "openvino",
    ),
    Mutant(
        "OpenVINO: rows that attend to nothing are left as they are",
        f"{TARGETS}.openvino:_without_empty_rows",
        _as_it_is,
        models.left_padded,
        "openvino",
    ),
)
