"""The directions an adapter may use: those in which the anchors want to move and other prompts hardly ever go.

A LoRA's change is dW = s B A: it acts on an input x through A x alone. With C = E[x x^T] over the replay prompts, its mean
squared effect there is s^2 tr(B A C A^T B^T). The rows of A are the top right singular vectors of G C^(-1/2), G = the
anchors' gradient for W, times C^(-1/2): of all directions of unit effect on the replay prompts (A C A^T = I) those that
lower the anchors' loss most. Only B is trained then, and |B|^2 is that effect. (Compare the context-oriented
initialisations of CorDA, arXiv 2406.05223, and null-space editing of AlphaEdit, arXiv 2410.02355.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lawf_repl.engine.memory import beside_weights
from lawf_repl.learn.adapter import Adapter

SAMPLES = 1024    # input vectors kept of each layer at most,
SHARE = 0.2       # and no more than take this share of the weights in all
RIDGE = 0.01      # of C's mean eigenvalue, added to all: what the samples never showed is not free either
EXACT = 128       # tokens up to which the decomposition is exact,
EXTRA = 8         # directions beyond the rank that the randomised one works with otherwise
SLIGHT = 1e-6     # of the mean square of the anchors' inputs, in units of C, added to all: two of them may be the same


class Moments:
    """Inputs of an adapter's layers while the base reads the replay prompts."""

    def __init__(self, adapter: Adapter, tokens: int, seed: int = 0) -> None:
        """`tokens` is how many will be read in all."""
        self._layers = adapter.layers()
        self._share = min(1.0, samples(adapter) / max(tokens, 1))
        self._draw = torch.Generator().manual_seed(seed)
        self._source: dict[str, str] = {}                  # the layer whose inputs a layer shares: q, k and v see the same ones
        self._inputs: dict[str, list[torch.Tensor]] = {}
        self._output: dict[str, tuple[float, int]] = {}    # sum of squared outputs, rows
        self._latest: tuple[str, Callable[[torch.Tensor], torch.Tensor]] | None = None  # the inverse of one layer's moments

    def draw(self, mask: torch.Tensor) -> torch.Tensor:
        """Which rows (B T,) of a batch with this mask (B, T) are looked at."""
        real = mask.reshape(-1).bool()
        return real & (torch.rand(len(real), generator=self._draw) < self._share).to(real.device)

    def add(self, sample: Sample) -> None:
        """What a forward of the base has shown."""
        for path, source in sample.source.items():
            self._source.setdefault(path, source)
        for path, rows in sample.inputs.items():
            if self._source[path] == path:
                self._inputs.setdefault(path, []).append(rows)
        for path, (more, seen) in sample.output.items():
            total, count = self._output.get(path, (0.0, 0))
            self._output[path] = total + more, count + seen

    def sample(self, rows: torch.Tensor) -> Sample:
        """Where the forward of a batch can be noted, of which these `rows` (n,), True or False, are looked at."""
        return Sample(rows, self._layers)

    @contextmanager
    def reading(self, mask: torch.Tensor) -> Iterator[None]:
        """Inside, one forward over a batch with this mask (B, T) is watched."""
        sample = self.sample(self.draw(mask))
        with sample.watching():
            yield
        self.add(sample)

    def size(self, path: str) -> float:
        """Root mean square length of a layer's output, 1 where nothing was seen."""
        total, count = self._output.get(path, (0.0, 0))
        return (total / count) ** 0.5 if total > 0 else 1.0

    def spread(self, path: str, rows: torch.Tensor) -> torch.Tensor:
        """Root mean square of each row's product (n,) with the layer's inputs, from rows (n, d); before anything was whitened."""
        inputs = torch.cat(self._inputs[self._source.get(path, path)]).float()
        return (inputs @ rows.T).square().mean(0).sqrt()

    def forget(self) -> None:
        """Let go of the inputs and of what was made of them, once the directions are known."""
        self._inputs, self._latest = {}, None

    def solve(self, path: str, rows: torch.Tensor) -> torch.Tensor:
        """`rows` (n, d) times C^(-1) of the layer's inputs; unchanged where none were seen."""
        source = self._source.get(path, path)
        if source not in self._inputs:
            return rows
        if self._latest is None or self._latest[0] != source:  # layers of the same inputs come one behind the other: one inverse at a time
            self._latest = None
            self._latest = source, inverse(torch.cat(self._inputs[source]).float())
        return self._latest[1](rows)


