"""Split text such as ``a|b|c`` into ids or titles, which may contain bars themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class BarSplitter:
    """Splits text at bars, but not within the names that contain bars.

    Args:
        names: the known names.
        is_known: whether a text is a known name.

    Attributes:
        most_bars: the most bars in one name; 0: every bar separates.
    """

    def __init__(self, names: Iterable[str], is_known: Callable[[str], bool]) -> None:
        self.most_bars = max((name.count("|") for name in names), default=0)
        self.is_known = is_known

    def split(self, text: str) -> list[str]:
        """The names in ``text``, without spaces around them; empty pieces are left out.

        Text that is a known name stays whole. Else, of all ways to join the pieces between bars, it takes the one with
        the fewest pieces outside of known names, and among these the one with the fewest names.
        """
        pieces = text.split("|")
        if not self.most_bars:
            return [piece.strip() for piece in pieces if piece.strip()]
        if self.is_known(text.strip()):
            return [text.strip()]
        # best[i], of the pieces from i on: how many are unknown, the number of names, and where the first name ends.
        best: list[tuple[int, int, int]] = [(0, 0, len(pieces))] * (len(pieces) + 1)
        for start in range(len(pieces) - 1, -1, -1):
            alone = pieces[start].strip()
            unknown, count, _ = best[start + 1]
            cost = 0 if not alone else int(not self.is_known(alone))
            best[start] = (unknown + cost, count + bool(alone), start + 1)
            for end in range(start + 2, min(start + 1 + self.most_bars, len(pieces)) + 1):
                unknown, count, _ = best[end]
                if (unknown, count + 1) < best[start][:2] and self.is_known("|".join(pieces[start:end]).strip()):
                    best[start] = (unknown, count + 1, end)
        names, start = [], 0
        while start < len(pieces):
            end = best[start][2]
            names.append("|".join(pieces[start:end]).strip())
            start = end
        return [name for name in names if name]
