"""The bodies of requests and responses, with limits and examples. The OpenAPI description is made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, model_validator

from rediffuse.serving.settings import MAX_HISTORY, MAX_IGNORED, MAX_ITEMS, MAX_K, MAX_SAMPLES, MAX_USERS

MAX_INTEGER = 2**63 - 1
# Ids are text in responses: JavaScript reads JSON numbers as doubles, and would round integers beyond 2**53. Requests
# may hold text or integers. The size of the body alone limits the length of an id, so that every id is accepted.
Id = Annotated[StrictInt, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)] | StrictStr
History = Annotated[list[Id], Field(max_length=MAX_HISTORY)]
K = Annotated[StrictInt, Field(ge=1, le=MAX_K)]
Seed = Annotated[StrictInt, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
SamplingSteps = Annotated[StrictInt, Field(ge=1, le=10_000)]
Noise = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
GuidanceScale = Annotated[float, Field(ge=-1, le=1000, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Request(_Body):
    model: Annotated[StrictStr, Field(max_length=256)] | None = Field(
        None, description="Name that a run is served under. Default: the first model."
    )


class RecommendRequest(_Request):
    """Users or histories to recommend for. The items and scores are those of `Recommender.recommend`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"histories": [["50", "181"]], "k": 10}, {"users": ["1", "2"], "k": 5, "samples": 8}]
        }
    )

    users: Annotated[list[Id], Field(max_length=MAX_USERS)] | None = Field(
        None, description="Ids of known users. With `histories`: labels for the results."
    )
    histories: Annotated[list[History], Field(max_length=MAX_USERS)] | None = Field(
        None, description="Item ids, oldest first, one list per user."
    )
    k: K = Field(10, description="Items per user.")
    exclude: Annotated[list[Id], Field(max_length=MAX_ITEMS)] = Field([], description="Items not to recommend.")
    candidates: Annotated[list[Id], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Recommend only these items."
    )
    filter: dict[str, Any] | None = Field(
        None,
        description="Recommend only items whose columns in the item table fulfil a condition: "
        '{"column": NAME, "eq": VALUE}, {"column": NAME, "in": [VALUE, ...]}, {"column": NAME, "range": {"gte": 10, '
        '"lt": 50}} (gt, gte, lt, lte), or {"and": [...]}, {"or": [...]}, {"not": {...}} of such conditions. In a '
        "column of lists, eq and in mean that the list contains the value. Missing values never match.",
        examples=[{"and": [{"column": "category", "eq": "shoes"}, {"column": "price", "range": {"lt": 50}}]}],
    )
    max_per: dict[str, Annotated[StrictInt, Field(ge=1, le=MAX_K)]] | None = Field(
        None,
        max_length=8,
        description='Column of the item table -> the most items of one value in a list, such as {"category": 2}.',
        examples=[{"category": 2}],
    )
    diversity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="Weight of the whole list against the relevance of its items. Default: relevance alone."
    )
    diversity_by: Annotated[StrictStr, Field(max_length=256)] | None = Field(
        None,
        description="Column of the item table whose values say how items resemble each other. Default: vectors do.",
        examples=["category"],
    )
    slate: Literal["mmr", "dpp", "calibrated"] | None = Field(
        None,
        description="How the whole list is judged: `mmr` (default), by the most similar item before each; `dpp`, by "
        "the determinant of all similarities; `calibrated`, by how far its shares of the values of `diversity_by` are "
        "from those of the history. Needs `diversity`.",
    )
    new_items: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.0,
        description="Least share of each list that is items without an interaction in training, if the model ranks "
        "such items by their features.",
    )
    temperature: Temperature | None = Field(
        None,
        description="Of the category preference that guides the model; above 1, lists get more categories. Only for "
        "models with `has_guidance`.",
    )
    guidance_scale: GuidanceScale | None = Field(
        None, description="Weight of that guidance; -1: none. Only for models with `has_guidance`."
    )
    filter_seen: bool = Field(True, description="Do not recommend items of the history.")
    samples: Annotated[StrictInt, Field(ge=1, le=MAX_SAMPLES)] = Field(
        1, description="Draws to average. With more than one, every item has the standard deviation of its score."
    )
    sampling_steps: SamplingSteps | None = Field(
        None, description="Denoising steps. Default: the number calibrated on validation data."
    )
    seed: Seed = Field(
        0,
        description="Seed of the noise. The same seed gives the same list in any batch; only items "
        "whose scores agree up to rounding may change places.",
    )
    noise: Noise = Field(1.0, description="Factor that the noise is multiplied by.")
    explain: bool = Field(False, description="Explain every item.")

    @model_validator(mode="after")
    def check_users(self) -> RecommendRequest:
        if self.users is None and self.histories is None:
            raise ValueError("give users, histories, or both")
        if self.users is not None and self.histories is not None and len(self.users) != len(self.histories):
            raise ValueError(f"{len(self.users)} users and {len(self.histories)} histories: give one user per history")
        return self