class Sample:
    """What one forward showed of the layers: some of their inputs, and how large their outputs are."""

    def __init__(self, rows: torch.Tensor, layers: dict[str, Any]) -> None:
        """`rows` (n,) of the `layers`, by their names, are looked at."""
        self._rows, self._layers = rows, layers
        self._paths = {id(layer): path for path, layer in layers.items()}
        self._last: tuple[str, torch.Tensor] | None = None  # the latest layer with an input of its own: q, k and v come one behind the other
        self.source: dict[str, str] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        self.output: dict[str, tuple[float, int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, a forward is noted as it comes by."""
        handles = [layer.register_forward_hook(lambda module, inputs, output: self.see(module, inputs[0], output)) for layer in self._layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.close()

    def close(self) -> None:
        """The forward is over: let go of the last input, which is as large as a batch."""
        self._last = None

    def only(self, places: torch.Tensor) -> None:
        """From here on it is shown these of the rows alone."""
        self._rows = self._rows[places]

    def see(self, module: Any, x: torch.Tensor, output: torch.Tensor) -> None:
        """A layer's inputs (..., d) and outputs."""
        path = self._paths[id(module)]
        if self._last is None or self._last[1] is not x:
            self._last = path, x
        self.source[path] = source = self._last[0]
        rows = x.detach().reshape(-1, x.shape[-1])
        here = self._rows if len(rows) == len(self._rows) else torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        if source == path:
            self.inputs[path] = rows[here]
        flat = output.detach().reshape(len(rows), -1)[here].float()
        self.output[path] = float(flat.square().sum()), len(flat)


def samples(adapter: Adapter) -> int:
    """How many input vectors of each layer there is room for, at least one.

    Layers of one module with inputs of one width are counted as sharing them.
    """
    base = adapter.base
    widths = {(path.rpartition(".")[0], layer.in_features) for path, layer in adapter.layers().items()}
    each = sum(width for _, width in widths) * base.dtype.itemsize
    return max(1, min(SAMPLES, int(beside_weights(base, SHARE) / max(each, 1))))


def inverse(samples: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> x C^(-1), (n, d) to (n, d), with C = X^T X / N + ridge, from samples X (N, d); nothing is larger than (min(N, d))^2 or X."""
    count, width = samples.shape
    scale = samples / max(count, 1) ** 0.5
    ridge = RIDGE * max(float(scale.square().sum()) / width, 1e-12)
    few = count < width
    factor = factor_of(scale @ scale.T if few else scale.T @ scale, ridge)
    precise = factor.dtype

    def solve(x: torch.Tensor) -> torch.Tensor:
        rows, wide = x.to(precise), scale.to(precise) if few else scale
        solved: torch.Tensor = torch.cholesky_solve(wide @ rows.T if few else rows.T, factor).T
        # of few samples C^(-1) = (1 - S^T (ridge + S S^T)^(-1) S) / ridge (Woodbury 1950)
        return ((rows - solved @ wide) / ridge if few else solved).to(x.dtype)
    return solve


def factor_of(gram: torch.Tensor, ridge: float) -> torch.Tensor:
    """Cholesky's factor of a symmetric matrix with `ridge` on its diagonal; NaN where there is none.

    In double precision where the device has it: what is solved with it is a small difference.
    """
    precise: torch.Tensor = gram if gram.device.type == "mps" else gram.double()
    found = torch.linalg.cholesky_ex(precise + ridge * torch.eye(len(gram), dtype=precise.dtype, device=gram.device))
    factor: torch.Tensor = found.L
    return factor.masked_fill(found.info > 0, torch.nan)


def aim(adapter: Adapter, moments: Moments, loss: Callable[[], torch.Tensor], seed: int = 0) -> None:
    """Set every A from the gradient of `loss` at the base (B zero), by one forward and backward. Layers that it does not reach keep theirs.

    Rows are scaled by the size of the layer's output, so that an entry of B means the same relative change in every layer.
    """
    layers = adapter.layers()
    ranks = {path: len(rows) for path, rows in adapter.directions().items()}
    taken: dict[str, torch.Tensor] = {}

    def hook(path: str) -> Callable[..., torch.Tensor]:
        def watch(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            acting = adapter.reach.acting if adapter.reach is not None else None  # (B, T); elsewhere it can change nothing
            rows = slice(None) if acting is None else acting.reshape(-1)

            def gradient(x: torch.Tensor, delta: torch.Tensor) -> None:
                x, delta = (whole.reshape(-1, whole.shape[-1])[rows] for whole in (x, delta))
                found = directions(x, delta, moments, path, ranks[path], seed)
                if found is not None:
                    taken[path] = found * moments.size(path)
            seen: torch.Tensor = _Watched.apply(output, inputs[0].detach(), gradient)  # type: ignore[no-untyped-call]
            return seen
        return watch

    handles = [layer.register_forward_hook(hook(path)) for path, layer in layers.items()]
    try:
        loss().backward()
    finally:
        for handle in handles:
            handle.remove()
    adapter.set_directions(taken)


class _Watched(torch.autograd.Function):
    """A layer's output as it is; its gradient is shown to `see` together with the layer's input.

    The input is kept as everything is that a backward pass needs, so that a layer that is computed again does not keep it.
    """

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, x: torch.Tensor, see: Callable[[torch.Tensor, torch.Tensor], None]) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.see = see
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.see(ctx.saved_tensors[0], slopes[0])
        return slopes[0], None, None


def directions(x: torch.Tensor, delta: torch.Tensor, moments: Moments, path: str, rank: int, seed: int) -> torch.Tensor | None:
    """Rows of A (rank, d) from inputs (T, d) and gradients at the outputs (T, out); None where there is no gradient.

    Without a root of C, which takes a hundred times as long as to solve for a few rows: with X C^(-1) X^T = F F^T (T, T) the right singular
    vectors of G C^(-1/2) = delta^T X C^(-1/2) are those of delta^T F, turned, and A = V^T F^(-1) X C^(-1).
    """
    moved = delta.abs().sum(1) > 0
    x, delta = x[moved].float(), delta[moved].float()
    if not len(x):
        return None
    if len(x) > x.shape[1]:  # more rows than they have dimensions
        turn, x = torch.linalg.qr(x)
        delta = turn.T @ delta
    solved = moments.solve(path, x)  # (T, d)
    gram = solved @ x.T
    factor = factor_of((gram + gram.T) / 2, SLIGHT * max(float(gram.diagonal().mean()), 1e-12))
    # of delta^T the triangle of delta's QR is enough
    left = torch.linalg.qr(delta.T, mode="r").R if len(x) < delta.shape[1] else delta.T
    product = left @ factor.float()
    if not bool(torch.isfinite(product).all()):
        return None
    right = _right(product, rank, seed)  # (T, q)
    rows = torch.linalg.solve_triangular(factor.T, right[:, :rank].to(factor.dtype), upper=True).T.float() @ solved
    if not bool(torch.isfinite(rows).all()):
        return None
    return torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])])


def _right(matrix: torch.Tensor, rank: int, seed: int) -> torch.Tensor:
    """The first right singular vectors (T, rank at least, T at most) of a matrix (O, T): exact where T is small, which is ten times as fast too."""
    if matrix.shape[1] <= EXACT and matrix.device.type == "cpu":
        found: torch.Tensor = torch.linalg.eigh(matrix.double().T @ matrix.double()).eigenvectors
        return found.flip(1).float()
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        _, _, right = torch.svd_lowrank(matrix, q=min(rank + EXTRA, *matrix.shape), niter=4)
    return right


@torch.no_grad()
def penalty(parameters: Sequence[torch.Tensor], start: Sequence[torch.Tensor], weight: float) -> tuple[float, list[torch.Tensor]]:
    """`weight` times how far B moved from where it began, squared, and the gradients of that.

    It is the mean squared relative change on the replay prompts, summed over layers.
    """
    # As lists, in a few operations: there are dozens of small matrices.
    moved: list[torch.Tensor] = list(torch._foreach_sub(list(parameters), list(start)))
    length = torch.stack(torch._foreach_norm(moved)).square().sum()
    torch._foreach_mul_(moved, 2 * weight)
    return float(weight * length), moved
