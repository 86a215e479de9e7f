"""Tables made of another one's rows, whose errors still name the rows and lines of the original."""

from __future__ import annotations

from dataclasses import dataclass, fields

import polars as pl

from rediffuse.readers.tables import Table

# The row in the original. A name that no table of ours has.
ROW = "rediffuse: row"


@dataclass(frozen=True)
class DerivedTable(Table):
    """A table with rows of another, in their order; a row may be there several times, or not at all.

    Attributes:
        origin: one column, ROW: where each row comes from.
    """

    origin: pl.LazyFrame | None = None

    def place(self, row: int) -> str:
        """Where row ``row`` (from 0) is in the original."""
        assert self.origin is not None
        return super().place(self.read(self.origin.slice(row, 1)).item())


def derived(table: Table, frame: pl.LazyFrame) -> DerivedTable:
    """``table`` with the rows of ``frame``, which has a column ROW beside the table's own."""
    origin = frame.select(ROW)
    if isinstance(table, DerivedTable) and table.origin is not None:
        before = table.read(table.origin)[ROW]
        origin = before.gather(table.read(origin)[ROW]).to_frame().lazy()
    values = {field.name: getattr(table, field.name) for field in fields(Table)}
    return DerivedTable(**{**values, "frame": frame.drop(ROW)}, origin=origin)
