"""Tables for the terminal whose cells are plain text. Imports rich, so `output` imports it when a table is made."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from rediffuse.display import plain


class PlainTable(Table):
    """A table whose title, headings and cells are text as it is: not markup, without control characters, never cut.

    All columns but the first are aligned to the right, for numbers.
    """

    def __init__(self, title: str, *columns: str) -> None:
        heading = Text(plain(title), overflow="fold")
        super().__init__(title=heading, title_justify="left", title_style="bold", show_header=any(columns))
        for position, column in enumerate(columns):
            # Folded cells, since names that are cut at the end, such as those of folders, look the same.
            self.add_column(Text(plain(column)), justify="left" if position == 0 else "right", overflow="fold")

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(plain(str(cell))) for cell in cells), **options)
