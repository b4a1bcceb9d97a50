"""`fxcompress inspect`: the graph of a file, its groups, what is frozen and why, what it costs."""

from __future__ import annotations

from pathlib import Path

import click
import onnx
from rich.text import Text

from fxcompress.analysis.groups import analyse
from fxcompress.cli.console import emit, show
from fxcompress.cli.options import json_option, trust_option
from fxcompress.cli.specs import existing, is_program_file, program_file
from fxcompress.errors import InputError
from fxcompress.report import listings
from fxcompress.report.contents import of_onnx, of_program
from fxcompress.runtime.inspection import executed
from fxcompress.runtime.session import read_proto


@click.command(no_args_is_help=True, short_help="List a graph, its groups and costs.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--graph/--no-graph", default=True, show_default=True, help="List the graph itself.")
@click.option(
    "--why",
    nargs=2,
    metavar="A B",
    help="Show the operators that couple two dimensions, such as conv1.weight[0] and bn1.weight[0].",
)
@trust_option
@json_option
def inspect(file: Path, graph: bool, why: tuple[str, str] | None, trust: bool, as_json: bool) -> None:
    """List the graph of FILE (.fxc, .pt2 or .onnx), its groups and costs.

    Of a program: every operator with its shapes, the groups of channels that can only be removed together,
    the axes that cannot be pruned with the reason and your line of code, parameters and MACs. Of an ONNX
    file: operators as written and as the runtime executes them, and how many bytes are 8-bit.

    \b
    Examples:
      fxcompress inspect out/program.fxc
      fxcompress inspect out/program.fxc --no-graph --why conv1.weight[0] layer1.0.conv2.weight[0]
      fxcompress inspect out/model.onnx --json
    """
    if file.suffix.lower() == ".onnx":
        if why:
            raise click.BadOptionUsage("why", "--why needs a program (.fxc or .pt2)")
        _onnx(file, as_json)
    elif is_program_file(str(file)):
        _program(file, graph, why, trust, as_json)
    else:
        raise InputError(f"{file} is no .fxc, .pt2 or .onnx file", hint="the suffix tells how to read it")


def _program(file: Path, graph: bool, why: tuple[str, str] | None, trust: bool, as_json: bool) -> None:
    program = program_file(file, trust=trust)
    analysis = analyse(program)
    if why:
        path = analysis.why(*why)
        if as_json:
            emit({"a": why[0], "b": why[1], "path": path})
        else:
            show(Text("\n".join(path) if path else f"nothing couples {why[0]} with {why[1]}"))
        return
    contents = of_program(program)
    if as_json:
        emit(listings.program_dict(analysis, contents))
    else:
        show(listings.program_view(analysis, contents, graph=graph))


def _onnx(file: Path, as_json: bool) -> None:
    existing(file)
    model: onnx.ModelProto = read_proto(str(file))
    contents, operators, size = of_onnx(model), executed(str(file)), file.stat().st_size
    if as_json:
        emit(listings.onnx_dict(contents, operators, size))
    else:
        show(listings.onnx_view(contents, operators, size))
