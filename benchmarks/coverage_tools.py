"""The two tools that coverage compares, each called as its users call it, and what is asked of the result."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from benchmarks.coverage_oracle import Kept, removed, told_apart, verdict
from benchmarks.coverage_subjects import Subject
from fxcompress.analysis.groups import analyse
from fxcompress.errors import BudgetError, CompressError
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.lowering.lower import lower
from fxcompress.passes.loosening import LOOSEN
from fxcompress.passes.pack_linears import PackLinears
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.pipeline import Journal
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import narrowest_plan, plan_pruning
from fxcompress.proof.masked import masked_equivalence
from fxcompress.proof.parity import float_parity
from fxcompress.recipes import LOSSLESS
from fxcompress.targets.catalog import resolve

TARGET = 0.5
"""Share of the MACs that may remain."""

CLOSE = 0.01
"""How near to the target the search for a ratio stops."""

_TRIALS = 7
_PATIENCE = 30.0
"""Seconds after which the search takes the best that it has found."""


@dataclass
class Row:
    """What became of one model in one tool; columns that were not reached stay as they are here."""

    name: str
    tool: str
    runs: bool = False
    shapes: bool = False
    macs: float | None = None
    masked: str = "-"
    onnx: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    stamp: str = ""

    @property
    def silently_wrong(self) -> bool:
        """It runs, its outputs look right, and they are not."""
        return self.shapes and self.masked == "no"

    @property
    def passes(self) -> bool:
        """Every column, whatever MACs are left."""
        return self.shapes and self.masked == "yes" and self.onnx and self.macs is not None


def call(model: Any, inputs: Any) -> list[Tensor]:
    """The flat tensors that a model returns."""
    with torch.no_grad():
        result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    result = dict(result) if isinstance(result, dict) else result
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _bilinear_flops(_: Any, weight: Any, *__: Any, out_shape: Any) -> int:
    """`x W y` for every output and row, its weight `[out, in1, in2]`: the larger of its two products."""
    return int(2 * prod(out_shape) * prod(weight[1:]))


_UNCOUNTED = {torch.ops.aten._trilinear: _bilinear_flops}
"""What torch's counter knows nothing of."""


