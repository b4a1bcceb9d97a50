"""Scales move from a norm into its linears, bit for bit the same function, and nowhere else."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fxcompress.graph.capture import capture
from fxcompress.graph.wellformed import well_formed
from fxcompress.passes.migrate_scales import MigrateScales
from tests.passes.models import Apply, Chain, assert_same_function


def outliers(norm: nn.Module, *readers: nn.Linear) -> None:
    """Two channels a hundred times as wide as the others, read by weights that are as much smaller."""
    with torch.no_grad():
        norm.weight[:2] *= 100.0
        if getattr(norm, "bias", None) is not None:
            norm.bias += torch.randn(norm.bias.shape)
        for reader in readers:
            reader.weight[:, :2] /= 100.0


class Block(nn.Module):
    """A transformer's attention inputs: one norm, three linears."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        outliers(self.norm, self.q, self.k, self.v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))


def test_queries_keys_and_values_share_one_set_of_scales_and_no_bit_changes():
    torch.manual_seed(0)
    example = torch.randn(4, 6, 16)
    program = capture(Block().eval(), (example,))
    outcome = MigrateScales([example]).run(program)
    well_formed(outcome.program)
    (line,) = outcome.changed
    assert line.startswith("layer_norm with linear, linear_1, linear_2: scales ")
    assert str(program.graph) == str(outcome.program.graph)
    with torch.no_grad():
        assert torch.equal(program(example * 7), outcome.program(example * 7))
    assert_same_function(program.to(torch.float64), outcome.program.to(torch.float64))
    assert outcome.program.module.get_submodule("norm").weight.abs().max() < 50


def test_an_rms_norm_migrates_too():
    torch.manual_seed(0)
    model = Chain(n=nn.RMSNorm(16), l=nn.Linear(16, 8))
    outliers(model.n, model.l)
    example = torch.randn(32, 16)
    program = capture(model.eval(), (example,))
    outcome = MigrateScales([example]).run(program)
    assert outcome.changed
    assert torch.equal(program(example), outcome.program(example))


def reason(model: nn.Module, shape: tuple[int, ...] = (8, 16)) -> str:
    example = torch.randn(shape)
    program = capture(model.eval(), (example,))
    outcome = MigrateScales([example]).run(program)
    assert outcome.program is program
    (item,) = outcome.declined
    return item.reason


def test_never_through_a_nonlinear_function_a_sum_or_an_output():
    torch.manual_seed(0)

    def net(between: nn.Module) -> nn.Module:
        model = Chain(n=nn.LayerNorm(16), f=between, l=nn.Linear(16, 8))
        outliers(model.n, model.l)
        return model

    assert "gelu" in reason(net(nn.GELU()))
    assert "output" in reason(Chain(n=nn.LayerNorm(16)))
    post = Apply(lambda m, x: m.l(m.n(x)) + m.n(x), n=nn.LayerNorm(16), l=nn.Linear(16, 16))
    assert post.n.weight is not None
    both = Apply(_after_the_norm, n=nn.LayerNorm(16), l=nn.Linear(16, 16))
    assert "add" in reason(both)
    assert "no weight" in reason(Chain(n=nn.LayerNorm(16, elementwise_affine=False), l=nn.Linear(16, 8)))
    assert "less noisy" in reason(Chain(n=nn.LayerNorm(16, bias=False), l=_plain()))


def _after_the_norm(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = m.n(x)
    return m.l(y) + y


def _plain() -> nn.Linear:
    layer = nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.sign())
    return layer
