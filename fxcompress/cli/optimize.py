"""`fxcompress optimize`: the whole path from a model to ONNX, from the command line."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click
from rich.console import Group
from rich.text import Text

from fxcompress.api import optimize as run_optimize
from fxcompress.api.result import check_folder
from fxcompress.cli import specs
from fxcompress.cli.budgets import pruning
from fxcompress.cli.console import Steps, emit, show
from fxcompress.cli.options import batch_option, json_option, threads_option, trust_option
from fxcompress.cli.precision import quantization
from fxcompress.numerics.saliency import DATA_KINDS, NAMED
from fxcompress.plan.prune import SCOPES, Prune
from fxcompress.plan.pruning_plan import PruningPlan
from fxcompress.plan.quantization_plan import CALIBRATORS, MODES, PRECISIONS
from fxcompress.recipes.reading import named_recipes
from fxcompress.report import tables


@click.command(no_args_is_help=True, short_help="Prune, quantize and lower a model to ONNX.")
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for model.onnx, program.fxc, plan.json and report.json.",
)
@click.option("--prune", type=float, metavar="SHARE", help="Share of the MACs to remove, such as 0.5.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="NAME=BOUND",
    help="What may remain: macs, params, bytes or ms, as a number or a share, such as ms=3.0 or macs=50%; "
    "repeat for more.",
)
@click.option(
    "--saliency",
    type=click.Choice(list(NAMED)),
    metavar="NAME",
    help=f"How channels are ranked: l2 unless stated, or {', '.join(list(NAMED)[:1] + list(NAMED)[2:])}; "
    f"{', '.join(DATA_KINDS)} need --calibration.",
)
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    help="What is ranked together: all groups, each alone, or those of one kind of block.",
)
@click.option(
    "--protect",
    multiple=True,
    metavar="PATTERN",
    help="Parameter names such as 'layer1.*', or a module type such as Conv2d, whose channels stay; repeat "
    "for more.",
)
@click.option(
    "--plan",
    "plan",
    metavar="FILE",
    help="Apply the pruning plan of a plan.json instead of making one.",
)
@click.option(
    "--quantize",
    metavar="MODE",
    help=f"{', '.join(MODES)}. int8 needs --calibration; with it the -weights modes round by GPTQ.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="auto, unless stated: float, all integers and mixtures are timed, the fastest is taken; full: all "
    "that has an integer kernel.",
)
@click.option(
    "--keep-float",
    "keep_float",
    multiple=True,
    metavar="PATTERN",
    help="Operators, parameters or modules such as 'head*' that stay in float; repeat for more.",
)
@click.option(
    "--calibrator",
    type=click.Choice(CALIBRATORS),
    help="How ranges follow from calibration data.",
)
@click.option(
    "--recipe",
    metavar="FILE",
    help="A TOML file that spells the stages in order, instead of --prune and --quantize; or one of "
    f"{', '.join(named_recipes())}.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="A .npz whose keys are input names (one array without a name will do for one input) and whose "
    "first dimension counts samples, "
    "or module:callable returning an iterable of batches.",
)
@click.option(
    "--calibration-batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=32,
    show_default=True,
    help="Samples per batch of a .npz.",
)
@click.option(
    "--evaluate",
    metavar="FUNCTION",
    help="module:callable taking the model as a function, returning a score.",
)
@click.option("--max-drop", type=float, metavar="DROP", help="Refuse to lose more of the score than this.")
@click.option(
    "--objective",
    type=click.Choice(["latency", "size"]),
    default="latency",
    show_default=True,
    help="What to favour.",
)
@click.option(
    "--target",
    metavar="NAME",
    default="onnxruntime",
    show_default=True,
    help="The runtime the model will live in.",
)
@click.option("--opset", type=click.IntRange(min=1), metavar="N", help="ONNX opset, where one is required.")
@click.option(
    "--input-name",
    "input_names",
    multiple=True,
    metavar="NAME",
    help="Name of an ONNX input; repeat in order.",
)
@click.option(
    "--output-name",
    "output_names",
    multiple=True,
    metavar="NAME",
    help="Name of an ONNX output; repeat in order.",
)
@click.option(
    "--dynamic",
    "dynamic",
    multiple=True,
    metavar="INPUT:DIM=NAME",
    help="Dimension of an input that varies beside the batch, such as input_ids:1=sequence; repeat for more.",
)
@batch_option
@threads_option
@trust_option
@json_option
def optimize(
    model: str,
    output: Path,
    prune: float | None,
    budgets: tuple[str, ...],
    saliency: str | None,
    scope: str | None,
    protect: tuple[str, ...],
    plan: str | None,
    quantize: str | None,
    precision: str | None,
    keep_float: tuple[str, ...],
    calibrator: str | None,
    recipe: str | None,
    calibration: str | None,
    calibration_batch: int,
    evaluate: str | None,
    max_drop: float | None,
    objective: str,
    target: str,
    opset: int | None,
    input_names: tuple[str, ...],
    output_names: tuple[str, ...],
    dynamic: tuple[str, ...],
    batch: int,
    threads: int,
    trust: bool,
    as_json: bool,
) -> None:
    """Prune, quantize and lower MODEL to ONNX, prove each step, measure the result.

    MODEL is a .pt2 or .fxc file, or package.module:callable, called without arguments, which returns the
    model or (model, example_inputs). The current folder is importable. Without --prune and --quantize the
    result computes exactly what the model does.

    \b
    Examples:
      fxcompress optimize net.pt2 -o out
      fxcompress optimize mymodels.net:build -o out --prune 0.5
      fxcompress optimize mymodels.net:build -o out --budget ms=3.0 --budget params=50%
      fxcompress optimize mymodels.net:build -o out --prune 0.5 --quantize int8 \\
          --calibration images.npz --evaluate mymodels.score:accuracy
      fxcompress optimize mymodels.net:build -o out --plan earlier/plan.json
      fxcompress optimize mymodels.net:build -o out --recipe stages.toml
      fxcompress optimize mymodels.text:embedder -o out \\
          --dynamic input_ids:1=sequence --dynamic attention_mask:1=sequence
    """
    rules = {"saliency": saliency, "scope": scope, "protect": protect}
    removal: float | Prune | PruningPlan | None = pruning(prune, budgets, rules)
    if plan is not None:
        if removal is not None:
            raise click.UsageError("--plan says what goes: leave --prune and --budget out")
        removal = PruningPlan.load(plan)
    options = {"precision": precision, "exclude": keep_float, "calibrator": calibrator}
    quantizing = quantization(quantize, options)
    check_folder(output)  # at once, not after minutes of work
    with Steps() as step, contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is no result
        step("load")
        given = specs.given_model(model, trust=trust)
        data = specs.calibration(calibration, calibration_batch) if calibration else None
        result = run_optimize(
            given.model,
            given.example_inputs,
            prune=removal,
            quantize=quantizing,
            recipe=recipe,
            calibration=data,
            evaluate=specs.metric(evaluate) if evaluate else None,
            max_drop=max_drop,
            objective=objective,
            target=target,
            dynamic_shapes=specs.dynamic_shapes(dynamic),
            opset=opset,
            input_names=list(input_names) or None,
            output_names=list(output_names) or None,
            threads=threads,
            batch=batch,
            progress=step,
        )
        step("save")
        result.save(output)
    if as_json:
        emit(result.report.to_dict())
    else:
        show(Group(tables.overview(result.report), Text(f"wrote {output}")))
