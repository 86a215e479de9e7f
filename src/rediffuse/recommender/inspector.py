"""Looking inside a model, in item numbers: similar items, the item map, denoising trajectories, spreading mass."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.models.base import Model
from rediffuse.models.directions import item_directions
from rediffuse.models.sampling import Sampling
from rediffuse.recommender.item_map import ItemMap, item_map
from rediffuse.topk import exact_top_k


@dataclass(frozen=True)
class Step:
    """One step of a denoising trajectory.

    Attributes:
        t: the timestep.
        state: (d,) what the step starts from; None if that is not in the space of the item vectors.
        x0_hat: (d,) the network's estimate of x_0.
    """

    t: int
    state: Tensor | None
    x0_hat: Tensor


class Inspector:
    """Shows how a model relates items, and how it denoises or diffuses mass.

    Args:
        model: in evaluation mode.
        item_vectors: (num_items, d) that rank items, or None. The map and nearest items then use the model's
            `rediffuse.models.base.Model.map_vectors`, computed when they are first needed.
    """

    def __init__(self, model: Model, item_vectors: Tensor | None) -> None:
        self.model, self.item_vectors = model, item_vectors

    @property
    def has_vectors(self) -> bool:
        """Whether there is an item map. It computes nothing."""
        return self.item_vectors is not None or type(self.model).map_vectors is not Model.map_vectors

    @property
    def measure(self) -> str:
        """What `similar` ranks by: ``weight`` (a row of the item-item matrix) or ``cosine`` (of item vectors)."""
        return "weight" if self.model.has_item_neighbours else "cosine"

    @torch.inference_mode()
    def similar(self, items: NDArray[np.int64], k: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Values by `measure` and numbers of up to k items that are most similar to each of ``items`` (n,), best first.

        Of an item-item matrix, these are items with a positive weight, so there may be fewer than k.

        Raises:
            ConfigError: the model has neither an item-item matrix nor item vectors.
        """
        if not self.model.has_item_neighbours:
            return list(zip(*self.nearest(items, k), strict=True))
        weights = self.model.item_neighbours(items).float()
        weights[torch.arange(len(items), device=weights.device), torch.from_numpy(items).to(weights.device)] = 0
        found = []
        for row in weights:
            values, near = exact_top_k(row[None], min(k, self.model.num_items))
            kept = values[0] > 0
            found.append((values[0][kept].cpu().numpy(), near[0][kept].cpu().numpy()))
        return found

    def nearest(self, items: NDArray[np.int64], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines (n, k) and numbers (n, k) of the items nearest to ``items`` (n,), without themselves.

        Raises:
            ConfigError: the model has no item vectors.
        """
        numbers = torch.from_numpy(items).to(self.directions.device)
        cosines = self.directions[numbers] @ self.directions.T
        cosines[torch.arange(len(items), device=numbers.device), numbers] = -torch.inf
        others = min(k, self.model.num_items - 1)
        values, near = exact_top_k(cosines, others) if len(items) else (cosines, cosines.long())
        return values[:, :k].cpu().numpy(), near[:, :k].cpu().numpy()

    @property
    def has_similar(self) -> bool:
        """Whether there are similar items. It computes nothing."""
        return self.has_vectors or self.model.has_item_neighbours

    @functools.cached_property
    def directions(self) -> Tensor:
        """(num_items, d) the item vectors, normalised to length one.

        Raises:
            ConfigError: the model has no item vectors.
        """
        return item_directions(self.model, self.item_vectors)

    @functools.cached_property
    def map(self) -> ItemMap:
        """The item map: the item vectors in two dimensions.

        Raises:
            ConfigError: the model has no item vectors.
        """
        return item_map(self.directions.cpu())

    @torch.inference_mode()
    def denoising_trajectory(self, rows: Histories, user_numbers: NDArray[np.int64], sampling: Sampling) -> list[Step]:
        """The steps from noise to the recommendation of one user; empty if the model or the user needs no denoising.

        Args:
            rows: one history.
            user_numbers: (1,) the number of the user in training, or -1.
            sampling: options that the model has.
        """
        steps: list[Step] = []
        if self.item_vectors is None or not len(rows.without_synthetic().items):
            return steps

        def on_step(t: int, state: Tensor | None, x0_hat: Tensor) -> None:
            steps.append(Step(t, None if state is None else state[0].clone(), x0_hat[0].clone()))

        self.model.query_vectors(rows, user_numbers, replace(sampling, on_step=on_step))
        return steps

    def best(self, query: Tensor, k: int) -> list[tuple[int, float]]:
        """Numbers and scores of the k items that the vector ``query`` (d,) ranks first."""
        assert self.item_vectors is not None
        scores, items = exact_top_k((query @ self.item_vectors.T)[None], min(k, self.model.num_items))
        return list(zip(items[0].tolist(), scores[0].tolist(), strict=True))

    @torch.inference_mode()
    def spread(self, rows: Histories, user_numbers: NDArray[np.int64]) -> list[tuple[str, Tensor]]:
        """Name of each hop and the mass of every item after it (num_items,), from one history to its scores.

        Empty for a user without a history.

        Args:
            rows, user_numbers: as for `denoising_trajectory`.

        Raises:
            ConfigError: the model diffuses no mass.
        """
        if not self.model.explains_scores:
            raise ConfigError(
                f"{self.model.name} diffuses no mass over the items.", "Use a run of heat, transition or theat."
            )
        return self.model.hops(rows, user_numbers) if len(rows.items) else []

    def most_mass(self, mass: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers (n,) and masses (n,) of the k items with the most ``mass`` (num_items,), without those of mass 0."""
        masses, items = exact_top_k(mass.float()[None], min(k, self.model.num_items))
        found = masses[0] != 0
        return items[0][found].cpu().numpy(), masses[0][found].cpu().numpy()
