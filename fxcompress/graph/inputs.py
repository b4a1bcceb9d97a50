"""Inputs: from what a caller passes to what a graph takes, or an error that says what to pass instead.

`normalize` and `infer_example` make the example that a model is captured with. `bind` and `batches` turn
calibration data into flat lists of tensors in placeholder order; given a `Program` they also check shapes and
dtypes against its placeholders, given a bare `Signature` they can only check the structure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError
from fxcompress.graph.guesses import candidates
from fxcompress.graph.program import Program
from fxcompress.graph.signature import Example, Signature

LABELS = frozenset({"label", "labels", "label_ids", "target", "targets", "y"})
"""Keys of a calibration batch that are targets, not inputs, unless the model has an input of that name."""

_WHAT_TO_PASS = (
    "pass example_inputs: a tensor `torch.randn(2, 3, 224, 224)`, a tuple of positional inputs `(x, mask)`, "
    'or a dict of keyword inputs `{"input_ids": ids}`'
)
_ONE_BATCH = "calibration is an iterable of batches; for a single batch pass `[batch]`"
_RE_ITERABLE = "pass a list of batches or a DataLoader, which can be read more than once"


def normalize(example_inputs: Any) -> Example:
    """What the caller passed as `example_inputs`, as positional and keyword inputs of real tensors.

    A tensor is the only positional input, a tuple or list are the positional inputs, a mapping the keyword
    inputs; numpy arrays become tensors wherever they are. Raises InputError for anything else.
    """
    if isinstance(example_inputs, Example):
        return example_inputs
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, torch.Tensor | np.ndarray):
        args = (example_inputs,)
    elif isinstance(example_inputs, tuple | list):
        args = tuple(example_inputs)
    elif isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    else:
        raise InputError(
            f"example inputs of type {type(example_inputs).__name__} are not understood", hint=_WHAT_TO_PASS
        )
    if not all(isinstance(key, str) for key in kwargs):
        raise InputError("the keys of a dict of example inputs must be argument names", hint=_WHAT_TO_PASS)
    args, kwargs = pytree.tree_map(lambda leaf: _leaf(leaf, "example_inputs"), (args, kwargs))
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise InputError("the example inputs hold no tensor", hint=_WHAT_TO_PASS)
    return Example(args, kwargs)


def infer_example(model: nn.Module) -> tuple[Example, str]:
    """Example inputs that `model` accepts, found without being told (see `guesses`), and a note that says so.

    Each candidate is tried by one forward in eval mode; the model, its buffers, its modes and the global
    random state are left as they were. Raises InputError, with what was tried, when no candidate fits.
    """
    tried: list[str] = []
    for source, guess in candidates(model):
        example = normalize(guess)
        if _accepts(model, example):
            return example, (
                f"no example inputs were given: {_describe(example)} was taken, from {source}; MACs, "
                "latencies and budgets are those of this size"
            )
        tried.append(f"{_describe(example)} from {source}")
    shown = "; ".join(tried[:4]) + (f"; and {len(tried) - 4} more" if len(tried) > 4 else "")
    raise InputError(
        f"no example inputs can be inferred for {type(model).__name__}"
        + (f" (tried {shown})" if tried else " (it declares none and has no layer whose input is known)"),
        hint=_WHAT_TO_PASS,
    )


def bind(target: Program | Signature, batch: Any) -> list[torch.Tensor]:
    """One batch of data as the flat inputs of the graph, in placeholder order.

    The batch is a tensor, a tuple of inputs, a dict of inputs by name, or `(inputs, label)`; a label is
    dropped. With a Program, shapes are checked and dtypes are cast only where that loses nothing that matters
    (between floating types, to wider integers). Raises InputError that names the input and what was expected.
    """
    return bind_labelled(target, batch)[0]


def bind_labelled(target: Program | Signature, batch: Any) -> tuple[list[torch.Tensor], Any]:
    """Like `bind`, and the label as it came: the second of `(inputs, label)`, what follows the inputs of a
    tuple, or the first key of a dict that is among `LABELS`; None where there is none.
    """
    signature = target.signature if isinstance(target, Program) else target
    values, label = _flat(signature, batch)
    leaves = [_leaf(leaf, name) for name, leaf in zip(signature.inputs, values, strict=True)]
    for name, leaf in zip(signature.inputs, leaves, strict=True):
        if not isinstance(leaf, torch.Tensor):
            raise InputError(f"input {name!r} is a {type(leaf).__name__}, not a tensor", hint=_WHAT_TO_PASS)
    if isinstance(target, Program):
        leaves = _conform(target, leaves)
    return leaves, label


def batches(
    target: Program | Signature,
    iterable: Iterable[Any] | None,
    *,
    finite: bool = True,
    require_reiterable: bool = False,
) -> Iterator[list[torch.Tensor]]:
    """Stream the flat inputs of every batch of calibration data; one batch is held at a time.

    Raises InputError at once when `iterable` is no iterable of batches (or, with `require_reiterable`, can be
    read only once), and while streaming for an empty or exhausted iterable, a batch that does not fit, or,
    when `finite`, a NaN or an infinity in a floating input; these name the batch index.
    """
    found = labelled_batches(target, iterable, finite=finite, require_reiterable=require_reiterable)
    return (flat for flat, _ in found)


def labelled_batches(
    target: Program | Signature,
    iterable: Iterable[Any] | None,
    *,
    finite: bool = True,
    require_reiterable: bool = False,
) -> Iterator[tuple[list[torch.Tensor], Any]]:
    """Like `batches`, each with its label or None; see `bind_labelled`."""
    if iterable is None:
        raise InputError(
            "there is no calibration data", hint=f"pass calibration=[batch, ...]; {_WHAT_TO_PASS[5:]}"
        )
    if isinstance(iterable, torch.Tensor | np.ndarray | Mapping | str | bytes) or not hasattr(
        iterable, "__iter__"
    ):
        raise InputError(f"calibration data cannot be a {type(iterable).__name__}", hint=_ONE_BATCH)
    once = isinstance(iterable, Iterator)
    if once and require_reiterable:
        raise InputError(
            "the calibration data can be read only once, and it is needed again", hint=_RE_ITERABLE
        )
    return _stream(target, iterable, finite, once)


def _stream(
    target: Program | Signature, iterable: Iterable[Any], finite: bool, once: bool
) -> Iterator[tuple[list[torch.Tensor], Any]]:
    signature = target.signature if isinstance(target, Program) else target
    count = 0
    for index, batch in enumerate(iterable):
        try:
            flat, label = bind_labelled(target, batch)
            if finite:
                _check_finite(signature, flat)
        except InputError as error:
            error.note(f"in calibration batch {index}")
            raise
        yield flat, label
        count += 1
    if count == 0 and once:
        raise InputError(
            "the calibration iterator is empty, or was exhausted by an earlier pass", hint=_RE_ITERABLE
        )
    if count == 0:
        raise InputError("the calibration data holds no batch", hint=_ONE_BATCH)


def _check_finite(signature: Signature, flat: list[torch.Tensor]) -> None:
    for name, value in zip(signature.inputs, flat, strict=True):
        if value.is_floating_point() and not value.isfinite().all():
            kind = "NaN" if value.isnan().any() else "infinity"
            raise InputError(
                f"input {name!r} holds {kind}", hint="clean the calibration data before passing it"
            )


def _leaf(leaf: Any, name: str) -> Any:
    """A leaf of the inputs as a detached tensor; plain Python constants pass, other objects do not."""
    if isinstance(leaf, torch.Tensor):
        return leaf.detach()
    if isinstance(leaf, np.ndarray | np.generic):
        try:
            return torch.from_numpy(
                np.array(leaf)
            )  # a copy: read-only and negatively strided arrays are fine
        except TypeError as error:
            raise InputError(
                f"{name}: numpy dtype {leaf.dtype} has no tensor twin", hint=_WHAT_TO_PASS
            ) from error
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    raise InputError(f"{name} holds a {type(leaf).__name__} where a tensor is expected", hint=_WHAT_TO_PASS)


def _flat(signature: Signature, batch: Any) -> tuple[list[Any], Any]:
    """The leaves of a batch in the order of the signature's inputs, and its label or None."""
    count = len(signature.inputs)
    if isinstance(batch, torch.Tensor | np.ndarray):
        if count == 1:
            return [batch], None
        raise _misfit(signature, "one tensor")
    if isinstance(batch, Mapping):
        return _from_mapping(signature, dict(batch))
    if not isinstance(batch, tuple | list):
        raise _misfit(signature, f"a {type(batch).__name__}")
    for args in (tuple(batch), (tuple(batch),), (list(batch),)):
        if pytree.tree_structure((args, {})) == signature.in_spec:
            return pytree.tree_leaves(args), None
    if len(batch) == 2 and isinstance(batch[0], tuple | list | Mapping):
        return _flat(signature, batch[0])[0], batch[1]
    if len(batch) in (count, count + 1) and not any(
        isinstance(v, tuple | list | Mapping) for v in batch[:count]
    ):
        return list(batch[:count]), batch[count] if len(batch) > count else None
    raise _misfit(signature, f"{len(batch)} values")


