"""The published figures of the papers, and what this library has in their place."""