class Item(BaseModel):
    item_id: str = Field(description="As text, also where the ids of the data are integers.")
    title: str | None = Field(None, description="Null if the run has no titles.")


class NearItem(Item):
    cosine: float


class KnowledgePath(BaseModel):
    """A path from the recommended item to an item of the history: item, relation, entity, relation_back, history item.

    Without an entity, the relation connects the two items directly.
    """

    relation: str
    entity: str | None
    relation_back: str | None
    history_item: Item
    strength: float
    kept: bool = Field(description="False if diffusion pruned an edge of the path.")


class ScoreContribution(BaseModel):
    """A part of a score. The contributions to an item add up to its score."""

    history_item: Item | None = Field(description="The item of the history; null: it comes from no interaction.")
    part: str = Field(description="The hop, or a prior such as recent popularity; `other`: all smaller sources.")
    contribution: float
    share: float | None = Field(description="contribution / score; null if the score is 0.")


class Explanation(BaseModel):
    contributions: list[ScoreContribution] = Field(
        description="What the score is made of, for models whose scores are sums over the history: the five items of "
        "the history and priors with the largest contributions, hop by hop, and the others as one. An item of the "
        "history with several hops has several entries."
    )
    nearest: list[NearItem] = Field(description="Items of the history with the nearest vectors.")
    paths: list[KnowledgePath] = Field(description="Paths in the knowledge graph, for models trained on one.")


class RecommendedItem(Item):
    score: float
    uncertainty: float | None = Field(
        None, description="Standard deviation of the score over samples: not how likely the item is."
    )
    new: bool | None = Field(
        None, description="Whether the item has no interaction in training; null: the model cannot rank such items."
    )
    explanation: Explanation | None = None


class UserRecommendations(BaseModel):
    user: str | int = Field(
        description="The user's id as text; without `users`, the position of the history, an integer from 0."
    )
    items: list[RecommendedItem]


class _Response(BaseModel):
    model: str = Field(description="Name that the run is served under.")
    version: str = Field(description="Changes whenever the run folder changes.")
    notes: list[str] = Field(description="Unknown users and items, with counts.")
    ignored_items: list[int | str] = Field(
        description=f"Distinct items of the histories (of /v1/similar: of `items`) that the catalogue does not have, "
        f"and that were ignored, as they were sent: the first {MAX_IGNORED}. The notes count all."
    )


class RecommendResponse(_Response):
    results: list[UserRecommendations]


class SimilarRequest(_Request):
    """Items for which to find similar items."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": ["50"], "k": 10}]})

    items: Annotated[list[Id], Field(min_length=1, max_length=32)]
    k: K = Field(10, description="Similar items per item.")


class SimilarItem(Item):
    cosine: float | None = Field(description="Cosine of the item vectors; null for models with an item-item matrix.")
    weight: float | None = Field(description="Weight in the item-item matrix, from the asked item; else null.")


class SimilarItems(BaseModel):
    item_id: str
    items: list[SimilarItem] = Field(description="Of an item-item matrix, only items with a positive weight.")


class SimilarResponse(_Response):
    results: list[SimilarItems] = Field(description="One entry per known item, in the order of the request.")


class _OneUserRequest(_Request):
    user: Id | None = Field(None, description="Id of a known user.")
    history: History | None = Field(None, description="Item ids, oldest first.")

    @model_validator(mode="after")
    def check_user(self) -> Self:
        if (self.user is None) == (self.history is None):
            raise ValueError("give either user or history")
        return self


class DenoiseRequest(_OneUserRequest):
    """The user or the history whose denoising trajectory is shown."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["50", "181"], "sampling_steps": 8}]})

    k: Annotated[StrictInt, Field(ge=1, le=50)] = Field(10, description="Items per step.")
    sampling_steps: SamplingSteps | None = Field(
        None, description="Denoising steps. Default: the number calibrated on validation data."
    )
    seed: Seed = Field(0, description="Seed of the noise.")
    noise: Noise = Field(1.0, description="Factor that the noise is multiplied by.")


Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class ScoredItem(Item):
    score: float


class DenoisingStep(BaseModel):
    """One step of the denoising trajectory."""

    t: int = Field(description="Timestep of the noise schedule.")
    state: Point | None = Field(description="The noisy state x_t on the item map; null if it is not an item vector.")
    x0_hat: Point = Field(description="The network's estimate of x_0, on the item map.")
    items: list[ScoredItem] = Field(description="The items that x0_hat ranks first, items of the history included.")


class DenoiseResponse(_Response):
    steps: list[DenoisingStep] = Field(description="The denoising trajectory, from noise to the recommended items.")


