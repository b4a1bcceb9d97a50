"""How long dependency analysis takes as graphs grow: five families, up to ten thousand nodes.

    python -m benchmarks.analysis_time                       # the table
    python -m benchmarks.analysis_time --sizes 500 5000 --json

A family is a block repeated until the graph has the wanted number of nodes. The exponent is the slope of log
time over log nodes between the smallest and the largest graph: 1 is linear. Seconds are of processor
time (analysis runs on one thread), the best of several runs, and cover what `analyse` does: propagation,
groups, obstacles and prices. The share of propagation and the prunability report are listed beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from torch import Tensor, fx, nn

from fxcompress.analysis.groups import analyse
from fxcompress.analysis.propagate import propagate
from fxcompress.analysis.prunability import prunability
from fxcompress.graph import walk
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.report.tables import table

SIZES = (500, 1000, 2000, 5000, 10000)
TARGET_NODES, TARGET_SECONDS = 5000, 2.0
WIDTH = 8


class Residual(nn.Module):
    """Convolution, batch norm, ReLU, twice, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * WIDTH, 1),
            nn.BatchNorm2d(2 * WIDTH),
            nn.ReLU(),
            nn.Conv2d(2 * WIDTH, WIDTH, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Plain(nn.Module):
    """A chain without branches: a group for every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Dense(nn.Module):
    """A dense stage of six layers, each reading all before it, and a transition back to the width."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(WIDTH * (i + 1), WIDTH, 1) for i in range(layers))
        self.transition = nn.Conv2d(WIDTH * (layers + 1), WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.transition(x)


class Transformer(nn.Module):
    """Attention with separate projections and an MLP, each in a residual branch behind a layer norm."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (m(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(nn.functional.gelu(self.up(self.norm_2(x))))


class Packed(nn.Module):
    """Softmax attention written out, with queries, keys and values in one linear."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1), -1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Plain, (2, WIDTH, 2, 2)),
    "residual": (Residual, (2, WIDTH, 2, 2)),
    "dense": (Dense, (2, WIDTH, 2, 2)),
    "transformer": (Transformer, (2, 3, WIDTH)),
    "packed": (Packed, (2, 3, WIDTH)),
}


@dataclass(frozen=True)
class Timing:
    """Seconds for one graph; `analyse` includes `propagate`."""

    family: str
    nodes: int
    groups: int
    analyse: float
    propagate: float
    prunability: float


def program_of(family: str, nodes: int) -> Program:
    """A program of a family with about so many nodes: one captured block, repeated."""
    block, shape = FAMILIES[family]
    torch.manual_seed(0)
    once = capture(block().eval(), torch.randn(shape))
    per_block = len(once.graph.nodes) - 2  # without input and output
    return repeated(once, max(1, round((nodes - 2) / per_block)))


def repeated(block: Program, times: int) -> Program:
    """The program that applies a block of one input and one output so many times, each with its own tensors.

    Exporting ten thousand nodes takes minutes; this takes a second and gives the same graph.
    """
    graph, tensors = fx.Graph(), {}
    (source,) = walk.placeholders(block)
    (result,) = walk.output_values(block)
    value = graph.node_copy(source)
    stored = [node for node in block.graph.nodes if node.op == "get_attr"]
    reads: list[dict[fx.Node, fx.Node]] = []
    for index in range(times):
        made = {node: graph.node_copy(node) for node in stored}
        for node, copy in made.items():
            tensor = walk.tensor(block, node)
            copy.target = f"{index}.{node.target}"
            tensors[copy.target] = (
                nn.Parameter(tensor.detach().clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()
            )
        reads.append(made)
    for made in reads:
        known = {**made, source: value}
        for node in block.graph.nodes:
            if node.op == "call_function":
                known[node] = graph.node_copy(node, known.__getitem__)
        value = known[result]
    graph.output((value,))
    return Program.build(graph, tensors, block.signature, block.example)


def measure(family: str, program: Program, rounds: int) -> Timing:
    """The best of several runs for each part."""
    analysis = analyse(program)
    return Timing(
        family,
        len(program.graph.nodes),
        len(analysis.groups),
        _best(lambda: analyse(program), rounds),
        _best(lambda: propagate(program), rounds),
        _best(lambda: prunability(analysis), rounds),
    )


def _best(run: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def exponent(timings: Sequence[Timing]) -> float:
    """The growth of `analyse` between the smallest and the largest graph; 1 is linear."""
    first, last = timings[0], timings[-1]
    if first.nodes == last.nodes:
        return math.nan
    return math.log(last.analyse / first.analyse) / math.log(last.nodes / first.nodes)


def met(timings: Sequence[Timing]) -> bool:
    """Whether everything near `TARGET_NODES` was analysed in time."""
    at_target = [item for item in timings if abs(item.nodes - TARGET_NODES) < 0.1 * TARGET_NODES]
    return all(item.analyse < TARGET_SECONDS for item in at_target)


def show(timings: Sequence[Timing], console: Console) -> None:
    """Print the table and what the target says."""
    right = ("nodes", "groups", "analyse", "propagate", "prunability", "exponent")
    made = table("Analysis, in seconds", "family", *right, right=right)
    for family in dict.fromkeys(item.family for item in timings):
        own = [item for item in timings if item.family == family]
        for item in own:
            growth = f"{exponent(own):.2f}" if item is own[-1] else ""
            parts = (f"{value:.3f}" for value in (item.analyse, item.propagate, item.prunability))
            made.add_row(family, str(item.nodes), str(item.groups), *parts, growth)
    console.print(made)
    at_target = [item for item in timings if abs(item.nodes - TARGET_NODES) < 0.1 * TARGET_NODES]
    if at_target:
        slowest = max(at_target, key=lambda item: item.analyse)
        verdict = "met" if met(timings) else "missed"
        console.print(
            f"{TARGET_NODES} nodes under {TARGET_SECONDS:g} s: {verdict} "
            f"({slowest.analyse:.2f} s for {slowest.family})"
        )


def main(arguments: Sequence[str] | None = None) -> list[Timing]:
    """Measure, print, and return what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="NODES")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON on stdout and nothing else there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    timings = []
    for family in options.families:
        for size in sorted(options.sizes):
            print(f"{family}, {size} nodes", file=sys.stderr)
            timings.append(measure(family, program_of(family, size), options.rounds))
    if options.json:
        print(json.dumps([asdict(item) for item in timings], indent=2))
    else:
        show(timings, Console())
    return timings


if __name__ == "__main__":
    sys.exit(0 if met(main()) else 1)
