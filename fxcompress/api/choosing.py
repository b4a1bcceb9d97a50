"""The candidates lowered, judged and chosen among: what each loses, its proof, and what takes its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx

from fxcompress.analysis.sensitivity import LayerError
from fxcompress.api.candidates import BARE, CARRIED, FLOAT, ORIGINAL, Candidate, Choice, Rules, choose
from fxcompress.api.compress import Compressed
from fxcompress.api.findings import compare_outputs, moved_outputs
from fxcompress.api.frontier import Step, fastest_within, ranked_layers, walk
from fxcompress.api.proofs import prove_variant
from fxcompress.api.request import Request
from fxcompress.api.variant import Variant
from fxcompress.errors import NotSupported, ProofError
from fxcompress.graph.program import Program
from fxcompress.graph.quantizers import dequantize_stored, drop_quantizers
from fxcompress.lowering.lower import lower
from fxcompress.measure import Difference, ModelCall, as_model, evaluate_model, program_runner, session_runner
from fxcompress.pipeline import Journal
from fxcompress.report.report import Proof
from fxcompress.runtime.session import LARGE, tensor_bytes
from fxcompress.runtime.timing import Comparison


def lower_all(request: Request, made: Compressed, journal: Journal) -> tuple[Candidate, ...]:
    """Lower the original and what was made of it; a program that no pass changed is not lowered twice."""
    folded = FLOAT if made.carried is None else CARRIED
    programs = {ORIGINAL: made.original, folded: made.deployed}
    programs |= {variant.name: variant.program for variant in made.variants}
    if made.carried is not None and request.target.timed:
        programs[BARE] = _bare(made.deployed)
    candidates: list[Candidate] = []
    for name, program in programs.items():
        known = next((item for item in candidates if item.program is program), None)
        fresh = lower_one(request, name, program, journal) if known is None else replace(known, name=name)
        candidates.append(fresh)
    return tuple(candidates)


def _bare(program: Program) -> Program:
    """A program that came quantized, in float."""
    copy = program.copy()
    drop_quantizers(copy)
    dequantize_stored(copy)
    return copy


def lower_one(request: Request, name: str, program: Program, journal: Journal) -> Candidate:
    """Lower one program as the request asks."""
    with journal.step(f"lower-{name}"):
        model = lower(
            program,
            opset=request.opset,
            input_names=request.input_names,
            output_names=request.output_names,
            forms=request.target.forms,
        )
        return Candidate(name, program, model, _content(model))


def _content(model: onnx.ModelProto) -> bytes:
    """The file as bytes, which is what is timed and probed."""
    if tensor_bytes(model) >= LARGE:
        raise NotSupported(
            f"the model has {tensor_bytes(model) / 2**30:.1f} GiB of tensors; an ONNX file holds up to 2 GiB",
            hint="capture, edit and lower it step by step: lowering.write.save_model splits such files",
        )
    content: bytes = model.SerializeToString()
    return content


@dataclass
class Choosing:
    """The choice, with what it needs to look at a candidate more closely: its metric and its proof."""

    request: Request
    made: Compressed
    journal: Journal
    proofs: list[Proof]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def forced(self) -> bool:
        """Whether everything in integers was asked for."""
        return self.request.quantize is not None and self.request.quantize.precision == "full"

    def widened(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Return the candidates, and where the best choice loses more than `max_drop`, one that does not.

        Prices tell beforehand which is the fastest, and everything in integers is the smallest; where neither
        helps, any variant within the bound will do.
        """
        bound, made = self.request.max_drop, self.made.variants
        if bound is None or not made or self.forced:
            return tuple(candidates)
        original, by_name = candidates[0], {item.name: item for item in candidates}
        smallest = self.request.objective == "size"
        known: list[Step] = []
        for variant in made[:1] if smallest else self._fastest_first():
            known.append(Step(variant, by_name[variant.name], self._loss(original, by_name[variant.name])))
            best = len(known) == 1 or not (smallest or self.made.frontier)
            if best and known[-1].loss <= bound:
                return tuple(candidates)
        step = self._walked(original, known, bound)
        if step is None or step in known:
            return tuple(candidates)
        variants = (*made, step.variant)
        self.made = replace(self.made, quantized=replace(self.made.quantized, variants=variants))
        return (*candidates, step.candidate)

    def _walked(self, original: Candidate, known: Sequence[Step], bound: float) -> Step | None:
        """The step within the bound that a walk finds; none where no layer can be left in float."""
        full = self.made.variants[0]
        if full.without is None:
            return None
        with self.journal.step("rank-layers"):
            ranked = ranked_layers(full, self.made.samples)
        judge = partial(self._judged, original)
        if self.request.objective != "size":
            self._reweigh(ranked)
            step = fastest_within(self.made.frontier, known, bound, judge)
            if step is not None or any(one.loss <= bound for one in known):
                return step
        return walk(full, ranked, bound, judge)

    def _reweigh(self, ranked: Sequence[LayerError]) -> None:
        """Draw the frontier anew with what each layer alone was seen to do to the outputs.

        A layer after which they are not finite counts more than all others.
        """
        quantized = self.made.quantized
        alone = {layer.node: layer.alone**2 for layer in ranked if layer.alone is not None}
        worst = 1.0 + sum(error for error in alone.values() if math.isfinite(error))
        errors = {name: error if math.isfinite(error) else worst for name, error in alone.items()}
        if quantized.reweighed is not None and errors:
            drawn = replace(quantized, frontier=quantized.reweighed(errors))
            self.made = replace(self.made, quantized=drawn)

    def _fastest_first(self) -> Sequence[Variant]:
        """The variants; in front the one that the prices call fastest, where they call any."""
        made = self.made.variants
        if not self.made.frontier:
            return made
        return sorted(made, key=lambda item: item.name != self.made.frontier[0].variant)

    def _judged(self, original: Candidate, variant: Variant) -> tuple[Candidate, float]:
        candidate = lower_one(self.request, variant.name, variant.program, self.journal)
        with self.journal.step(f"judge-{variant.name}"):
            return candidate, self._loss(original, candidate)

    def _loss(self, original: Candidate, item: Candidate) -> float:
        """What a candidate loses of the metric, or the relative error of the output that moves most."""
        if self.request.evaluate is not None:
            return self._metric(original) - self._metric(item)
        return compare_outputs(self.request, self.made, (original, item))[item.name].relative

    def choose(
        self, candidates: Sequence[Candidate], times: Comparison, errors: Mapping[str, Difference]
    ) -> Choice:
        """Choose by the measured times, the metric where the user gave one, and proofs."""
        target = self.request.target
        untimed = None if times.runtime == target.runtime else target.name
        lossless = self.made.trainable is self.made.original
        rules = Rules(
            self.request.objective,
            self.forced,
            self.request.max_drop,
            {name: error.relative for name, error in errors.items()},
            untimed,
            lossless,
            moved_outputs(self.request, self.made.original, errors),
        )
        metric = None if self.request.evaluate is None else self._metric
        return choose(candidates, times, rules, metric, self._fault)

    def _metric(self, item: Candidate) -> float:
        """The user's metric: the original runs in torch, the others as the sessions they are deployed as."""
        evaluate: Callable[[ModelCall], float] | None = self.request.evaluate
        assert evaluate is not None
        if item.name not in self.metrics:
            with self.journal.step(f"evaluate-{item.name}"):
                if item.name == ORIGINAL:
                    runner = program_runner(self.made.original)
                else:
                    runner = session_runner(item.content, self.request.threads)
                model = as_model(self.made.original, runner)
                self.metrics[item.name] = evaluate_model(evaluate, model, f"the {item.name} model")
        return self.metrics[item.name]

    def _fault(self, item: Candidate) -> str | None:
        """Prove a variant; a proof that fails is a reason not to take it, unless nothing else was asked
        for.
        """
        variant = self.made.variant(item.name)
        if variant is None:
            return None
        try:
            with self.journal.step(f"prove-{item.name}"):
                self.proofs.append(prove_variant(self.made, item, variant, self.request.target))
        except ProofError as error:
            if self.forced:
                raise
            return f"its proof failed: {error.message}"
        return None
