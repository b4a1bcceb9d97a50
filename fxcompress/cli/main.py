"""The command line: `fxcompress optimize | inspect | diff | bench`."""

from __future__ import annotations

from typing import Any

import click

from fxcompress.cli.bench import bench
from fxcompress.cli.console import emit, error_dict
from fxcompress.cli.diff import diff
from fxcompress.cli.inspect import inspect
from fxcompress.cli.optimize import optimize
from fxcompress.errors import CompressError, UnsafeFile
from fxcompress.version import VERSION


class Commands(click.Group):
    """A group whose commands end with exit code 1 and a clean message on a typed error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a CompressError is told on stderr, and as JSON on stdout where asked for."""
        try:
            return super().invoke(ctx)
        except CompressError as error:
            if isinstance(error, UnsafeFile) and error.hint is not None:
                error.hint = error.hint.replace("trust=True", "--trust")
            click.secho("error: ", fg="red", bold=True, err=True, nl=False)
            click.echo(str(error), err=True)
            if ctx.meta.get("fxcompress.json"):
                emit(error_dict(error))
            ctx.exit(1)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit code: 0 success, 1 an error that says what to do, 2 wrong usage.",
)
@click.version_option(VERSION, prog_name="fxcompress")
def main() -> None:
    """Make a trained PyTorch model smaller and faster, and prove it.

    \b
    Prune half of the MACs, quantize to INT8, write ONNX:
      fxcompress optimize mymodels.net:build -o out --prune 0.5 \\
          --quantize int8 --calibration images.npz
    Look at what came out:
      fxcompress inspect out/program.fxc
      fxcompress inspect out/model.onnx
    Compare:
      fxcompress diff before.fxc out/program.fxc
      fxcompress bench before.onnx out/model.onnx
    """


for command in (optimize, inspect, diff, bench):
    main.add_command(command)
