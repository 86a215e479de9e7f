"""What goes over the wire, with its limits and examples; the OpenAPI description is made of this."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

from rediffuse.serving.settings import MAX_HISTORY, MAX_ITEMS, MAX_K, MAX_PEOPLE, MAX_SAMPLES

SEED = 2**63 - 1
Id = Annotated[StrictInt, Field(ge=-SEED, le=SEED)] | Annotated[StrictStr, Field(max_length=256)]
History = Annotated[list[Id], Field(max_length=MAX_HISTORY)]
K = Annotated[StrictInt, Field(ge=1, le=MAX_K)]
Seed = Annotated[StrictInt, Field(ge=-SEED, le=SEED)]
Steps = Annotated[StrictInt, Field(ge=1, le=10_000)]
Noise = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[StrictStr, Field(max_length=256)] | None = Field(
        None, description="Name of a run; the first one by default."
    )


class RecommendRequest(_Request):
    """For whom, and what. Answers are those of `Recommender.recommend`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"histories": [["50", "181"]], "k": 10}, {"users": ["1", "2"], "k": 5, "samples": 8}]
        }
    )

    users: Annotated[list[Id], Field(max_length=MAX_PEOPLE)] | None = Field(
        None, description="Ids of known people; with histories, labels for the answer."
    )
    histories: Annotated[list[History], Field(max_length=MAX_PEOPLE)] | None = Field(
        None, description="Item ids, oldest first, one list per person."
    )
    k: K = 10
    exclude: Annotated[list[Id], Field(max_length=MAX_ITEMS)] = Field([], description="Items that nobody is to get.")
    candidates: Annotated[list[Id], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="The only items that anybody is to get."
    )
    filter_seen: bool = Field(True, description="Leave out items of the history.")
    samples: Annotated[StrictInt, Field(ge=1, le=MAX_SAMPLES)] = Field(
        1, description="Draws to average; of more than one, every item has the spread of its score."
    )
    sampling_steps: Steps | None = Field(None, description="Of denoising; by default as many as were calibrated.")
    seed: Seed = Field(
        0, description="The same seed gives the same list, alone or in company, but for ties within rounding."
    )
    noise: Noise = Field(1.0, description="What noise is multiplied by.")
    explain: bool = Field(False, description="Say of each item why.")

    @model_validator(mode="after")
    def for_somebody(self) -> RecommendRequest:
        if self.users is None and self.histories is None:
            raise ValueError("give users, histories, or both")
        if self.users is not None and self.histories is not None and len(self.users) != len(self.histories):
            raise ValueError(f"{len(self.users)} users and {len(self.histories)} histories: give one user per history")
        return self


class Item(BaseModel):
    item_id: int | str
    title: str | None = Field(None, description="Where the run knows titles.")


class NearItem(Item):
    cosine: float


class KnowledgePath(BaseModel):
    """item - relation - entity - relation_back - touched item; without an entity, item - relation - touched item."""

    relation: str
    entity: str | None
    relation_back: str | None
    touched_item: Item
    strength: float
    kept: bool = Field(description="False: an edge of it was pruned by diffusion.")


class Why(BaseModel):
    nearest: list[NearItem] = Field(description="Items of the history whose vectors are nearest.")
    paths: list[KnowledgePath] = Field(description="Through the knowledge graph, of models that learned from one.")


class RecommendedItem(Item):
    score: float
    uncertainty: float | None = Field(None, description="Standard deviation of the score over samples.")
    why: Why | None = None


class PersonsItems(BaseModel):
    user: int | str = Field(description="As the data's ids are, or the place of the history, from 0.")
    items: list[RecommendedItem]


class Answered(BaseModel):
    model: str
    version: str = Field(description="Changes whenever the run folder does.")
    notes: list[str] = Field(description="Unknown people and items, with counts.")


class RecommendResponse(Answered):
    results: list[PersonsItems]


class SimilarRequest(_Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"items": ["50"], "k": 10}]})

    items: Annotated[list[Id], Field(min_length=1, max_length=32)]
    k: K = 10


class SimilarItems(BaseModel):
    item_id: int | str
    items: list[NearItem]


class SimilarResponse(Answered):
    results: list[SimilarItems] = Field(description="One for each item that is known, in the order asked.")


class DenoiseRequest(_Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["50", "181"], "sampling_steps": 8}]})

    user: Id | None = None
    history: History | None = None
    k: Annotated[StrictInt, Field(ge=1, le=50)] = 10
    sampling_steps: Steps | None = None
    seed: Seed = 0
    noise: Noise = 1.0

    @model_validator(mode="after")
    def for_one(self) -> DenoiseRequest:
        if (self.user is None) == (self.history is None):
            raise ValueError("give either user or history")
        return self


Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class ScoredItem(Item):
    score: float


class DenoisingStep(BaseModel):
    t: int = Field(description="Timestep of the noise schedule.")
    state: Point | None = Field(description="What the step starts from, on the map; null where it is no item vector.")
    x0_hat: Point = Field(description="What the network takes the end to be, on the map.")
    items: list[ScoredItem] = Field(description="Those that the x0_hat ranks first; seen items are kept.")


class DenoiseResponse(Answered):
    steps: list[DenoisingStep]


class RunFacts(BaseModel):
    name: str
    model: str
    version: str
    created: str
    loaded: str
    users: int
    items: int
    interactions: int
    stochastic: bool
    retrieval: str
    max_sampling_steps: int | None = Field(description="The most that can be asked for; null: nothing to choose.")
    calibrated_steps: int | None
    has_titles: bool
    has_vectors: bool = Field(description="Whether there are similar items, a map and a denoising path.")
    has_paths: bool = Field(description="Whether there are paths of a knowledge graph.")
    metric: str = Field(description="What selected the weights.")
    validation: float | None = Field(description="Its value on the validation subset.")


class RunsResponse(BaseModel):
    models: list[RunFacts]


class ItemsResponse(BaseModel):
    items: list[Item]


class UsersResponse(BaseModel):
    users: list[int | str]


class MapPoint(Item):
    x: float
    y: float


class MapResponse(BaseModel):
    explained: float = Field(description="Share of the item vectors' variance that the map shows.")
    total: int = Field(description="Items of the catalogue; the map has those with the most events.")
    items: list[MapPoint]


class TrainingResponse(BaseModel):
    """What a run folder tells of its training."""

    card: str = Field(description="The model card, in Markdown.")
    epochs: list[dict[str, Any]] = Field(description="Lines of metrics.jsonl.")
    best_epoch: int | None = Field(description="Whose weights are served.")
    metric: str
    metric_by_steps: dict[str, float] | None = Field(description="By number of denoising steps, where calibrated.")
    validation: dict[str, float] | None
    test: dict[str, dict[str, float]] | None = Field(description="By policy, once evaluated.")
    slices: list[dict[str, Any]] = Field(description="Test metric by length of history, once evaluated.")
