"""A model whose process dies, or fails, as it scores the users of a part file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.config import ClosedFormConfig
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError
from rediffuse.models.baselines.popularity import Popularity
from rediffuse.models.sampling import Sampling

USERS = 8  # in a part file; loading a run scores fewer


class Config(ClosedFormConfig):
    fate: str = ""  # path of a file that says what happens: "once", "always" or "error"


class Deadly(Popularity):
    name = "deadly"
    Config = Config

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        path = Path(self.config.fate)
        if len(histories) == USERS and path.exists():
            fate = path.read_text()
            if fate == "error":
                raise DataError("The file has changed.", "Start again.")
            if fate == "once":
                path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score_known(histories, users, sampling)
