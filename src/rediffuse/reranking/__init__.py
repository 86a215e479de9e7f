"""Re-ranking: a list of k items, made of the items that a model ranks first.

- `limits`: at most n items of one category, brand or tag.
- `slates`: how well the items go together: maximal marginal relevance, a determinantal point process, calibration.
- `greedy`: both rules choose the items one by one from a pool.
- `request`: the options of a request, checked.
"""

from rediffuse.reranking.columns import ItemColumns, ItemSets
from rediffuse.reranking.greedy import Reranking, pool_size, uncalibrated_remark
from rediffuse.reranking.limits import ValueLimit
from rediffuse.reranking.request import SLATES, RerankingOptions, SlateName, reranking_of
from rediffuse.reranking.slates import Calibration, Determinant, MarginalRelevance, SetSimilarity, VectorSimilarity

__all__ = [
    "SLATES",
    "Calibration",
    "Determinant",
    "ItemColumns",
    "ItemSets",
    "MarginalRelevance",
    "Reranking",
    "RerankingOptions",
    "SetSimilarity",
    "SlateName",
    "ValueLimit",
    "VectorSimilarity",
    "pool_size",
    "reranking_of",
    "uncalibrated_remark",
]
