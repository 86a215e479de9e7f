"""The directions of item vectors, whose inner products are cosines."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rediffuse.errors import ConfigError
from rediffuse.models.base import Model


def item_directions(model: Model, vectors: Tensor | None = None) -> Tensor:
    """(num_items, d) the item vectors of a model, normalised to length one.

    Args:
        model: in evaluation mode.
        vectors: its `index_vectors`, if they were computed before; otherwise its `map_vectors` are.

    Raises:
        ConfigError: the model has no item vectors.
    """
    if vectors is None:
        with torch.inference_mode():
            vectors = model.index_vectors()
            vectors = model.map_vectors() if vectors is None else vectors
    if vectors is None:
        raise ConfigError(
            f"{model.name} has no item vectors: it ranks in another way.",
            "Use a model that learns them, such as diffurec, sasrec or lightgcn.",
        )
    return F.normalize(vectors.detach().to(model.device).float(), dim=1)  # a parameter, or made of some
