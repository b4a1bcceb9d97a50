"""Which residual blocks go: the least influential first, until the budget is met."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

from fxcompress.analysis.cost import Cost
from fxcompress.analysis.depth_price import depth_price
from fxcompress.analysis.influence import MEASURES
from fxcompress.analysis.residual import Block, residual_blocks, terms
from fxcompress.errors import BudgetError, InputError
from fxcompress.graph import walk
from fxcompress.graph.program import Program

COUNTED = ("macs", "params")


@dataclass(frozen=True)
class Depth:
    """How much depth to remove, and by which measure.

    Args:
        ratio: the share of the cost to remove, between 0 and 1 (exclusive). Blocks are coarse: at least this
            much goes, and no block more than that takes.
        of: the cost that is counted, `"macs"` or `"params"`.
        influence: `"output"` or `"cosine"`, see `analysis.influence`.
        protect: patterns (`fnmatch`) of modules' qualified names whose blocks stay.
    """

    ratio: float = 0.25
    of: str = "macs"
    influence: str = "output"
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, Real) and 0 < self.ratio < 1):
            raise InputError(
                f"ratio={self.ratio!r} is not a share between 0 and 1", hint="0.25 removes a quarter"
            )
        if self.of not in COUNTED:
            raise InputError(f"of={self.of!r} is not a cost", hint=f"counted are {', '.join(COUNTED)}")
        if self.influence not in MEASURES:
            raise InputError(
                f"influence={self.influence!r} is no measure", hint=f"built: {', '.join(MEASURES)}"
            )


@dataclass(frozen=True)
class DepthPlan:
    """Which blocks go.

    Args:
        removed: by name of the addition, the position of the identity `x` that stays, in graph order.
        influence: by name of the addition, what was measured, for every block.
        modules: by name of the addition, the qualified name of the module that adds.
        protected: by name of the addition, why a block was left.
        before, after: exact costs.
    """

    removed: Mapping[str, int]
    influence: Mapping[str, float]
    modules: Mapping[str, str]
    protected: Mapping[str, str]
    before: Cost
    after: Cost

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {
            "removed": dict(self.removed),
            "influence": dict(self.influence),
            "modules": dict(self.modules),
            "protected": dict(self.protected),
            "before": vars(self.before),
            "after": vars(self.after),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises InputError for other data."""
        try:
            return cls(
                removed={name: int(place) for name, place in data["removed"].items()},
                influence={name: float(value) for name, value in data["influence"].items()},
                modules=dict(data["modules"]),
                protected=dict(data["protected"]),
                before=Cost(**data["before"]),
                after=Cost(**data["after"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is not a depth plan: {type(error).__name__}: {error}",
                hint="pass what `DepthPlan.to_dict` returned",
            ) from error

    def __str__(self) -> str:
        lines = [
            f"{self.before.macs / 1e6:.1f} -> {self.after.macs / 1e6:.1f} MMACs, {self.before.params} -> "
            f"{self.after.params} parameters"
        ]
        for name, value in self.influence.items():
            fate = "removed" if name in self.removed else self.protected.get(name, "stays")
            lines.append(f"  {name} ({self.modules[name] or 'the model'}): influence {value:.3g}, {fate}")
        return "\n".join(lines)


def plan_depth(program: Program, options: Depth, influence: Mapping[str, float]) -> DepthPlan:
    """Choose blocks so that at most `1 - options.ratio` of the cost remains.

    Blocks go in order of rising influence. Then those that turn out not to be needed for the budget come
    back, the most influential first.

    Args:
        program: the program whose blocks were measured.
        options: how much, of what, and what is protected.
        influence: by block name, as `analysis.influence` measures it.

    Raises:
        InputError: the program has no residual block, one was not measured, or a pattern matches none.
        BudgetError: all blocks that may go do not save enough; the message states what they save.
    """
    blocks = _blocks(program, influence)
    price = depth_price(program)
    protected = _protected(blocks, options.protect)
    protected |= _kept_for_outputs(program, blocks, influence, protected)
    free = sorted((item for item in blocks if item.name not in protected), key=lambda b: influence[b.name])

    def left(names: Iterable[Block]) -> float:
        return float(getattr(price.without({item.name: item.identity for item in names}), options.of))

    full = left(())
    if left(free) > full * (1 - options.ratio):
        share = 1 - left(free) / full
        raise BudgetError(
            f"the {len(free)} blocks that may go hold {share:.1%} of the {options.of}; {options.ratio:.1%} "
            "was asked for",
            hint=f"ask for at most {int(share * 1000) / 1000}, unprotect blocks, or remove channels as well",
        )
    chosen = _fewest(free, lambda items: left(items) <= full * (1 - options.ratio))
    removed = {item.name: item.identity for item in blocks if item in chosen}
    return DepthPlan(
        removed=removed,
        influence={item.name: influence[item.name] for item in blocks},
        modules={item.name: item.module for item in blocks},
        protected=protected,
        before=price.without({}),
        after=price.without(removed),
    )


def _blocks(program: Program, influence: Mapping[str, float]) -> tuple[Block, ...]:
    blocks, declined = residual_blocks(program)
    if not blocks:
        why = "; ".join(f"{item.name}: {item.reason}" for item in declined[:3])
        raise InputError(
            "the model has no residual block that could be left out" + (f" ({why})" if why else ""),
            hint="remove channels instead: optimize(model, prune=...)",
        )
    missing = [item.name for item in blocks if item.name not in influence]
    if missing:
        raise InputError(
            f"the influence of {', '.join(missing[:3])} was not measured",
            hint="pass influence(program, residual_blocks(program)[0], batches)",
        )
    return blocks


def _protected(blocks: tuple[Block, ...], protect: tuple[str, ...]) -> dict[str, str]:
    """By block name, why it stays."""
    reasons: dict[str, str] = {}
    for pattern in protect:
        matched = [item for item in blocks if fnmatch.fnmatchcase(item.module, pattern)]
        if not matched:
            raise InputError(
                f"the pattern {pattern!r} of protected modules matches no residual block",
                hint=f"blocks are in modules like {blocks[0].module!r}",
            )
        reasons.update((item.name, f"protected by pattern {pattern!r}") for item in matched)
    return reasons


def _kept_for_outputs(
    program: Program, blocks: tuple[Block, ...], influence: Mapping[str, float], protected: Mapping[str, str]
) -> dict[str, str]:
    """By block name, why it stays: with all blocks on the way gone, an output would be an input, or another
    output.
    """
    by_name = {item.name: item for item in blocks}
    outputs = set(walk.output_values(program))
    reasons: dict[str, str] = {}
    for node in outputs:
        way: list[Block] = []
        while node.name in by_name and (not way or node not in outputs):
            way.append(by_name[node.name])
            node = terms(node)[way[-1].identity]
        if (
            way
            and (node.op == "placeholder" or node in outputs)
            and not any(b.name in protected for b in way)
        ):
            last = max(way, key=lambda item: influence[item.name])
            reasons[last.name] = (
                "without any block, an output of the model would be an input or another output"
            )
    return reasons


def _fewest(order: Sequence[Block], enough: Callable[[list[Block]], bool]) -> list[Block]:
    """The first blocks of `order` that are enough, without those that are not needed for it."""
    count = next(count for count in range(1, len(order) + 1) if enough(list(order[:count])))
    chosen = list(order[:count])
    for item in reversed(order[:count]):
        fewer = [other for other in chosen if other is not item]
        if enough(fewer):
            chosen = fewer
    return chosen
