"""What pruning by half leaves of the demo's network, by the weight decay it was trained with.

Each network is the demo's, trained as the demo trains it but for the decay, and pruned by the passes alone
(no INT8, no fine-tuning), once as it is and once with the remaining weights re-fitted on 256 training images.
Accuracies are those on the validation images; the test images are not looked at. Run by
`python -m benchmarks.digits_decay`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from examples import digits
from fxcompress.analysis.groups import analyse
from fxcompress.graph.capture import capture
from fxcompress.passes.compensate import Compensate
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning
from fxcompress.report import tables
from fxcompress.targets.onnxruntime import onnxruntime

DECAYS = (1e-3, 5e-3, 2e-2, 5e-2)
RATIO = 0.5
CALIBRATION = 256


@dataclass(frozen=True)
class Line:
    """One training: accuracies on the validation images, of the whole network, of what pruning left, and of
    that compensated.
    """

    decay: float
    seed: int
    before: float
    after: float
    compensated: float


def main() -> int:
    """Train, prune, print."""
    options = _options()
    console = Console(stderr=True)
    data = digits.load()
    lines = []
    for line in _lines(data, options):
        console.print(f"decay {line.decay:g}, seed {line.seed}: {_figures(line)}")
        lines.append(line)
    Console().print(_view(lines, len(data.validation.labels)))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decays", type=float, nargs="+", default=DECAYS, help="weight decays to try")
    parser.add_argument("--seeds", type=int, default=1, help="trainings per decay")
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS, help="passes over the training images")
    return parser.parse_args()


def _lines(data: digits.Digits, options: argparse.Namespace) -> Iterator[Line]:
    for decay in options.decays:
        for seed in range(options.seeds):
            model = digits.train(data, epochs=options.epochs, seed=seed, decay=decay)
            program = capture(model, data.train.images[:2])
            plan = plan_pruning(analyse(program), Prune(ratio=RATIO), onnxruntime().channel_block)
            pruned = PruneChannels(plan).run(program).program
            batches = data.train.images[:CALIBRATION].split(32)
            refitted = Compensate(program, plan, batches).run(pruned).program
            stages = (program, pruned, refitted)
            yield Line(decay, seed, *(digits.accuracy(forward, data.validation) for forward in stages))


def _figures(line: Line) -> str:
    return f"{line.before:.4f}, pruned {line.after:.4f}, compensated {line.compensated:.4f}"


def _view(lines: list[Line], images: int) -> Any:
    columns = ("before", "pruned", "compensated")
    title = f"accuracy on {images} validation images, {RATIO:.0%} of the MACs removed"
    made = tables.table(title, "decay", "seed", *columns, right=columns)
    for line in lines:
        figures = (line.before, line.after, line.compensated)
        made.add_row(f"{line.decay:g}", str(line.seed), *(f"{figure:.4f}" for figure in figures))
    return made


if __name__ == "__main__":
    sys.exit(main())
