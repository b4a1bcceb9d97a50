"""Saliency of channels, gathered over all that a group touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxcompress.analysis.evidence import Evidence, gather, needs_of
from fxcompress.analysis.groups import Analysis, analyse
from fxcompress.analysis.reading import slice_energy
from fxcompress.analysis.saliency import score, unspoken
from fxcompress.errors import InputError
from fxcompress.graph.capture import capture
from fxcompress.numerics.saliency import DATA_KINDS, KINDS, NAMED, NORMALIZATIONS, REDUCTIONS, Saliency
from fxcompress.ops.feeding import fed
from tests.architectures.catalog import by_name
from tests.ops.building import Net, aten


def l2_of(analysis: Analysis) -> dict[str, np.ndarray]:
    return score(analysis, Saliency("l2"))


def test_all_weights_of_an_index_count() -> None:
    """Rows, bias, columns; of a product only the positions that go with the index."""
    net = Net(dynamic=False)
    x = net(aten.reshape.default, net.features(width=6), [2, 2, 3])
    x = net(aten.reshape.default, net(aten.tanh.default, x), [2, 6])
    program = net.program(net(aten.linear.default, x, net.parameter(4, 6)))
    weights = {name: tensor.detach().double().numpy() for name, tensor in program.module.named_parameters()}
    expected = (weights["p0"] ** 2).sum(1) + weights["p1"] ** 2 + (weights["p2"] ** 2).sum(0)
    scores = l2_of(analyse(program))
    for name, rows in (
        ("p0[0]:0", expected.reshape(2, 3).sum(1)),
        ("p0[0]:1", expected.reshape(2, 3).sum(0)),
    ):
        norms = np.sqrt(rows)
        assert np.allclose(scores[name], norms / norms.mean(), rtol=1e-12)


def test_running_statistics_do_not_count() -> None:
    def scores(mean: float) -> np.ndarray:
        net = Net(dynamic=False)
        buffers = [net.buffer(torch.full((6,), mean)), net.buffer(torch.ones(6))]
        args = net.parameter(6), net.parameter(6), *buffers, False, 0.1, 1e-5, True
        y = net(aten.batch_norm.default, net.channels(6, 4), *args)
        (found,) = l2_of(analyse(net.program(net.read(y)))).values()
        return found

    assert np.array_equal(scores(0.0), scores(100.0))


def test_low_precision_weights_are_ranked_in_double() -> None:
    net = Net(dynamic=False)
    program = net.program(net.read(net.channels(4)))
    for name, parameter in program.module.named_parameters():
        setattr(program.module, name, nn.Parameter((torch.ones_like(parameter) * 1e-3).to(torch.bfloat16)))
    (scores,) = l2_of(analyse(program)).values()
    assert scores.dtype == np.float64
    assert np.allclose(scores, 1.0)


WIDTHS = 8, 6


def chain(order: list[int] | None = None, zeros: tuple[int, ...] = ()) -> Analysis:
    """Two prunable layers with a batch norm each; the first layer's channels in another order, or some of
    them switched off in every weight that touches them.
    """
    net = Net(dynamic=False)
    generator = torch.Generator().manual_seed(3)
    x, last = net.input(3), 3
    places = torch.arange(WIDTHS[0]) if order is None else torch.tensor(order)
    for layer, width in enumerate(WIDTHS):
        drawn = [torch.randn(width, last, generator=generator), torch.randn(width, generator=generator)]
        drawn += [torch.rand(width, generator=generator) + 0.5, torch.randn(width, generator=generator)]
        if layer == 0:
            drawn = [tensor[places].clone() for tensor in drawn]
            for tensor in drawn:
                tensor[list(zeros)] = 0.0
        else:
            drawn[0] = drawn[0][:, places].clone()
            drawn[0][:, list(zeros)] = 0.0
        weight, bias, scale, shift = (net.parameter(value=tensor) for tensor in drawn)
        x = net(aten.linear.default, x, weight, bias)
        mean, variance = net.buffer(torch.zeros(width)), net.buffer(torch.ones(width))
        x = net(aten.batch_norm.default, x, scale, shift, mean, variance, False, 0.1, 1e-5, True)
        x, last = net(aten.tanh.default, x), width
    weight = net.parameter(value=torch.randn(4, last, generator=generator))
    return analyse(net.program(net(aten.linear.default, x, weight)))


def measured(analysis: Analysis, saliency: Saliency) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(5)
    data = [
        (torch.randn(2, 3, generator=generator), torch.randint(4, (2,), generator=generator))
        for _ in range(6)
    ]
    needs = needs_of(saliency)
    return score(analysis, saliency, gather(analysis.program, data, needs) if needs else None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "random"])
def test_scores_follow_channels_that_change_places(kind: str) -> None:
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    before, after = (measured(analysis, Saliency(kind)) for analysis in (chain(), chain(order)))
    assert np.allclose(after["p0[0]"], before["p0[0]"][order], rtol=1e-3, atol=1e-9)
    other = next(name for name in before if name != "p0[0]")
    assert np.allclose(after[other], before[other], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("random", "geometric_median")])
def test_channels_that_are_off_are_least_salient(kind: str, reduce: str) -> None:
    """Zero in every weight: whatever is measured, they go first. (Distances between filters and draws say
    nothing about zeros.)
    """
    zeros = (1, 4, 6)
    scores = measured(chain(zeros=zeros), Saliency(kind, reduce))["p0[0]"]
    assert set(np.argsort(scores, kind="stable")[:3]) == set(zeros)
    assert scores[list(zeros)].max() <= 1e-6
    assert np.delete(scores, zeros).min() > 1e-6


def test_a_filter_near_all_others_goes_before_one_far_away() -> None:
    """The geometric median: what others replace is not what is small."""
    net = Net(dynamic=False)
    rows = torch.tensor([[1.0, 0.0], [1.1, 0.0], [1.0, 0.1], [0.0, 0.0]])
    x = net(aten.linear.default, net.input(2), net.parameter(value=rows))
    y = net(aten.linear.default, net(aten.tanh.default, x), net.parameter(value=torch.ones(3, 4)))
    (scores,) = score(analyse(net.program(y)), Saliency("geometric_median")).values()
    assert np.argmax(scores) == 3
    assert scores[0] == scores.min()


TOKENS, CHANNELS = 2, 4


def shrunk() -> Analysis:
    """`p2 @ hardshrink(p0 @ x + p1)`, token by token: what is read has values of both signs and zeros."""
    net = Net(dynamic=False, batch=3)
    x = net(aten.hardshrink.default, net.features(TOKENS, width=CHANNELS))
    return analyse(net.program(net(aten.linear.default, x, net.parameter(5, CHANNELS))))


def by_hand(analysis: Analysis, data: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    """By kind, the formulas of the papers on `shrunk`: per member or activation a number for each channel."""
    named = dict(analysis.program.module.named_parameters())
    weights = [named[name].detach().double().requires_grad_() for name in ("p0", "p1", "p2")]
    first, bias, second = weights
    seen, gates, squares = [], [], []
    for x, label in data:
        read = functional.hardshrink(x.double() @ first.T + bias)
        loss = functional.cross_entropy((read @ second.T).movedim(2, 1), label, reduction="sum")
        gradient, *gradients = torch.autograd.grad(loss, [read, *weights])
        seen.append(read.detach().flatten(0, 1))
        gates.append((gradient * read).detach().sum(1))
        squares.append([part**2 / len(x) for part in gradients])
    read, gate = torch.cat(seen), torch.cat(gates)
    members = [first.detach(), bias.detach()[:, None], second.detach().T]
    fisher = [sum(parts) / len(data) for parts in zip(*squares, strict=True)]
    fisher = [fisher[0], fisher[1][:, None], fisher[2].T]
    return {
        "l1": [rows.abs().sum(1) for rows in members],
        "geometric_median": [torch.cdist(rows, rows).sum(1) for rows in members],
        "obd": [(square * rows**2).sum(1) for square, rows in zip(fisher, members, strict=True)],
        "taylor": [gate.abs().mean(0)],
        "fisher": [(gate**2).mean(0)],
        "activation": [read.abs().mean(0)],
        "variance": [read.var(0, correction=0)],
        "apoz": [(read != 0).double().mean(0)],
        "reconstruction": [(read**2).mean(0) * (second.detach() ** 2).sum(0)],
    }


REDUCED = {
    "sum": lambda rows: rows.sum(0),
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.amax(0),
    "product": lambda rows: rows.prod(0) ** (1 / len(rows)),
}


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("l2", "batch_norm", "random", "elimination")]
)
def test_scores_are_what_the_papers_define(kind: str, reduce: str) -> None:
    """A gate's gradients are added over a sample's tokens before their size is taken; batches count alike."""
    analysis = shrunk()
    generator = torch.Generator().manual_seed(5)
    data = [
        (torch.randn(3, TOKENS, 3, generator=generator), torch.randint(5, (3, TOKENS), generator=generator))
        for _ in range(4)
    ]
    saliency = Saliency(kind, reduce, "none")
    (found,) = score(analysis, saliency, gather(analysis.program, data, needs_of(saliency))).values()
    expected = REDUCED[reduce](torch.stack(by_hand(analysis, data)[kind]))
    assert np.allclose(found, expected.numpy(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_normalizations_keep_the_order_within_a_group(reduce: str, normalize: str) -> None:
    """No two channels become equal, and none falls below zero, deviations from a mean included."""
    plain, found = (measured(chain(), Saliency("obd", reduce, how)) for how in ("none", normalize))
    for name, scores in found.items():
        assert np.array_equal(np.argsort(scores), np.argsort(plain[name]))
        assert len(np.unique(scores)) == len(scores)
    assert min(scores.min() for scores in found.values()) >= 0


def test_what_says_nothing_about_a_group_leaves_it_to_l2() -> None:
    net = Net(dynamic=False)
    y = net(aten.linear.default, net(aten.tanh.default, net.channels(6)), net.parameter(5, 6))
    x = net(aten.linear.default, net(aten.tanh.default, y), net.parameter(4, 5))
    scale = net.parameter(value=torch.tensor([3.0, 1.0, 2.0, 5.0]))
    buffers = [net.buffer(torch.zeros(4)), net.buffer(torch.ones(4))]
    x = net(aten.batch_norm.default, x, scale, net.parameter(4), *buffers, False, 0.1, 1e-5, True)
    analysis = analyse(net.program(net.read(x)))
    saliency = Saliency("batch_norm", normalize="none")
    found, plain = score(analysis, saliency), l2_of(analysis)
    names = unspoken(analysis, saliency)
    assert [analysis.group(name).size for name in names] == [6, 5]
    (normed,) = (name for name in found if name not in names)
    assert np.array_equal(found[normed], [3.0, 1.0, 2.0, 5.0])
    for name in names:
        assert np.allclose(found[name], 2.75 * plain[name])


def test_positions_of_a_grouped_convolution_meet_their_own_weights() -> None:
    """`[G * O, I]` is read as `[O, G * I]`: loops over groups, inputs and outputs."""
    net = Net(dynamic=False)
    x = net.channels(6, 4)
    y = net(aten.conv1d.default, x, net.parameter(9, 2, 2), None, [1], [0], [1], 3)
    program = net.program(net.read(y))
    weight = dict(program.module.named_parameters())["p2"].detach().double().numpy()
    grouped = next(node for node in program.graph.nodes if len(node.args) == 7)
    (feed,) = fed(grouped)
    energy = slice_energy(program, feed, 6, Evidence(0))
    expected = [(weight[3 * g : 3 * g + 3, i] ** 2).sum() for g in range(3) for i in range(2)]
    assert np.allclose(energy, expected)


def test_data_saliencies_need_data() -> None:
    for kind in DATA_KINDS:
        with pytest.raises(InputError, match="there is none") as caught:
            score(chain(), Saliency(kind))
        assert "calibration=" in str(caught.value.hint)


def test_draws_follow_their_seed() -> None:
    first, again, other = (score(chain(), Saliency("random", seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("name", ["hf_llama", "resnext", "vit_packed"])
def test_every_kind_ranks_every_group(name: str) -> None:
    """Products, concatenations, grouped convolutions and grouped queries; nothing is left to L2 by data."""
    architecture = by_name(name)
    shapes = architecture.dynamic_shapes
    analysis = analyse(capture(architecture.model(), architecture.example(), dynamic_shapes=shapes))
    data = [architecture.example(4, seed=seed) for seed in (1, 2)]
    needs = frozenset(need for saliency in NAMED.values() for need in needs_of(saliency))
    evidence = gather(analysis.program, data, needs)
    for saliency in NAMED.values():
        scores = score(analysis, saliency, evidence)
        assert {group.name: (group.size,) for group in analysis.groups} == {
            name: found.shape for name, found in scores.items()
        }
        assert all(np.isfinite(found).all() for found in scores.values())
        if saliency.kind in DATA_KINDS:
            assert unspoken(analysis, saliency) == ()


def test_scores_per_multiply_accumulate() -> None:
    """Of 96 products an index of the first group takes part in 3 + 6, one of the second in 8 + 4."""
    plain, divided = (score(chain(), Saliency("l2", normalize=how)) for how in ("none", "macs"))
    first, second = plain
    assert np.allclose(divided[first], plain[first] / (9 / 96))
    assert np.allclose(divided[second], plain[second] / (12 / 96))