def _from_mapping(signature: Signature, batch: dict[Any, Any]) -> tuple[list[Any], Any]:
    structures: tuple[Any, ...] = (((), batch), ((batch,), {}))
    for structure in structures:
        if pytree.tree_structure(structure) == signature.in_spec:
            return pytree.tree_leaves(structure), None
    batch = {_own_name(signature, key): value for key, value in batch.items()}
    missing = [name for name in signature.inputs if name not in batch]
    unknown = [key for key in batch if key not in signature.inputs and key not in LABELS]
    if missing or unknown:
        raise _misfit(signature, f"a dict with keys {sorted(map(str, batch))}")
    label = next((value for key, value in batch.items() if key not in signature.inputs), None)
    return [batch[name] for name in signature.inputs], label


def _own_name(signature: Signature, key: Any) -> Any:
    """An argument called as a Python builtin, such as `input`, has a number in the graph: `input_1`."""
    numbered = f"{key}_1"
    return numbered if key not in signature.inputs and numbered in signature.inputs else key


def _misfit(signature: Signature, found: str) -> InputError:
    names = ", ".join(signature.inputs)
    several = len(signature.inputs) > 1
    return InputError(
        f"the batch is {found}; the model takes {'the inputs' if several else 'one input,'} {names}",
        hint="a batch is a tensor (for one input), a tuple of inputs in order, a dict by input name, "
        "or (inputs, label)",
    )


