"""An exponential moving average of the trained weights, which is validated, saved and answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Averaging:
    """The average of the weights that a phase trains, after every optimiser step.

    Only parameters are averaged. Buffers and what a model derives stay those of the model itself, so that there is one
    model, whatever it holds besides its weights.

    Args:
        model: in the phase that is trained.
        decay: weight of the earlier average at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.weights = nn.ParameterList([p for p in model.parameters() if p.requires_grad])
        self.averaged = AveragedModel(self.weights, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def update(self) -> None:
        """Take in the present weights; the first call copies them."""
        self.averaged.update_parameters(self.weights)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights of the model by their average, if there is one."""
        if self.averaged.n_averaged:
            for weight, average in zip(self.weights, self.averaged.module.parameters(), strict=True):
                weight.copy_(average)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context, the model has the average as its weights, and the average those of the model."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Exchange weights and average, if there is one, without a copy."""
        if self.averaged.n_averaged:
            for weight, average in zip(self.weights, self.averaged.module.parameters(), strict=True):
                weight.data, average.data = average.data, weight.data

    def state(self) -> dict[str, Tensor]:
        """The tensors that `restore` takes."""
        return self.averaged.state_dict()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue with a saved average."""
        self.averaged.load_state_dict(state)
