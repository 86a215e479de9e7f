"""Selection among many settings of a model, in one pass over the validation users."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Task
from rediffuse.evaluation.metrics import accuracy_values, parse_metric
from rediffuse.evaluation.rank import block_of_users, cells, distinct, ranks_up_to

# Settings are compared on at most so many users, spread evenly over the task. The standard error of a hit rate of 10 %
# is then half a percentage point, and smaller for differences, since all settings see the same users.
MAX_USERS = 4096
# Fewer users where the catalogue is so large that their scores would be more than this.
MAX_SCORES = 1 << 28


@dataclass(frozen=True)
class SubsetValidation:
    """The validation subset, as `rediffuse.models.base.Validation` describes it.

    Attributes:
        task: the validation task.
        metric: the selection metric, for example "ndcg@10/unseen".
        num_items: size of the catalogue.
        validate: gives the metric of the model as it is, on all users.
    """

    task: Task
    metric: str
    num_items: int
    validate: Callable[[], float]

    def __call__(self) -> float:
        return self.validate()

    @property
    def owners(self) -> NDArray[np.int64]:
        """(n,) the user of each row on which settings are compared."""
        return self.task.users[self.rows()]

    def rows(self) -> NDArray[np.int64]:
        """(n,) the rows of the task on which settings are compared."""
        count = len(self.task.users)
        wanted = min(count, MAX_USERS, max(MAX_SCORES // self.num_items, 1))
        return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))

    @torch.inference_mode()
    def compare(
        self,
        score: Callable[[Histories, NDArray[np.int64]], Iterable[Tensor]],
        metric: str | None = None,
    ) -> list[NDArray[np.float64]]:
        """The metric of every setting for every row; see `rediffuse.models.base.Validation.compare`."""
        task, rows = self.task, self.rows()
        name, _, policy = (metric or self.metric).partition("/")
        parsed = parse_metric(name)
        truth = distinct(task.truth.take(rows), self.num_items, "true")
        seen = distinct((task.histories if task.seen is None else task.seen).take(rows), self.num_items, "history")
        ranks: list[list[NDArray[np.int64]]] = []
        block = block_of_users(self.num_items)
        for start in range(0, len(rows), block):
            part = np.arange(start, min(start + block, len(rows)))
            true, hidden = truth.take(part), seen.take(part)
            found = score(task.histories.take(rows[part]), task.users[rows[part]])
            for setting, scores in enumerate(found):
                if policy == "unseen":
                    scores[cells(hidden, scores.device)] = -torch.inf
                if setting == len(ranks):
                    ranks.append([])
                ranks[setting].append(ranks_up_to(parsed.k, scores, true))
        values = []
        for of_setting in ranks:
            joined = np.concatenate(of_setting)
            values.append(accuracy_values([parsed], truth.offsets, joined, truth.lengths)[str(parsed)])
        return values
