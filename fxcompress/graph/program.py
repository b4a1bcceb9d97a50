"""The captured program: one graph with its tensors, signature, example inputs, notes and history."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import fx
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError, first_line
from fxcompress.graph import edit, walk
from fxcompress.graph.module import ProgramModule, assemble, copy_graph, named_tensors
from fxcompress.graph.origins import Origins
from fxcompress.graph.precision import converted, retype
from fxcompress.graph.signature import Example, Signature
from fxcompress.graph.symbols import fake_inputs
from fxcompress.graph.text import describe, listing, symbol_names
from fxcompress.graph.writing import save

__all__ = ["Example", "Program", "Signature"]


@dataclass
class Program:
    """A model as a graph that can be called, edited, trained, saved and lowered.

    `module` is called like the user's model. Copies share tensors, which edits replace and never overwrite.
    `origins` says where tensors that a rewrite named anew come from.
    """

    module: ProgramModule
    signature: Signature
    example: Example
    notes: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    origins: Origins = field(default_factory=Origins)

    @classmethod
    def build(
        cls,
        graph: fx.Graph,
        tensors: dict[str, torch.Tensor],
        signature: Signature,
        example: Example,
    ) -> Self:
        """A program from its parts, with the metadata of every node inferred; raises IllFormed."""
        program = cls(assemble(graph, tensors, signature), signature, example)
        program.infer_from_example()
        return program

    def infer_from_example(self) -> None:
        """Give the inputs new symbols as the signature says, and every node its metadata."""
        fakes = fake_inputs(self.signature, self.flat_example())
        for node, fake in zip(walk.placeholders(self), fakes, strict=True):
            node.meta["val"] = fake
        edit.reinfer(self)

    @property
    def graph(self) -> fx.Graph:
        """The graph of `module`."""
        return self.module.graph

    @property
    def training(self) -> bool:
        """Whether the program is in training mode."""
        return self.module.training

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these inputs.

        Raises:
            InputError: a fixed size differs, or these are not the inputs that the model takes.
        """
        self._check_sizes(args, kwargs)
        try:
            return self.module(*args, **kwargs)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise InputError(
                f"the program cannot be called with {len(args)} positional inputs"
                + (f" and {', '.join(kwargs)}" if kwargs else "")
                + f": {first_line(error)}",
                hint=f"it takes {self._takes()}, in the structure of its example inputs",
            ) from error

    def _takes(self) -> str:
        names = symbol_names(self)
        return ", ".join(
            f"{node.name} {describe(walk.value(node), names)}" for node in walk.placeholders(self)
        )

    def _check_sizes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            flat = self.flat_inputs(args, kwargs)
        except (IndexError, KeyError, ValueError, RuntimeError, TypeError):
            return  # another spelling of the call, such as a positional input by name: the module decides
        for node, tensor in zip(walk.placeholders(self), flat, strict=False):
            if not isinstance(tensor, torch.Tensor):
                raise InputError(
                    f"the input {node.name} is a {type(tensor).__name__}, not a tensor",
                    hint=f"it takes {self._takes()}",
                )
            expected = walk.shape(node)
            fits = len(expected) == tensor.ndim and all(
                walk.varies(size) or size == given for size, given in zip(expected, tensor.shape, strict=True)
            )
            if not fits:
                wanted = describe(walk.value(node), symbol_names(self))
                raise InputError(
                    f"the input {node.name} has shape {list(tensor.shape)}; the program takes {wanted}",
                    hint="capture the model with dynamic_shapes for the dimensions that vary",
                )

    def __str__(self) -> str:
        return listing(self)

    def copy(self, *, share: bool = True) -> Program:
        """The same program with a graph of its own.

        Tensors are shared, which is right for passes; pass `share=False` before training one of the two.
        """
        tensors = dict(named_tensors(self.module))
        return self._with(tensors if share else converted(tensors, None), self.example)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self.copy(share=False)

    def to(self, dtype: torch.dtype) -> Program:
        """A copy that computes in `dtype`: floating tensors, example and float32 casts are converted."""
        args, kwargs = pytree.tree_map_only(
            torch.Tensor,
            lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf,
            (self.example.args, self.example.kwargs),
        )
        copy = self._with(converted(dict(named_tensors(self.module)), dtype), Example(args, kwargs))
        copy.notes.extend(retype(copy.graph, dtype))
        copy.module.recompile()
        copy.infer_from_example()
        return copy

    def _with(self, tensors: dict[str, torch.Tensor], example: Example) -> Program:
        """A copy with other tensors of the same names."""
        module = assemble(copy_graph(self.graph), tensors, self.signature, training=self.training)
        return Program(module, self.signature, example, list(self.notes), list(self.history), self.origins)

    def train(self, mode: bool = True) -> Self:
        """Switch batch norms and dropouts to training mode, in place."""
        self.module.train(mode)
        return self

    def eval(self) -> Self:
        """Switch batch norms and dropouts to evaluation mode, in place."""
        return self.train(False)

    def save(self, path: str | Path) -> None:
        """Write the program as a `.fxc` archive, which `archive.load` opens without the model's class."""
        save(self, path)

    def flat_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call, in the order of `signature.inputs`."""
        leaves: list[torch.Tensor] = fx_pytree.tree_flatten_spec((args, kwargs), self.signature.in_spec)
        return leaves

    def flat_example(self) -> list[torch.Tensor]:
        """The tensors of the example, in the order of `signature.inputs`."""
        return self.flat_inputs(self.example.args, self.example.kwargs)