class SpreadRequest(_OneUserRequest):
    """The user or the history from which mass spreads over the items."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["50", "181"], "k": 20}]})

    k: K = Field(10, description="Items per hop.")


class MassItem(Item):
    mass: float


class SpreadStep(BaseModel):
    """The mass of the items after one hop."""

    hop: str = Field(description="Name of the hop, from `history` to `scores`.")
    total: float = Field(description="Mass of all items.")
    reached: int = Field(description="Items that have mass.")
    items: list[MassItem] = Field(description="The items with the most mass, items of the history included.")


class SpreadResponse(_Response):
    steps: list[SpreadStep] = Field(description="Hop by hop, from the history to the scores.")


class ItemColumn(BaseModel):
    name: str
    type: str = Field(description="`number`, `text`, `boolean`, `time`, `list` or `other`.")


class ModelInfo(BaseModel):
    """A served run."""

    model: str = Field(description="Name that the run is served under.")
    architecture: str = Field(description="Class of the model, for example diffurec.")
    version: str = Field(description="Changes whenever the run folder changes.")
    created_at: str = Field(description="When the run was trained.")
    loaded_at: str = Field(description="When the service read the run folder.")
    users: int
    items: int
    interactions: int
    stochastic: bool = Field(description="Whether scores depend on the seed.")
    has_guidance: bool = Field(description="Whether requests can give temperature and guidance_scale.")
    retrieval: str = Field(description="`exact` or `index`.")
    device: str = Field(description="Where the model computes, for example `cpu` or `cuda:0 (NVIDIA H200)`.")
    max_sampling_steps: int | None = Field(description="The most that a request may ask for; null: no choice.")
    calibrated_sampling_steps: int | None = Field(description="The default, calibrated on validation data.")
    fingerprint: str = Field(description="sha256 over the files of the run that recommendations depend on.")
    split: str = Field(description="The split that the run was trained on; `none` held nothing out.")
    held_out: str | None = Field(description="What the split held out and the model has not learned from, or null.")
    histories_end: str | None = Field(description="Time of the last interaction that the run holds, in UTC, or null.")
    refit_of: dict[str, Any] | None = Field(
        description="The run that this one was refitted from: its name, split, metric and validation metrics, or null."
    )
    item_columns: list[ItemColumn] = Field(description="Columns of the item table; empty without one.")
    has_titles: bool
    has_similar: bool = Field(description="Whether /v1/similar answers.")
    has_vectors: bool = Field(description="Whether an item map exists.")
    explains_scores: bool = Field(
        description="Whether explanations contain contributions, which add up to the score, and /v1/spread exists."
    )
    has_paths: bool = Field(description="Whether explanations contain paths in a knowledge graph.")
    metric: str = Field(description="The validation metric that selected the weights.")
    validation: float | None = Field(description="Its value on the validation subset.")


class ModelsResponse(BaseModel):
    models: list[ModelInfo]


class ItemsResponse(BaseModel):
    items: list[Item]


class ItemRow(BaseModel):
    item_id: str
    columns: dict[str, Any] = Field(
        description="Columns of the item table, without the id. Integers beyond 2**53 are text: JavaScript rounds them."
    )


class ColumnsRequest(_Body):
    """Items whose columns are wanted."""

    items: Annotated[list[Id], Field(min_length=1, max_length=50)]


class HistoryRequest(_Body):
    """The user whose history is wanted."""

    user: Id


class ColumnsResponse(BaseModel):
    items: list[ItemRow] = Field(description="In the order of the request; empty if the run has no item table.")


class UsersResponse(BaseModel):
    users: list[str]


class MapPoint(Item):
    x: float
    y: float


class MapResponse(BaseModel):
    explained: float = Field(description="Share of the item vectors' variance that the map shows.")
    total: int = Field(description="Items of the catalogue. The map has those with the most training interactions.")
    items: list[MapPoint]


class TrainingResponse(BaseModel):
    """The training results in a run folder."""

    card: str = Field(description="The model card, in Markdown.")
    epochs: list[dict[str, Any]] = Field(
        description="The lines of metrics.jsonl; of more than 4,000, a part at even distances, the best and the last."
    )
    epochs_total: int = Field(description="How many lines there are.")
    best_epoch: int | None = Field(description="The epoch whose weights are served.")
    metric: str = Field(description="The validation metric that selected the weights.")
    metric_by_steps: dict[str, float] | None = Field(
        description="The validation metric by number of sampling steps; null if the run was not calibrated."
    )
    validation: dict[str, float] | None = Field(description="Validation metrics.")
    test: dict[str, dict[str, float]] | None = Field(
        description="Test metrics by policy for seen items; null until the run is evaluated."
    )
    slices: list[dict[str, Any]] = Field(
        description="Test metrics by history length; empty until the run is evaluated."
    )
