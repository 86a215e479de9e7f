"""Accuracy: what is trained and compared, and the tables that the documentation shows."""
