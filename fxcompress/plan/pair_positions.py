"""Where the pair of a tensor stands, for targets that fuse more than ONNX Runtime does.

conv2d(max_pool(relu(y)))          the pair stands after relu: the runtime moves it through layout
conv2d(a) + x                      the convolution adds x to its accumulator: x alone has a pair
cat([a, b]) with one scale         a and b have the scale of the result
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping

from torch import fx

from fxcompress.graph import walk
from fxcompress.ops.quantization import Kind, activations, role
from fxcompress.targets.target import Target


def above_layout(source: fx.Node, readers: Collection[str]) -> list[fx.Node]:
    """Return the layout between a tensor that integers are read from and where its pair can stand.

    The last item reads the tensor with the pair. Layout that anything beside integer kernels (`readers`)
    or such layout reads ends the climb: its float readers keep what they had.
    """
    passed: list[fx.Node] = []
    while (row := role(source)) is not None and row.kind is Kind.LAYOUT and walk.is_tensor(source):
        if any(reader.name not in readers and reader not in passed for reader in source.users):
            break
        passed.append(source)
        source = activations(source, row)[0]
    return passed


def fused_operand(node: fx.Node, target: Target, contractions: Collection[str]) -> fx.Node | None:
    """Return the convolution that an addition becomes part of, None where there is none.

    It runs in integers, nothing else reads it, and the other operand has its sizes. Of two, the later: the
    earlier has been computed by then.
    """
    row = role(node)
    if not target.fuses_addition or row is None or row.kind is not Kind.ADD:
        return None
    sources = activations(node, row)
    if len(sources) != 2 or walk.hint_shape(sources[0]) != walk.hint_shape(sources[1]):
        return None
    fitting = [source for source in sources if _is_convolution(source, contractions)]
    return max(fitting) if fitting else None


def _is_convolution(node: fx.Node, contractions: Collection[str]) -> bool:
    row = role(node)
    convolutional = row is not None and row.kind in (Kind.CONVOLUTION, Kind.TRANSPOSED)
    return convolutional and node.name in contractions and len(node.users) == 1


def share_scale(
    root: MutableMapping[fx.Node, fx.Node],
    covered: MutableMapping[fx.Node, set[fx.Node]],
    sources: Collection[fx.Node],
    made: fx.Node,
) -> None:
    """Give the sources, and all that has their scale, the scale of what is made of them.

    `covered` holds, by owner of a scale, the owners that it took over: its range must cover theirs too. What
    is made does not cover them by itself: of two concatenations that share an operand, the second knows
    nothing of the first one's other operands, and a mean lies inside the range of what it is taken of.
    """
    owner = root.setdefault(made, made)
    old = {root[source] for source in sources} - {owner}
    for tensor, former in root.items():
        if former in old:
            root[tensor] = owner
    covered[owner] = covered.pop(owner, set()).union(old, *(covered.pop(former, set()) for former in old))
