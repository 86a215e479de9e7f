"""Samplers of the timesteps of a training batch, with the weights that keep its loss unbiased.

A sampler is a module with its state in buffers, so a model that holds one saves and moves it.
"""

from __future__ import annotations

import inspect

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from rediffuse.diffusion.noise import NO_FLOAT64
from rediffuse.diffusion.schedule import check_steps
from rediffuse.errors import ConfigError, did_you_mean, refuse_unknown


class UniformSampler(nn.Module):
    """All timesteps with the same probability; the base of the other samplers.

    Args:
        steps: T.
    """

    anchor: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        check_steps("Timestep sampler", steps)
        self.steps = steps
        # Only to know the device that the model was moved to.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def weights(self) -> Tensor:
        """(T,) positive numbers; the probabilities are proportional to them."""
        return torch.ones(self.steps, dtype=_wide(self.anchor.device), device=self.anchor.device)

    def probabilities(self) -> Tensor:
        """(T,) p_t, which sum to 1; float64, except where the device has none."""
        weights = self.weights()
        return weights / weights.sum()

    @torch.no_grad()
    def sample(
        self, batch: int, generator: Generator | None = None, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw timesteps.

        Args:
            batch: B, the number of timesteps.
            generator: source of randomness; the draw happens on its device.
            device: device of the result; by default that of the sampler.

        Returns:
            The timesteps (B,) int64, and their weights (B,) 1 / (T p_t) in torch's default dtype: the mean of weight *
            loss estimates the mean of the loss over uniform timesteps.

        Raises:
            ConfigError: ``batch`` is below 1.
        """
        if batch < 1:
            raise ConfigError(f"Cannot draw {batch} timesteps.", "Give a batch of at least 1.")
        device = torch.device(device) if device is not None else self.anchor.device
        chances = self.probabilities()
        if generator is not None:
            chances = chances.to(generator.device)
        t = torch.multinomial(chances, batch, replacement=True, generator=generator)
        weight = 1 / (self.steps * chances[t])
        return t.to(device), weight.to(device=device, dtype=torch.get_default_dtype())

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take the losses of a batch. Only `LossAwareSampler` uses them.

        Args:
            t: timesteps, any shape.
            losses: their losses before the importance weights, same shape.
        """


class FixStepSampler(UniformSampler):
    """The first T // 2 timesteps with twice the probability of the rest. DiffuRec's release."""

    def weights(self) -> Tensor:
        """(T,) 1 for the first T // 2 timesteps, 0.5 for the rest."""
        weights = super().weights()
        weights[self.steps // 2 :] = 0.5
        return weights


class LossAwareSampler(UniformSampler):
    """Timesteps in proportion to the root mean square of their latest losses.

    Nichol & Dhariwal 2021, eq. 18; DiffRec (Wang et al. 2023). Uniform until every timestep has
    ``history_per_term`` losses, and mixed with the uniform distribution afterwards.

    Args:
        steps: T.
        history_per_term: H, how many losses are kept per timestep.
        uniform_prob: share of the uniform distribution, in (0, 1].

    Attributes:
        history: (T, H) losses of each timestep, oldest first.
        counts: (T,) how many of them are filled.
    """

    history: Tensor
    counts: Tensor

    def __init__(self, steps: int, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        super().__init__(steps)
        if not isinstance(history_per_term, int) or history_per_term < 1:
            raise ConfigError(
                f"lossaware: history_per_term is {history_per_term!r}.", "Give a whole number of at least 1."
            )
        if not 0 < uniform_prob <= 1:
            raise ConfigError(f"lossaware: uniform_prob is {uniform_prob!r}.", "Give a number above 0 and at most 1.")
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        self.register_buffer("history", torch.zeros(steps, history_per_term))
        self.register_buffer("counts", torch.zeros(steps, dtype=torch.int64))

    def weights(self) -> Tensor:
        """(T,) ones until every timestep has ``history_per_term`` losses, then probabilities."""
        uniform = super().weights()
        root_mean_square = self.history.to(uniform.dtype).square().mean(dim=1).sqrt()
        total = root_mean_square.sum()
        # If all losses are zero, the uniform share remains.
        share = root_mean_square / total.clamp_min(torch.finfo(uniform.dtype).tiny)
        mixed = (1 - self.uniform_prob) * share + self.uniform_prob / self.steps
        # Not an `if`, which would wait for the device.
        return torch.where((self.counts == self.history_per_term).all(), mixed, uniform)

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Append losses to the queues of their timesteps, in batch order.

        In a distributed run this is a collective operation: every process calls it at every step, with any number of
        losses (also none). Afterwards all hold the losses of all, in order of rank.

        Args:
            t: timesteps, any shape.
            losses: their losses before the importance weights, same shape; NaN where there is none.

        Raises:
            ConfigError: the shapes differ.
        """
        if t.shape != losses.shape:
            raise ConfigError(
                f"lossaware: {tuple(t.shape)} timesteps but {tuple(losses.shape)} losses.",
                "Give one loss per timestep.",
            )
        t = t.detach().flatten().to(self.counts)
        losses = losses.detach().flatten().to(self.history)
        t = torch.where(losses.isnan(), self.steps, t)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            t, losses = self._from_all_ranks(t, losses)
        self._push(t, losses)

    def _push(self, t: Tensor, losses: Tensor) -> None:
        """Append losses to the queues; a timestep of T marks a loss to leave out."""
        size, device = self.history_per_term, t.device
        order = torch.argsort(t, stable=True)
        t, losses = t[order], losses[order]
        bounds = torch.searchsorted(t, torch.arange(self.steps + 2, device=device))
        arrived = bounds.diff()  # (T + 1,)
        place = torch.arange(len(t), device=device) - bounds[t]  # position among the losses of the same timestep

        counts = torch.cat((self.counts, self.counts.new_zeros(1)))
        dropped = (counts + arrived - size).clamp_min(0)
        # The history with one more row and column, for losses that are not kept. Selecting by a mask would wait for the
        # device.
        queues = torch.nn.functional.pad(self.history, (0, 1, 0, 1))
        columns = torch.arange(size + 1, device=device) + dropped[:, None]
        queues = queues.gather(1, columns.clamp_max(size))
        slot = counts[t] + place - dropped[t]
        queues[t, torch.where(slot < 0, size, slot)] = losses

        self.history.copy_(queues[:-1, :-1])
        self.counts.copy_((counts + arrived).clamp_max(size)[:-1])

    def _from_all_ranks(self, t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """(t, losses) of all ranks, rank after rank, padded with timestep T."""
        ranks = dist.get_world_size()
        length = torch.tensor(len(t), device=t.device)
        dist.all_reduce(length, op=dist.ReduceOp.MAX)
        missing = int(length) - len(t)
        t = torch.nn.functional.pad(t, (0, missing), value=self.steps)
        losses = torch.nn.functional.pad(losses, (0, missing))
        all_t = [torch.empty_like(t) for _ in range(ranks)]
        all_losses = [torch.empty_like(losses) for _ in range(ranks)]
        dist.all_gather(all_t, t)
        dist.all_gather(all_losses, losses)
        return torch.cat(all_t), torch.cat(all_losses)


def _wide(device: torch.device) -> torch.dtype:
    """The widest float type of a device."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


TIMESTEP_SAMPLERS: dict[str, type[UniformSampler]] = {
    "uniform": UniformSampler,
    "fixstep": FixStepSampler,
    "lossaware": LossAwareSampler,
}


def timestep_sampler(name: str, steps: int, **params: float) -> UniformSampler:
    """A timestep sampler by name.

    Args:
        name: uniform, fixstep or lossaware; hyphens and underscores are ignored.
        steps: T, at least 1.
        **params: ``history_per_term`` and ``uniform_prob``, for lossaware.

    Raises:
        ConfigError: unknown name or parameter, or a value out of range.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in TIMESTEP_SAMPLERS:
        raise ConfigError(f"Unknown timestep sampler {name!r}.", did_you_mean(key, TIMESTEP_SAMPLERS))
    kind = TIMESTEP_SAMPLERS[key]
    known = [parameter for parameter in inspect.signature(kind).parameters if parameter != "steps"]
    refuse_unknown(f"Timestep sampler {key!r}", params, known, "It has no parameters besides steps.")
    return kind(steps, **params)
