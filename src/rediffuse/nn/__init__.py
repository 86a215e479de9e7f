"""Network blocks that several models share, in plain torch."""

from rediffuse.nn.denoiser import Folded, RowDenoiser
from rediffuse.nn.dropout import Dropout, dropout
from rediffuse.nn.features import FeatureProjection, standardised
from rediffuse.nn.sized import SizedByData
from rediffuse.nn.time_embedding import sinusoidal_embedding
from rediffuse.nn.transformer import Encoder

__all__ = [
    "Dropout",
    "Encoder",
    "FeatureProjection",
    "Folded",
    "RowDenoiser",
    "SizedByData",
    "dropout",
    "sinusoidal_embedding",
    "standardised",
]