def macs(model: Any, inputs: Any) -> float:
    """Multiply-accumulates by torch's own counter, attention counted as matrix products, bilinear forms too.

    The fused inference path of `nn.MultiheadAttention` and oneDNN's LSTM are off: the counter sees nothing
    inside them. Nothing asks for gradients either: its module tracker fails where a model has views of
    parameters made without them (DeBERTa).
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    for tensor in trained:
        tensor.requires_grad_(False)
    try:
        with (
            torch.backends.mkldnn.flags(enabled=False),
            FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for tensor in trained:
            tensor.requires_grad_(True)
    return counter.get_total_flops() / 2


def ours(subject: Subject, row: Row) -> None:
    """`Prune(ratio=0.5)` with embeddings prunable, and otherwise the defaults: what `optimize` does."""
    model, inputs = subject.model(), subject.inputs
    start = time.perf_counter()
    program = capture(model, inputs)
    loose = Journal().apply_all(LOOSEN, program)
    options = Prune(ratio=1 - TARGET, protect_embeddings=False)
    analysis, block = analyse(loose), resolve("onnxruntime").channel_block
    try:
        plan = plan_pruning(analysis, options, block)
    except BudgetError as error:  # as far as it goes
        row.notes.append(error.message)
        plan = narrowest_plan(analysis, Prune(protect_embeddings=False), block)
    pruned = Journal().apply(PruneChannels(plan), loose)
    row.seconds = time.perf_counter() - start
    found = call(pruned.module, inputs)
    row.runs = True
    row.shapes = _shapes(found) == _shapes(call(program, inputs))
    row.macs = macs(pruned.module, inputs) / macs(model, inputs)
    try:
        masked_equivalence(program, pruned, plan)
        row.masked = "yes"
    except CompressError as error:
        row.masked = "no"
        row.notes.append(error.message)
    row.onnx = _onnx(row, Journal().apply(PackLinears(), pruned))


def torch_pruning(subject: Subject, row: Row) -> None:
    """Its magnitude pruner with only the output layers ignored, at the ratio that halves the MACs."""
    model, inputs, comparable = _as_oracle_reads(subject)
    program = capture(model, inputs)
    final = final_layers(program, model)
    whole, wanted = macs(model, inputs), _shapes(call(model, inputs))
    start = time.perf_counter()
    best: tuple[float, nn.Module] | None = None
    broken: tuple[float, nn.Module] | None = None
    for ratio, report in _ratios(start):
        try:
            candidate = _thinned(model, inputs, final, ratio)
            left, shapes = macs(candidate, inputs) / whole, _shapes(call(candidate, inputs))
        except Exception as error:  # noqa: BLE001 - whatever it or its result raises is the finding
            row.notes.append(f"fails at ratio {ratio:.2f}: {_first(error)}")
            report(None)
            continue
        if shapes != wanted:
            row.notes.append(f"other output shapes at ratio {ratio:.2f}")
            broken = broken or (left, candidate)
            report(None)
            continue
        if best is None or abs(left - TARGET) < abs(best[0] - TARGET):
            best = left, candidate
        report(left)
    row.seconds = time.perf_counter() - start
    found = best or broken
    if found is None:
        return
    row.runs, row.macs, row.shapes = True, found[0], best is not None
    if best is None:
        return
    row.notes.clear()
    pruned = capture(best[1], inputs)
    if comparable:
        _judge(row, program, removed(model, best[1]), pruned)
    else:
        row.masked = "unclear"
        row.notes.append("the model does not run in float64: what was removed is not compared")
        row.onnx = _onnx(row, pruned)


def _as_oracle_reads(subject: Subject) -> tuple[nn.Module, Any, bool]:
    """The model and its inputs in float64, every value its own; as they are where it does not run so."""
    model, inputs = told_apart(subject.model()), pytree.tree_map(_in_double, subject.inputs)
    try:
        call(model, inputs)
    except Exception:  # noqa: BLE001 - what a model says to another dtype is its own affair
        return subject.model(), subject.inputs, False
    return model, inputs, True


TOOLS: dict[str, Callable[[Subject, Row], None]] = {"fxcompress": ours, "torch-pruning": torch_pruning}


def final_layers(program: Program, model: nn.Module) -> list[str]:
    """The layers whose width is a model output: what ours freezes of itself is ignored in the other, too."""
    frozen = {item.axis for item in analyse(program).frozen if item.reason == "a model output"}
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | Conv1D)
    ]
    return [name for name, module in layers if f"{name}.weight[{int(isinstance(module, Conv1D))}]" in frozen]


def _ratios(start: float) -> Iterator[tuple[float, Callable[[float | None], None]]]:
    """Channel ratios to try, by bisection on the MACs that are left; after a crash, other common ratios."""
    low, high, ratio = 0.0, 1.0, 0.3
    others = iter((0.5, 0.25, 0.75))
    answer: list[float | None] = []
    for _ in range(_TRIALS):
        answer.clear()
        yield ratio, answer.append
        left = answer[0]
        if time.perf_counter() - start > _PATIENCE:
            return
        if left is None:
            following = next(others, None)
            if following is None:
                return
            ratio = following
            continue
        if abs(left - TARGET) <= CLOSE:
            return
        low, high = (ratio, high) if left > TARGET else (low, ratio)
        ratio = (low + min(high, 0.95)) / 2


def _thinned(model: nn.Module, inputs: Any, final: list[str], ratio: float) -> nn.Module:
    candidate = copy.deepcopy(model)
    layers = dict(candidate.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            candidate,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[layers[name] for name in final],
        )
        pruner.step()
    return candidate.eval()


def _judge(row: Row, original: Program, kept: Kept | str, pruned: Program) -> None:
    if isinstance(kept, str):
        row.masked = "no"
        row.notes.append(kept)
    else:
        row.masked, why = verdict(original, pruned, kept)
        row.notes.extend([why] if why else [])
    row.onnx = _onnx(row, pruned.to(torch.float32))


def _onnx(row: Row, pruned: Program) -> bool:
    """Whether the pruned program becomes ONNX that a session runs with the same result; by our lowering."""
    try:
        deployed = Journal().apply_all(LOSSLESS, pruned)
        float_parity(deployed, lower(deployed), deployed.flat_example())
    except CompressError as error:
        row.notes.append(f"ONNX: {error.message}")
        return False
    return True


def _in_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _shapes(found: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in found]


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
