"""How accurate a pruned ResNet-20 is before any training: by saliency, with and without compensation.

    python -m benchmarks.pruning_accuracy --data FOLDER [--json FILE] [--plot FILE]

The trained network and the images lie in the folder (see its README); without it the benchmark is skipped.
Every saliency removes channels until 1.5, 2, 3 and 4 times fewer MACs are left, and the same indices are
measured three times: removal alone, with batch norms re-estimated, compensated as `optimize` does it (after
the fits norms are measured anew too where the outputs come closer to the original's).

Torch-Pruning does the same with its group norm, global and per layer, and gets batch norms re-estimated too.
Its steps do not meet the MACs: the network before the step that falls below them is taken, so that it never
has fewer than ours. It cannot prune the residual streams of this network (zero-padded shortcuts break it:
"mat1 and mat2 shapes cannot be multiplied"), so they are excluded for it by hand.

Our rule, one for all points, is chosen by its mean on the validation images with the first seed; every
accuracy that is reported is of the test images. A seed draws the calibration images from the training images;
labels are read by gradient saliencies alone. Nothing is trained.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch_pruning
from rich.console import Console
from torch import Tensor

from benchmarks.cifar_images import Images, load
from benchmarks.pruning_accuracy_views import peer_table, plot, saliency_table
from benchmarks.resnet20_model import ResNet20, trained
from fxcompress.analysis.evidence import Evidence, gather, needs_of
from fxcompress.analysis.groups import Analysis, Group, analyse
from fxcompress.graph.capture import capture
from fxcompress.graph.program import Program
from fxcompress.numerics.saliency import NAMED, Saliency, as_saliency
from fxcompress.passes.compensate import Compensate
from fxcompress.passes.prune_channels import PruneChannels
from fxcompress.passes.reestimate_batch_norm import ReestimateBatchNorm
from fxcompress.plan.prune import Prune
from fxcompress.plan.pruning import plan_pruning

FACTORS = (1.5, 2.0, 3.0, 4.0)
SEEDS = (0, 1, 2)
SCREENED, CALIBRATION = 256, 1024
"""Calibration images while rules are compared, and of the chosen one and the peer."""
PEERS = {"Torch-Pruning, global": True, "Torch-Pruning, per layer": False}
STEPS = 100
"""Steps that Torch-Pruning takes towards removing everything."""


def is_stream(group: Group) -> bool:
    """Whether a group is a residual stream, not the inner channels of one block."""
    return group.name == "conv1.weight[0]" or ".conv2." in group.name


@dataclass(frozen=True)
class Rule:
    """How channels are chosen: a saliency on which scale, and whether residual streams may shrink."""

    saliency: str
    normalize: str | None = None
    scope: str = "global"
    streams: bool = True

    def __str__(self) -> str:
        scale = " per MAC" if self.kind.normalize == "macs" else ""
        scope = "" if self.scope == "global" else f", per {self.scope}"
        return f"{self.saliency}{scale}{scope}{'' if self.streams else ', streams whole'}"

    @property
    def kind(self) -> Saliency:
        """The saliency: as its name says, or on another scale."""
        named = as_saliency(self.saliency)
        return named if self.normalize is None else replace(named, normalize=self.normalize)

    def options(self, factor: float) -> Prune:
        """The same as `optimize` takes it."""
        return Prune(
            1 - 1 / factor,
            saliency=self.kind,
            scope=self.scope,
            block=1,
            max_ratio=0.95,
            protect=() if self.streams else (is_stream,),
        )


RULES = (
    *(Rule(name) for name in NAMED),
    *(Rule(kind, "macs", streams=False) for kind in ("taylor", "fisher", "reconstruction", "elimination")),
    Rule("elimination", "macs"),
)


@dataclass(frozen=True)
class Row:
    """One network: the MACs left, and test accuracies after each step; `validation` is of the last."""

    rule: str
    factor: float
    seed: int
    calibration: int
    macs: float
    removal: float
    norms: float
    compensated: float | None = None
    validation: float | None = None
    output_error: float | None = None


class Bench:
    """What every measurement needs, once per process."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.images: Images = load(folder)
        self.model: ResNet20 = trained(folder)
        self.program: Program = capture(self.model, (self.images.train[:2],))
        self.analysis: Analysis = analyse(self.program)
        self._evidence: dict[tuple[frozenset[str], int, int], Evidence] = {}
        self._peers: dict[tuple[str, float], Program] = {}

    def batches(self, seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """The calibration images and labels of a seed."""
        chosen = np.random.default_rng(seed).permutation(len(self.images.train))[:count]
        parts = np.array_split(chosen, count // 64)
        return [(self.images.train[part], self.images.train_labels[part]) for part in parts]

    def evidence(self, options: Prune, seed: int, count: int) -> Evidence | None:
        """What a saliency needs beside the weights."""
        needs = needs_of(options.criterion)
        key = needs, seed, count
        if needs and key not in self._evidence:
            self._evidence[key] = gather(self.program, self.batches(seed, count), needs)
        return self._evidence.get(key)

    def ours(self, rule: Rule, factor: float, seed: int, count: int) -> Row:
        """Prune by a rule and measure the three steps."""
        options, batches = rule.options(factor), self.batches(seed, count)
        plan = plan_pruning(self.analysis, options, 1, evidence=self.evidence(options, seed, count))
        pruned = PruneChannels(plan).run(self.program).program
        outcome = Compensate(self.program, plan, batches).run(pruned)
        compensated = ReestimateBatchNorm(batches, self.program).run(outcome.program).program
        return Row(
            str(rule),
            factor,
            seed,
            count,
            plan.after.macs / plan.before.macs,
            removal=self.test_accuracy(pruned),
            norms=self.test_accuracy(ReestimateBatchNorm(batches).run(pruned).program),
            compensated=self.test_accuracy(compensated),
            validation=accuracy(compensated, self.images.validation, self.images.validation_labels),
            output_error=outcome.after if compensated is outcome.program else None,
        )

    def peer(self, name: str, factor: float, seed: int) -> Row:
        """Prune with Torch-Pruning and measure removal alone and with batch norms re-estimated."""
        if (name, factor) not in self._peers:
            thin = prune_by_peer(self.model, self.images.train[:1], factor, PEERS[name])
            self._peers[name, factor] = capture(thin, (self.images.train[:2],))
        program = self._peers[name, factor]
        share = analyse(program).price.at({}).macs / self.analysis.price.at({}).macs
        norms = ReestimateBatchNorm(self.batches(seed, CALIBRATION)).run(program).program
        return Row(
            name, factor, seed, CALIBRATION, share, self.test_accuracy(program), self.test_accuracy(norms)
        )

    def test_accuracy(self, program: Program) -> float:
        """The share of the test images that a program classifies rightly."""
        return accuracy(program, self.images.test, self.images.test_labels)


def accuracy(program: Program, images: Tensor, labels: Tensor) -> float:
    """The share of images that a program classifies rightly."""
    with torch.no_grad():
        right = [
            (program.module(part).argmax(1) == wanted).sum()
            for part, wanted in zip(images.split(250), labels.split(250), strict=True)
        ]
    return float(sum(right)) / len(labels)


def prune_by_peer(model: ResNet20, example: Tensor, factor: float, everywhere: bool) -> ResNet20:
    """Torch-Pruning's group norm, in small steps, the last network that has the MACs; streams and classifier
    excluded.
    """
    thin = copy.deepcopy(model)
    blocks = [block for layer in (thin.layer1, thin.layer2, thin.layer3) for block in layer]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MagnitudePruner(
            thin,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=everywhere,
            pruning_ratio=1.0,
            iterative_steps=STEPS,
            ignored_layers=[thin.linear, thin.conv1, *(block.conv2 for block in blocks)],
        )
        full = torch_pruning.utils.count_ops_and_params(thin, example)[0]
        for _ in range(STEPS):
            before = copy.deepcopy(thin)
            pruner.step()
            if torch_pruning.utils.count_ops_and_params(thin, example)[0] < full / factor:
                return before.eval()
    raise RuntimeError(f"Torch-Pruning does not reach 1/{factor:g} of the MACs")


@cache
def bench(folder: Path) -> Bench:
    """The process's own."""
    return Bench(folder)


Job = tuple[Path, Rule | str, float, int, int]


def measured(job: Job) -> Row:
    """One row, in a worker."""
    folder, what, factor, seed, count = job
    here = bench(folder)
    if isinstance(what, Rule):
        return here.ours(what, factor, seed, count)
    return here.peer(what, factor, seed)


def run_all(jobs: Iterable[Job], processes: int) -> list[Row]:
    """All rows, in the order of the jobs."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(measured, jobs))


def best_rule(rows: Sequence[Row], rules: Sequence[Rule]) -> Rule:
    """The rule with the best mean on the validation images."""

    def mean(rule: Rule) -> float:
        return float(np.mean([row.validation for row in rows if row.rule == str(rule)]))

    return max(rules, key=mean)


def main() -> int:
    """Measure, print, and write where asked; 0 when the goals are met or there is no data."""
    options = _options()
    console = Console()
    if options.data is None or not (options.data / "resnet20.pt").is_file():
        console.print("skipped: pass --data FOLDER with resnet20.pt, cifar.py and the images")
        return 0
    start = time.perf_counter()
    here = bench(options.data)
    base = here.test_accuracy(here.program)
    rules = [rule for rule in RULES if not options.rules or rule.saliency in options.rules]
    factors, seeds = options.factors, options.seeds
    screening = [(options.data, rule, at, seeds[0], SCREENED) for rule in rules for at in factors]
    screened = run_all(screening, options.processes)
    best = best_rule(screened, rules)
    final = [(best, at, seed) for at in factors for seed in seeds]
    final += [(name, at, seed) for name in PEERS for at in factors for seed in seeds]
    rows = run_all([(options.data, *what, CALIBRATION) for what in final], options.processes)
    console.print(f"ResNet-20: {base:.1%} of the test images are right; nothing is trained")
    console.print(saliency_table(screened, [str(rule) for rule in rules], factors, SCREENED))
    console.print(peer_table(rows, str(best), tuple(PEERS), factors, seeds))
    verdicts = goals(rows, str(best), factors, base)
    for text, kept in verdicts:
        console.print(f"{'kept' if kept else 'MISSED'}: {text}")
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} s")
    if options.json is not None:
        found = {
            "accuracy": base,
            "best": str(best),
            "seconds": seconds,
            "rows": [asdict(row) for row in (*screened, *rows)],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot is not None:
        plot(options.plot, rows, str(best), tuple(PEERS), base)
    return 0 if all(kept for _, kept in verdicts) else 1


def goals(rows: Sequence[Row], best: str, factors: Sequence[float], base: float) -> list[tuple[str, bool]]:
    """What the benchmark promises, and whether it holds."""
    ours = {(row.factor, row.seed): row for row in rows if row.rule == best}
    result = []
    for (factor, seed), row in sorted(ours.items()):
        if factor == 2.0:
            share = ((row.compensated or 0.0) - row.removal) / (base - row.removal)
            result.append((f"at 2x, seed {seed}, {share:.0%} of the lost accuracy comes back", share >= 0.5))
    for factor in factors:
        gaps = [
            (ours[factor, row.seed].compensated or 0.0) - row.norms
            for row in rows
            if row.rule in PEERS and row.factor == factor and (factor, row.seed) in ours
        ]
        text = f"at {factor:g}x ahead of Torch-Pruning by at least {min(gaps):.1%} on every seed"
        result.append((text, min(gaps) > 0))
        most = max(row.macs for (at, _), row in ours.items() if at == factor)
        least = min(row.macs for row in rows if row.rule in PEERS and row.factor == factor)
        text = f"at {factor:g}x with {most:.1%} of the MACs, it with {least:.1%} or more"
        result.append((text, most <= least + 0.002))
    return result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the network and the images")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them, as SVG")
    parser.add_argument("--rules", nargs="*", help="only rules of these saliencies")
    parser.add_argument("--factors", nargs="*", type=float, default=FACTORS)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
