"""Batches for training: sequences, pairs, rows, continuations, and sparse matrices of histories."""
