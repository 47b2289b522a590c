"""Other ways to minimise the objective, each one thing away from the shipped one: what `lawf bench objective --levers` compares it with."""

from __future__ import annotations

from typing import Any

import torch

from lawf_repl.learn.basis import Moments
from lawf_repl.learn.basis import aim as aimed
from lawf_repl.learn.solve import Solver
from lawf_repl.learn.standing import Reading
from lawf_repl.learn.train import Loop


class Stepper(Solver[Reading]):
    """Adam in place of L-BFGS: one evaluation and one step of a fixed size an iteration (Kingma and Ba, arXiv 1412.6980)."""

    def __init__(self, parameters: Any, evaluate: Any, step_size: float) -> None:
        super().__init__(parameters, evaluate)
        self._adam = torch.optim.Adam(self._parameters, lr=step_size)

    def step(self) -> tuple[float, Reading]:
        """One iteration; where it ends as `here`."""
        self.here()
        self._adam.step()
        self._known = []
        return self.here()


class _Adam(Loop):
    iterations = 120
    step_size = 0.0

    def solver(self) -> Solver[Reading]:
        return Stepper(self.trained, self._evaluate, self.step_size)


class Adam1e3(_Adam):
    """Steps of 0.001, in the units of B: a relative change of a layer's output on other prompts. Those of 0.003 and more diverge."""

    step_size = 1e-3


class Adam3e4(_Adam):
    """Steps of 0.0003."""

    step_size = 3e-4


class Adam1e4(_Adam):
    """Steps of 0.0001."""

    step_size = 1e-4


class RandomDirections(Loop):
    """A as peft draws it, B alone trained."""

    def aim(self) -> None:
        _into_units(self)


class PlainDirections(Loop):
    """A from the anchors' gradient, not whitened by what other prompts use."""

    def aim(self) -> None:
        aimed(self.adapter, Moments(self.adapter, 1, self.settings.seed), self._anchor_loss, self.settings.seed)
        _into_units(self)


def _into_units(loop: Loop) -> None:
    """Scale every row of A as the shipped ones are, so that the pull means the same: of unit effect on the replay prompts, relative to the output."""
    moments = loop.prepared.moments
    loop.adapter.set_directions({path: rows / moments.spread(path, rows).clamp_min(1e-6)[:, None] * moments.size(path)
                                 for path, rows in loop.adapter.directions().items()})


class Weighted4(Loop):
    """An anchor weighs 4 times what another token does."""

    weight = 4.0

    def anchor_losses(self, logprobs: torch.Tensor) -> torch.Tensor:
        return self.weight * super().anchor_losses(logprobs)


class Weighted16(Weighted4):
    """16 times."""

    weight = 16.0


class CrossEntropy(Loop):
    """Cross-entropy at the anchors, as the method's formula has it, without a goal at which it ends."""

    def anchor_losses(self, logprobs: torch.Tensor) -> torch.Tensor:
        target = self.prepared.target
        return -logprobs[target.anchors, target.chosen]


class Proportions(Loop):
    """The other tokens at an anchor keep the base's proportions: KL of both distributions without the chosen token, renormalised."""

    def anchor_losses(self, logprobs: torch.Tensor) -> torch.Tensor:
        target = self.prepared.target
        rest = torch.ones(len(target.anchors), logprobs.shape[1], dtype=torch.bool, device=logprobs.device)
        rest = rest.scatter(1, target.chosen[:, None], False)
        base, own = (values[target.anchors].masked_fill(~rest, -1e4).log_softmax(-1) for values in (target.ref_logprobs, logprobs))
        return super().anchor_losses(logprobs) + torch.nn.functional.kl_div(own, base, reduction="none", log_target=True).sum(-1)


class Averaged(Loop):
    """The mean of all weights that held, in place of the last."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sum: list[torch.Tensor] = []
        self._count = 0

    def _keep(self, reading: Reading) -> None:
        super()._keep(reading)
        if reading.holds:
            now = [parameter.detach().clone() for parameter in self.trained]
            self._sum, self._count = [a + b for a, b in zip(self._sum, now, strict=True)] if self._sum else now, self._count + 1
            if self.best:
                weights = dict(self.best[1])
                mean = iter(total / self._count for total in self._sum)
                names = [name for name in weights if "lora_B" in name]
                if len(names) == len(self._sum):
                    self.best = (self.best[0], weights | dict(zip(names, mean, strict=True)))


class HoldAll(Loop):
    """Sixty-four answers of the pool drawn at random are held from the start, in place of those that move."""

    def run(self, stop: Any) -> Any:
        order = torch.randperm(len(self.prepared.pool.pairs), generator=torch.Generator().manual_seed(self.settings.seed))[:64].tolist()
        self.hold([self.prepared.pool.pairs[i] for i in order])
        return (yield from super().run(stop))