def _conform(program: Program, leaves: list[Any]) -> list[Any]:
    """Check every leaf against its placeholder and cast where safe; sizes of one symbol must agree."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    sizes: dict[str, tuple[str, int]] = {}
    conformed = []
    for name, leaf in zip(program.signature.inputs, leaves, strict=True):
        expected = nodes[name].meta.get("val")
        if not isinstance(expected, torch.Tensor):
            conformed.append(leaf)
            continue
        symbols = program.signature.dynamic.get(name, {})
        _check_shape(name, leaf, expected, symbols)
        for dim, symbol in symbols.items():
            other, size = sizes.setdefault(symbol, (name, leaf.shape[dim]))
            if size != leaf.shape[dim]:
                raise InputError(
                    f"inputs {other!r} and {name!r} disagree on {symbol!r}: {size} and {leaf.shape[dim]}",
                    hint=f"give every input of a batch the same {symbol} size",
                )
        conformed.append(_cast(name, leaf, expected.dtype))
    return conformed


def _check_shape(name: str, leaf: torch.Tensor, expected: torch.Tensor, symbols: Mapping[int, str]) -> None:
    found = tuple(leaf.shape)
    shown = "[" + ", ".join(str(symbols.get(dim, size)) for dim, size in enumerate(expected.shape)) + "]"
    if len(found) == expected.ndim - 1:
        hint = "add the batch dimension: pass batches, not single samples"
    else:
        hint = f"pass tensors of shape {shown}"
    fits = len(found) == expected.ndim and all(
        size >= 1 if dim in symbols else size == expected.shape[dim] for dim, size in enumerate(found)
    )
    if not fits:
        raise InputError(f"input {name!r} has shape {list(found)}, expected {shown}", hint=hint)


def _cast(name: str, leaf: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`leaf` in `dtype`, where that keeps its meaning; integers into floats are refused (unscaled images)."""
    if leaf.dtype == dtype:
        return leaf
    integral = not (leaf.is_floating_point() or leaf.is_complex())
    if leaf.is_floating_point() and dtype.is_floating_point:
        return leaf.to(dtype)
    if integral and dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        limits = torch.iinfo(dtype)
        if leaf.numel() == 0 or (int(leaf.min()) >= limits.min and int(leaf.max()) <= limits.max):
            return leaf.to(dtype)
    raise InputError(
        f"input {name!r} has dtype {leaf.dtype}, expected {dtype}",
        hint=f"convert and scale it as in training, for example `x.to({dtype})`",
    )


def _describe(example: Example) -> str:
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    return ", ".join(str(list(leaf.shape)) for leaf in leaves if isinstance(leaf, torch.Tensor))


def _accepts(model: nn.Module, example: Example) -> bool:
    """Whether one forward in eval mode succeeds; whatever the forward raises means no."""
    with _untouched(model), torch.no_grad():
        try:
            model(*example.args, **example.kwargs)
        except Exception:  # noqa: BLE001  a wrong guess may fail in any way
            return False
    return True


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; modes, buffers and the global random state are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices):
            for module, _ in modes:
                module.training = False
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
