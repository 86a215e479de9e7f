"""HeatRec: a network that learns from histories after heat on the item graph, and answers with the graph as a prior.

Forward process: each item of a training history diffuses along the graph of transitions for the time ``history_noise``
(`rediffuse.models.history_noise`). The network, a GRU (`rediffuse.models.baselines.gru4rec`), reads the history after
the noise and predicts the next item, which has none. So it learns what the next item is from where the history might
have been, not from the few items that happen to be in it. There is no reverse chain: it predicts in one step, and at
inference it reads the history as it is.

Beside it stands the prior from the item graph (`rediffuse.models.prior`).

With ``diffusion=false`` the network reads the histories without noise. This is the ablation (no diffusion): GRU4Rec
with the prior. The control with ``noise_graph=uniform`` has as much noise, but every hop leads to any item.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rediffuse.config import Range
from rediffuse.models.baselines.gru4rec import GRU4Rec, GRU4RecConfig


class HeatRecConfig(GRU4RecConfig):
    """Options of HeatRec: those of GRU4Rec, with other defaults. They are chosen on validation data; see
    docs/benchmarks.md."""

    search = GRU4RecConfig.search | {"history_noise": Range(0.1, 1.0, log=True)}

    diffusion: bool = Field(True, description="False: the ablation (no diffusion).")
    history_noise: float = Field(
        0.25, ge=0, description="Time for which the items of training histories diffuse along the item graph; 0: none."
    )
    prior: Literal["none", "head", "residual"] = Field("head", description="The prior from the item graph.")


class HeatRec(GRU4Rec):
    """A recurrent network that is trained on histories whose items have diffused along the item graph, with the item
    graph as a prior."""

    name = "heatrec"
    Config = HeatRecConfig
    config: HeatRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def noise_time(self) -> float:
        return self.config.history_noise if self.config.diffusion else 0.0
