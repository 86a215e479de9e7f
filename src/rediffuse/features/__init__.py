"""Content: item and user features as numbers.

`FeatureEncoder` is fitted to the items with training interactions, and encodes any table of the same columns.
"""

from rediffuse.features.content import Content
from rediffuse.features.encoder import FeatureEncoder

__all__ = ["Content", "FeatureEncoder"]
