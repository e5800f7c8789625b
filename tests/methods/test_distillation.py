"""Distillation: the term, where it is added, in plain loops and in a Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgcompile import Budget, GateConfig, insert_gates, lower, penalty, status
from fgcompile.errors import GateError
from fgcompile.gates import attach, gates
from fgcompile.methods import (
    DistillationConfig,
    distill,
    distillation_loss,
    remove_distillation,
)
from fgcompile.methods.distillation_terms import hidden_distance, logit_distance
from tests.gates.models import bert, bert_batch, bert_specs, mlp, quiet


def pair(**changes: Any) -> tuple[Any, Any]:
    """A student whose first gates are closed, and the dense model."""
    teacher = bert(**changes).eval()
    student = attach(copy.deepcopy(teacher), bert_specs(), quiet(objective="none"))
    for gate in gates(student).values():
        gate.close([0, 1])
    return student, teacher


def t5(**changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "vocab_size": 30,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    torch.manual_seed(changes.pop("seed", 0))
    config = transformers.T5Config(**(options | changes))
    return transformers.T5ForConditionalGeneration(config).eval()


def t5_batch() -> dict[str, Tensor]:
    """Two rows that are as long as their labels, padded elsewhere."""
    torch.manual_seed(2)
    labels = torch.randint(1, 30, (2, 4))
    labels[0, 3:], labels[1, 2:] = -100, -100
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    ids = torch.randint(1, 30, (2, 4))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# -- the term -------------------------------------------------------------------------


def test_logits_are_compared_by_softened_divergence() -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    expected = 4 * F.kl_div(
        F.log_softmax(student / 2, -1),
        F.softmax(teacher / 2, -1),
        reduction="batchmean",
    )
    assert torch.allclose(logit_distance(student, teacher, 2.0), expected)
    assert float(logit_distance(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)


def test_gradient_of_the_logits_does_not_fade_with_the_temperature() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.3, -0.1, 0.0]])
    grads = [
        torch.autograd.grad(logit_distance(student, teacher, t), student)[0]
        for t in (1.0, 20.0)
    ]
    assert torch.allclose(grads[0], grads[1], atol=0.02)
    assert grads[0].abs().max() > 0.05


def test_one_column_is_compared_by_squared_distance() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert float(logit_distance(student, teacher, 2.0)) == 2.5


def test_padding_does_not_count() -> None:
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    kept = mask.bool()
    expected = (student - teacher)[kept].square().mean()
    assert torch.allclose(hidden_distance(student, teacher, mask), expected)
    divergence = logit_distance(student, teacher, 1.0, mask)
    assert torch.allclose(divergence, logit_distance(student[kept], teacher[kept], 1.0))


@pytest.mark.parametrize(
    "config",
    [DistillationConfig(), DistillationConfig.cofi(), DistillationConfig(hidden=0.0)],
)
def test_loss_is_the_weighted_sum_of_all_parts(config: DistillationConfig) -> None:
    student, teacher = pair()
    batch = bert_batch() | {"attention_mask": torch.ones(4, 6, dtype=torch.long)}
    batch["attention_mask"][0, 4:] = 0
    student.train()
    own = student(**batch, output_hidden_states=True)
    labels = batch.pop("labels")
    other = teacher(**batch, output_hidden_states=True)
    mask = batch["attention_mask"]
    hidden = [
        hidden_distance(a, b, mask)
        for a, b in zip(own.hidden_states, other.hidden_states, strict=True)
    ]
    expected = (
        config.task * own.loss
        + config.logits * logit_distance(own.logits, other.logits, config.temperature)
        + config.hidden * torch.stack(hidden).mean()
    )
    distill(student, teacher, config)
    assert torch.allclose(student(**batch, labels=labels).loss, expected, atol=1e-6)


def test_named_modules_are_compared() -> None:
    student, teacher = pair()
    layer = "bert.encoder.layer.0"
    config = DistillationConfig(task=0.0, logits=0.0, layers=[layer])
    seen = []
    for model in (student, teacher):
        handle = model.get_submodule(layer).register_forward_hook(
            lambda _, args, out: seen.append(out if torch.is_tensor(out) else out[0])
        )
        model(**bert_batch())
        handle.remove()
    distill(student.train(), teacher, config)
    loss = student(**bert_batch()).loss
    assert torch.allclose(loss, (seen[0] - seen[1]).square().mean())
    hooks = student.get_submodule(layer)._forward_hooks
    assert not hooks


@pytest.mark.parametrize("given", ["labels", "decoder_input_ids", "both"])
def test_encoder_decoder_is_compared_where_its_halves_count(given: str) -> None:
    student, teacher = t5(), t5(seed=1)
    batch = t5_batch()
    labels = batch["labels"]
    inputs = student._shift_right(labels)
    mask = (labels != -100).long()
    if given == "decoder_input_ids":
        del batch["labels"]
        batch |= {"decoder_attention_mask": mask}
    if given != "labels":
        batch |= {"decoder_input_ids": inputs}
    own, other = (m(**batch, output_hidden_states=True) for m in (student, teacher))
    pairs = zip(own.encoder_hidden_states, other.encoder_hidden_states, strict=True)
    hidden = [hidden_distance(a, b, batch["attention_mask"]) for a, b in pairs]
    pairs = zip(own.decoder_hidden_states, other.decoder_hidden_states, strict=True)
    hidden += [hidden_distance(a, b, mask) for a, b in pairs]
    expected = torch.stack(hidden).mean()
    expected += logit_distance(own.logits, other.logits, 2.0, mask)

    distill(student, teacher, DistillationConfig(task=0.0)).train()
    output = student(**batch)
    term = distillation_loss(student) if output.loss is None else output.loss
    assert torch.allclose(term, expected, atol=1e-6)


def test_named_modules_count_where_their_half_does() -> None:
    student, teacher = t5(), t5(seed=1)
    batch = t5_batch()
    layers = ["encoder.final_layer_norm", "decoder.final_layer_norm"]
    own, other = (m(**batch, output_hidden_states=True) for m in (student, teacher))
    masks = batch["attention_mask"], batch["labels"] != -100
    hidden = [
        hidden_distance(own[name][-1], other[name][-1], mask)
        for name, mask in zip(
            ("encoder_hidden_states", "decoder_hidden_states"), masks, strict=True
        )
    ]
    config = DistillationConfig(task=0.0, logits=0.0, layers=layers)
    loss = distill(student, teacher, config).train()(**batch).loss
    assert torch.allclose(loss, torch.stack(hidden).mean())


# -- where it acts --------------------------------------------------------------------


def test_eval_and_a_removed_teacher_change_nothing() -> None:
    student, teacher = pair()
    before = student.eval()(**bert_batch()).loss
    keys = list(student.state_dict())
    distill(student, teacher)
    assert torch.equal(student(**bert_batch()).loss, before)
    assert list(student.state_dict()) == keys
    trained = student.train()(**bert_batch()).loss
    assert not torch.allclose(trained, before)
    remove_distillation(student)
    assert torch.allclose(student(**bert_batch()).loss, before)


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = pair()
    distill(student, teacher, DistillationConfig(task=0.0)).train()
    student(**bert_batch()).loss.backward()
    assert student.bert.encoder.layer[0].intermediate.dense.weight.grad.any()
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_penalty_of_the_gates_is_not_scaled_by_the_task_factor() -> None:
    teacher = bert().eval()
    student = attach(copy.deepcopy(teacher), bert_specs(), quiet())
    config = DistillationConfig(task=0.0, hidden=0.0)
    distill(student, teacher, config).train()
    assert torch.allclose(student(**bert_batch()).loss, penalty(student), atol=1e-5)


def test_model_without_a_loss_gives_the_term_on_request() -> None:
    teacher = mlp().eval()
    student = copy.deepcopy(teacher)
    student[0].weight.data[:4] = 0.0
    distill(student, teacher, DistillationConfig(hidden=0.0, temperature=1.0)).train()
    x = torch.randn(6, 8)
    logits = student(x)
    expected = logit_distance(logits, teacher(x), 1.0)
    assert torch.allclose(distillation_loss(student), expected)
    distillation_loss(student).backward()
    assert student[2].weight.grad.any()


def test_term_that_is_in_the_loss_is_not_given_again() -> None:
    student, teacher = pair()
    with pytest.raises(GateError, match="has no teacher"):
        distillation_loss(student)
    distill(student, teacher).train()
    student(**bert_batch())
    with pytest.raises(GateError, match="has the term already"):
        distillation_loss(student)


def test_accumulated_parts_sum_to_one_term() -> None:
    student, teacher = pair()
    config = DistillationConfig(task=0.0)
    distill(student, teacher, config).train()
    batch = bert_batch()
    whole = student(**batch).loss
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = {name: value[rows] for name, value in batch.items()}
        parts.append(student(**part, num_items_in_batch=torch.tensor(4)).loss)
    assert torch.allclose(parts[0] + parts[1], whole, atol=1e-6)


LAYER = "bert.encoder.layer.0"


def test_trained_student_is_copied_and_lowered() -> None:
    student, teacher = pair()
    distill(student, teacher, DistillationConfig(layers=[LAYER]))
    student.train()(**bert_batch()).loss.backward()
    twin = copy.deepcopy(student)
    loss = student(**bert_batch()).loss
    assert torch.equal(twin(**bert_batch()).loss, loss)
    small = lower(student.eval(), "module").model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert torch.equal(student.train()(**bert_batch()).loss, loss)


def test_student_without_a_loss_is_copied_without_its_term() -> None:
    student = distill(mlp(), mlp(), DistillationConfig(hidden=0.0)).train()
    student(torch.randn(6, 8))
    twin = copy.deepcopy(student)
    assert distillation_loss(student).requires_grad
    with pytest.raises(GateError, match="holds no term of its own"):
        distillation_loss(twin)
    twin(torch.randn(6, 8))
    distillation_loss(twin).backward()
    assert student[0].weight.grad is None


def test_forward_that_fails_leaves_nothing() -> None:
    student, teacher = pair()
    distill(student, teacher, DistillationConfig(layers=[LAYER])).train()

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    handle = student.classifier.register_forward_hook(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            student(**bert_batch())
    assert not student.get_submodule(LAYER)._forward_hooks
    handle.remove()
    student(**bert_batch())
    hook = distill_hook(student)
    assert set(hook.last) == {"logits", "hidden"}
    assert not hook._seen


def distill_hook(model: nn.Module) -> Any:
    hooks = model._forward_hooks.values()
    return next(hook for hook in hooks if hasattr(hook, "last"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": 0.0}, "temperature above 0"),
        ({"task": -1.0}, "no negative factor"),
        ({"logits": 0.0, "hidden": 0.0}, "nothing is done"),
    ],
)
def test_senseless_settings_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GateError, match=text):
        DistillationConfig(**options)


def test_what_does_not_fit_is_refused() -> None:
    student, teacher = pair()
    with pytest.raises(GateError, match=r"has no module 'bert\.layer'"):
        distill(student, teacher, DistillationConfig(layers=["bert.layer"]))
    with pytest.raises(GateError, match="Sequential returns no hidden states"):
        distill(mlp(), mlp())
    distill(student, teacher, DistillationConfig(layers=["bert.encoder.layer"]))
    with pytest.raises(GateError, match=r"calls no 'bert\.encoder\.layer'"):
        student.train()(**bert_batch())
    remove_distillation(student)
    distill(student, teacher)
    with pytest.raises(GateError, match="has a teacher already"):
        distill(student, teacher)
    remove_distillation(student)
    for itself in (student, nn.Sequential(student)):
        with pytest.raises(GateError, match=r"cannot distil Bert.* from itself"):
            distill(student, itself)
    distill(student.train(), bert(hidden_size=16).eval())
    with pytest.raises(GateError, match=r"hidden states .* differ: \[4, 6, 32\] and"):
        student(**bert_batch())


def test_hidden_states_that_cannot_be_paired_are_refused() -> None:
    student = distill(bert(num_hidden_layers=1), bert()).train()
    with pytest.raises(
        GateError, match="differ: 2 hidden_states of the student, 3 hidden_states of"
    ):
        student(**bert_batch())
    text = "differ: 2 decoder_hidden_states, 2 encoder_hidden_states of the student, 3"
    with pytest.raises(GateError, match=text):
        distill(t5(), t5(num_decoder_layers=2)).train()(**t5_batch())
    student = distill(bert(return_dict=False), bert(), DistillationConfig(logits=0))
    with pytest.raises(GateError, match="no hidden states in an output of type tuple"):
        student.train()(**bert_batch())


# -- loops ----------------------------------------------------------------------------


def distance(student: nn.Module, teacher: nn.Module) -> float:
    batch = bert_batch(99, 16)
    with torch.no_grad():
        pair: list[Tensor] = [m.eval()(**batch).logits for m in (student, teacher)]
    return float(logit_distance(pair[0], pair[1], 1.0))


def test_distilled_student_comes_closer_in_a_plain_loop() -> None:
    student, teacher = pair(initializer_range=0.3)
    before = distance(student, teacher)
    distill(student, teacher, DistillationConfig(task=0.0))
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    for step in range(40):
        optimizer.zero_grad()
        student.train()(**bert_batch(step)).loss.backward()
        optimizer.step()
    assert distance(student, teacher) < 0.5 * before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_distils_and_meets_the_budget(
    tmp_path: Path, accumulation: int
) -> None:
    from tests.gates.test_loops import trainer

    torch.manual_seed(0)
    teacher = bert(num_hidden_layers=1, initializer_range=0.3).eval()
    config = GateConfig(budget=Budget(params=0.7, steps=20))
    plain, student = (
        insert_gates(copy.deepcopy(teacher), config=config) for _ in range(2)
    )
    distill(student, teacher, DistillationConfig(task=0.0))
    options: dict[str, Any] = {
        "gradient_accumulation_steps": accumulation,
        "max_steps": 40,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    runs = [trainer(tmp_path, model, **options) for model in (plain, student)]
    for run, model in zip(runs, (plain, student), strict=True):
        run.train()
        assert status(model)["problems"] == []
        assert status(model)["met"]
    assert distance(student, teacher) < 0.6 * distance(plain, teacher)
    losses = [entry["loss"] for entry in runs[1].state.log_history if "loss" in entry]
    assert len(losses) == 40
    runs[1].save_model(str(tmp_path / "saved"))
    safetensors = pytest.importorskip("safetensors.torch")
    saved = safetensors.load_file(tmp_path / "saved" / "model.safetensors")
    assert set(saved) <= set(student.state_dict())
