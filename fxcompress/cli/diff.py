"""`fxcompress diff`: what changed between two programs or ONNX files."""

from __future__ import annotations

from pathlib import Path

import click

from fxcompress.analysis.cost import cost
from fxcompress.cli.console import emit, show
from fxcompress.cli.options import json_option, trust_option
from fxcompress.cli.specs import existing, is_program_file, program_file
from fxcompress.errors import InputError
from fxcompress.report.contents import Contents, of_onnx, of_program
from fxcompress.report.difference import compare, view
from fxcompress.runtime.session import read_proto


@click.command(no_args_is_help=True, short_help="Show what changed between two files.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@trust_option
@json_option
def diff(a: Path, b: Path, trust: bool, as_json: bool) -> None:
    """Show what changed from A to B (each .fxc, .pt2 or .onnx).

    Tensors are matched by name, which every pass keeps (integers are called NAME_int8): those of another
    shape or dtype, with other values, added and removed; then operators and costs. A program can be compared
    with an ONNX file, except for the operators, which have different names there.

    \b
    Examples:
      fxcompress diff before.fxc out/program.fxc
      fxcompress diff float.onnx out/model.onnx --json
    """
    first, costs_a = _contents(a, trust)
    second, costs_b = _contents(b, trust)
    shared = {name: (costs_a[name], costs_b[name]) for name in costs_a if name in costs_b}
    difference = compare(first, second, shared)
    if as_json:
        emit({"a": str(a), "b": str(b)} | difference.to_dict())
    else:
        show(view(difference))


def _contents(file: Path, trust: bool) -> tuple[Contents, dict[str, float]]:
    """What a file holds, and its costs by measure."""
    if file.suffix.lower() == ".onnx":
        return of_onnx(read_proto(str(existing(file)))), {"file": file.stat().st_size}
    if not is_program_file(str(file)):
        raise InputError(f"{file} is no .fxc, .pt2 or .onnx file", hint="the suffix tells how to read it")
    program = program_file(file, trust=trust)
    costs = {"file": file.stat().st_size, "MACs per sample": cost(program).macs}
    return of_program(program), costs
