"""`fxcompress inspect`: the graph of a file, its groups, what is frozen and why, what it costs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click
import onnx
from rich.text import Text

from fxcompress.analysis.groups import analyse
from fxcompress.analysis.sensitivity import SAMPLES, Sensitivity
from fxcompress.api.attribution import attribution, entries
from fxcompress.api.request import program_of
from fxcompress.cli.console import Steps, emit, show
from fxcompress.cli.options import json_option, trust_option
from fxcompress.cli.specs import calibration as calibration_of
from fxcompress.cli.specs import existing, given_model, is_program_file
from fxcompress.errors import InputError
from fxcompress.graph.program import Program
from fxcompress.passes.loosening import loosened
from fxcompress.report import listings, tables
from fxcompress.report.contents import of_onnx, of_program
from fxcompress.runtime.inspection import executed
from fxcompress.runtime.session import read_proto

CALIBRATION_BATCH = 32


@click.command(no_args_is_help=True, short_help="List a graph, its groups and costs.")
@click.argument("model")
@click.option("--graph/--no-graph", default=True, show_default=True, help="List the graph itself.")
@click.option(
    "--why",
    nargs=2,
    metavar="A B",
    help="Show the operators that couple two dimensions, such as conv1.weight[0] and bn1.weight[0].",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Show which layers int8 hurts, each alone at the outputs; needs --calibration.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="For --sensitivity: a .npz of inputs, or module:callable returning an iterable of batches.",
)
@click.option(
    "--target",
    metavar="NAME",
    default="onnxruntime",
    show_default=True,
    help="For --sensitivity: the runtime.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    default=SAMPLES,
    show_default=True,
    help="For --sensitivity: samples that outputs are compared on.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    help="For --sensitivity: quantize only the N noisiest layers alone; each costs half a run of the model "
    "for every four samples.",
)
@trust_option
@json_option
def inspect(
    model: str,
    graph: bool,
    why: tuple[str, str] | None,
    sensitivity: bool,
    calibration: str | None,
    target: str,
    samples: int,
    limit: int | None,
    trust: bool,
    as_json: bool,
) -> None:
    """List the graph of MODEL, its groups, costs and how much of it pruning can reach.

    MODEL is a .fxc, .pt2 or .onnx file, or package.module:callable, called without arguments, which returns
    the model or (model, example_inputs).

    Of a program: every operator with its shapes, the share of parameters and MACs that can be pruned, the
    groups of channels that can only be removed together, and the axes that cannot be pruned with the
    reason, your line of code and what that costs. Of an ONNX file: operators as written and as the runtime
    executes them, and how many bytes are 8-bit.

    \b
    Examples:
      fxcompress inspect mymodels.net:build --no-graph
      fxcompress inspect out/program.fxc --no-graph --why conv1.weight[0] layer1.0.conv2.weight[0]
      fxcompress inspect mymodels.net:build --sensitivity --calibration images.npz
      fxcompress inspect out/model.onnx --json
    """
    if sensitivity or calibration:
        _check_sensitivity(model, sensitivity=sensitivity, calibration=calibration)
        study = partial(attribution, target=target, samples=samples, limit=limit)
        _sensitivity(_captured(model, trust), calibration or "", study, as_json)
        return
    if Path(model).suffix.lower() == ".onnx":
        if why:
            raise click.BadOptionUsage("why", "--why needs a program, not an ONNX file")
        _onnx(Path(model), as_json)
    else:
        _program(_captured(model, trust), graph, why, as_json)


def _check_sensitivity(model: str, *, sensitivity: bool, calibration: str | None) -> None:
    if not sensitivity or not calibration:
        raise click.UsageError(
            "--sensitivity and --calibration go together: ranges are measured, not guessed"
        )
    if Path(model).suffix.lower() == ".onnx":
        raise click.BadOptionUsage("sensitivity", "--sensitivity needs a program, not an ONNX file")


def _sensitivity(program: Program, data: str, study: Callable[..., Sensitivity], as_json: bool) -> None:
    """Show the layers, the ones that hurt most first."""
    with Steps() as step, contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no result
        found = study(program, calibration_of(data, CALIBRATION_BATCH), progress=step)
    rows = entries(found)
    if as_json:
        emit({"total": found.total, "samples": found.samples, "layers": [asdict(row) for row in rows]})
        return
    show(tables.sensitivity(rows, len(rows)))
    show(Text(f"all together: outputs move by {100 * found.total:.2f} % on {found.samples} samples"))


def _captured(model: str, trust: bool) -> Program:
    if Path(model).is_file() and not is_program_file(model):
        raise InputError(f"{model} is no .fxc, .pt2 or .onnx file", hint="the suffix tells how to read it")
    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no result
        given = given_model(model, trust=trust)
        if isinstance(given.model, Program):
            return given.model
        return program_of(given.model, given.example_inputs, None, trust=trust)


def _program(program: Program, graph: bool, why: tuple[str, str] | None, as_json: bool) -> None:
    analysis = analyse(loosened(program))
    if why:
        path = analysis.why(*why)
        if as_json:
            emit({"a": why[0], "b": why[1], "path": path})
        else:
            show(Text("\n".join(path) if path else f"nothing couples {why[0]} with {why[1]}"))
        return
    contents = of_program(program)
    if as_json:
        emit(listings.program_dict(program, analysis, contents))
    else:
        show(listings.program_view(program, analysis, contents, graph=graph))


def _onnx(file: Path, as_json: bool) -> None:
    existing(file)
    model: onnx.ModelProto = read_proto(str(file))
    contents, operators, size = of_onnx(model), executed(str(file)), file.stat().st_size
    if as_json:
        emit(listings.onnx_dict(contents, operators, size))
    else:
        show(listings.onnx_view(contents, operators, size))
