"""Blocks that two models or more share."""

from rediffuse.nn.denoiser import Folded, RowDenoiser
from rediffuse.nn.dropout import Dropout, dropout
from rediffuse.nn.time_embedding import sinusoidal_embedding
from rediffuse.nn.transformer import Encoder

__all__ = ["Dropout", "Encoder", "Folded", "RowDenoiser", "dropout", "sinusoidal_embedding"]
