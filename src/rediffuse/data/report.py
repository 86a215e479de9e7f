"""`data_report`: what to know of a dataset and its splits before a result on them is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from rediffuse.arguments import wrong_type
from rediffuse.data.cold_users import share, without_history
from rediffuse.data.dataset import Dataset
from rediffuse.data.leaks import leak_of
from rediffuse.data.loading import as_dataset
from rediffuse.data.measures import DAY, duplicates_of, lengths_of, popularity_of, repeats_of, times_of
from rediffuse.data.new_items import never_trained
from rediffuse.data.split import by_name, given
from rediffuse.data.subsets import Split
from rediffuse.display import Displayed
from rediffuse.errors import DataError

# Splits that are reported unless others are named, after the given ones.
SPLITS = ("leave-one-out", "global-time", "ratio")
# Shares from which a fact is worth a warning.
NEAR, REPEATED, TIED, CONCENTRATED, COLD, NEW = 0.01, 0.01, 0.05, 0.3, 0.5, 0.2

Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True, repr=False)
class DataReport(Displayed):
    """The result of `data_report`. `str` of it has everything as tables.

    Attributes:
        users, items, interactions: how many there are; synthetic interactions are left out.
        histories: the distribution of their lengths.
        duplicates: users whose history equals or nearly equals that of another.
        repeats: interactions with an item that the user had before, and users who have one.
        popularity: how interactions are distributed over items.
        times: their range and ties; None without times.
        splits: for each split its name, and what it leaves out and leaks.
        refused: split -> why the data do not allow it.
        warnings: what matters of this, in sentences.
    """

    users: int
    items: int
    interactions: int
    histories: dict[str, Any]
    duplicates: dict[str, Any]
    repeats: dict[str, Any]
    popularity: dict[str, Any]
    times: dict[str, Any] | None
    splits: list[dict[str, Any]]
    refused: dict[str, str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """Title, heads and rows of each table."""
        return [
            ("Histories", ["", ""], _histories(self)),
            ("Items", ["", ""], _items(self)),
            *([("Times", ["", ""], _times(self.times))] if self.times else []),
            *([_held_out(self.splits), _leaks(self.splits)] if self.splits else []),
        ]

    def remarks(self) -> list[str]:
        """The warnings, and why splits are missing."""
        return [*self.warnings, *(f"Not reported: {name}. {why}" for name, why in self.refused.items())]

    def __str__(self) -> str:
        return "\n".join([line for table in self.tables() for line in _lines(table)] + self.remarks())

    def _display(self) -> tuple[str, dict[str, Any]]:
        return "Data report", {
            **{name: getattr(self, name) for name in ("users", "items", "interactions")},
            "near-duplicate users": self.duplicates["near"],
            "repeated interactions": self.repeats["interactions"],
            "top 1 % of items": f"{_percent(self.popularity['share_of_top_1_percent'])} of the interactions",
            "splits": ", ".join(row["name"] for row in self.splits),
            "warnings": len(self.warnings),
        }


def data_report(
    dataset: Dataset | str | PathLike[str],
    splits: Iterable[str | Split] | str | Split | None = None,
) -> DataReport:
    """Describe a dataset: duplicates, repeats, popularity, times, and what each split leaves out and leaks.

    Args:
        dataset: any, or its folder; synthetic interactions are left out.
        splits: splits, or their names; None: the given ones, leave-one-out, global time and ratio, as far as the data
            allow them.

    Raises:
        DataError: there is no interaction, or the data do not allow a split that is named.
        ConfigError: a split is unknown, or a split of other data.
    """
    data = as_dataset("dataset", dataset).without_synthetic()
    source = "DATA" if isinstance(dataset, Dataset) else str(dataset)
    if not data.num_interactions:
        raise DataError("The dataset has no interactions.", "Read data with interactions.")
    made, refused = _made(data, splits)
    rows = data.interactions
    facts: dict[str, Any] = {
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "histories": lengths_of(rows),
        "duplicates": duplicates_of(rows),
        "repeats": repeats_of(rows),
        "popularity": popularity_of(rows, data.num_items),
        "times": times_of(rows, data.has_timestamps),
        "splits": [_split_facts(name, split) for name, split in made],
    }
    return DataReport(**facts, refused=refused, warnings=_warnings(facts, source))


def _made(data: Dataset, splits: Any) -> tuple[list[tuple[str, Split]], dict[str, str]]:
    """The splits with their names, and why others cannot be made."""
    if splits is not None:
        wanted = [splits] if isinstance(splits, str | Split) else list(splits)
        return [_named(data, value) for value in wanted], {}
    makers: dict[str, Callable[[], Split]] = {}
    for scheme in sorted(data.given):
        makers["given" if len(data.given) == 1 else f"given {scheme}"] = lambda scheme=scheme: given(data, scheme)
    makers |= {name: lambda name=name: by_name(name, data) for name in SPLITS}
    made, refused = [], {}
    for name, make in makers.items():
        try:
            made.append((name, make()))
        except DataError as error:
            refused[name] = error.problem
    return made, refused


def _named(data: Dataset, value: Any) -> tuple[str, Split]:
    if isinstance(value, str):
        return value, by_name(value, data)
    if not isinstance(value, Split) or value.dataset.fingerprint_without_synthetic != data.fingerprint:
        raise wrong_type("splits", value, "splits of these data, or their names", 'For example ["leave-one-out"].')
    return value.name, value


def _split_facts(name: str, split: Split) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "params": split.params, "sizes": split.sizes()}
    for subset in ("valid", "test"):
        cold, rows = without_history(split, subset)
        new, targets, items = never_trained(split, subset)
        found[subset] = {"rows": rows, "without_history": cold, "targets": targets}
        found[subset] |= {"never_trained": new, "items_never_trained": items}
    return found | {"leak": leak_of(split), "leak_text": split.leak, "note": split.note}


def _warnings(facts: dict[str, Any], source: str) -> list[str]:
    users, interactions, found = facts["users"], facts["interactions"], []
    duplicates, repeats, popularity, times = (facts[n] for n in ("duplicates", "repeats", "popularity", "times"))
    if duplicates["near"] >= NEAR * users:
        found.append(
            f"{duplicates['near']:,} of {users:,} users ({share(duplicates['near'], users)}) are near-duplicates of "
            "another user. What they do next is often easy to predict, so a few of them can decide a comparison. Show "
            f"them apart: rediffuse compare RUNS --near-duplicates {source}"
        )
    if repeats["interactions"] >= REPEATED * interactions:
        found.append(
            f"{repeats['interactions']:,} interactions ({share(repeats['interactions'], interactions)}) are with an "
            "item that the user has had before. With seen items filtered (/unseen) these cannot be predicted; to keep "
            "one of each pair, prepare the data with --duplicates first."
        )
    if times and times["users_with_tied_end"] >= TIED * times["users_with_two"]:
        tied, several = times["users_with_tied_end"], times["users_with_two"]
        found.append(
            f"The last two interactions of {tied:,} of {several:,} users ({share(tied, several)}) have one time, so "
            "which of them leave-one-out tests is arbitrary, and often given away by the other."
        )
    if times is None:
        found.append("The interactions have no times and no order, so a leak of the future cannot be measured.")
    if popularity["share_of_top_1_percent"] >= CONCENTRATED:
        found.append(
            f"1 % of the items have {_percent(popularity['share_of_top_1_percent'])} of the interactions: show "
            "popularity beside every model."
        )
    return found + _split_warnings(facts["splits"])


def _split_warnings(splits: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for split in splits:
        name, test = split["name"], split["test"]
        if test["rows"] and test["without_history"] >= COLD * test["rows"]:
            found.append(
                f"{name}: {share(test['without_history'], test['rows'])} of those who are tested have no history, and "
                "get one list by popularity from every model."
            )
        if test["targets"] and test["never_trained"] >= NEW * test["targets"]:
            found.append(
                f"{name}: {share(test['never_trained'], test['targets'])} of the true items have no training "
                "interaction. Models without item features cannot recommend them."
            )
    if late := _shares(splits, "earlier"):
        found.append(
            f"Training knows what happened after the tests. Tested before the last training interaction: {late}. Such "
            "results say how well gaps are filled, not how well the future is predicted: compare with global-time."
        )
    if own := _shares(splits, "own_later"):
        found.append(f"Tested before a training interaction of the same user: {own}. Models of sequences see the next.")
    return found


def _shares(splits: Sequence[dict[str, Any]], name: str) -> str:
    """The splits that leak in one way, with their shares."""
    leaking = [split for split in splits if split["leak"][name]]
    return ", ".join(f"{split['name']} {share(split['leak'][name], split['test']['targets'])}" for split in leaking)


def _of(count: int, total: int) -> str:
    return f"{count:,} ({share(count, total)})" if total else "0"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _histories(report: DataReport) -> list[list[str]]:
    lengths, users = report.histories, report.users
    duplicates, repeats = report.duplicates, report.repeats
    quartiles = " ".join(f"{lengths[name]:,.0f}" for name in ("lower_quartile", "median", "upper_quartile"))
    least = duplicates["least_items"]
    return [
        ["users", f"{users:,}"],
        ["interactions", f"{report.interactions:,}"],
        ["length: mean", f"{lengths['mean']:,.1f}"],
        ["length: quartiles", quartiles],
        ["length: shortest, longest", f"{lengths['shortest']:,.0f} {lengths['longest']:,.0f}"],
        ["users with fewer than 3 interactions", _of(lengths["users_with_fewer_than_3"], users)],
        ["users without an interaction", _of(lengths["users_without_interactions"], users)],
        [f"identical histories (of {least} or more)", _of(duplicates["identical"], users)],
        [f"near-duplicates (Jaccard {duplicates['similarity']} or more)", _of(duplicates["near"], users)],
        ["near-duplicates (Jaccard 0.8 or more)", _of(duplicates["near_at_least_0.8"], users)],
        ["repeats of an item by a user", _of(repeats["interactions"], report.interactions)],
        ["users with a repeat", _of(repeats["users"], users)],
    ]


def _items(report: DataReport) -> list[list[str]]:
    found = report.popularity
    return [
        ["items", f"{report.items:,}"],
        ["interactions of the most popular 1 %", _percent(found["share_of_top_1_percent"])],
        ["interactions of the most popular 10 %", _percent(found["share_of_top_10_percent"])],
        ["Gini index", f"{found['gini']:.3f}"],
        ["interactions of an item: median, most", f"{found['median']:,.0f} {found['most']:,}"],
        ["items with one interaction", _of(found["items_once"], report.items)],
        ["items without one", _of(found["items_never"], report.items)],
        ["long tail: items beyond 80 % of the interactions", _of(found["long_tail"], report.items)],
    ]


def _times(times: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["interactions at the time of the one before", f"{times['ties']:,}"],
        ["users whose last two have one time", _of(times["users_with_tied_end"], times["users_with_two"])],
    ]
    if "first" not in times:
        return [["times", "an order only"], *rows]
    step = "whole days" if times["whole_days"] else "seconds"
    return [["first", times["first"]], ["last", times["last"]], ["resolution", step], *rows]


def _held_out(splits: Sequence[dict[str, Any]]) -> Table:
    heads = ["", "train", "to predict: valid", "test", "no history: valid", "test", "new items: valid", "test"]
    rows = []
    for split in splits:
        both = split["valid"], split["test"]
        cells = [f"{of['targets']:,}" for of in both]
        cells += [share(of["without_history"], of["rows"]) for of in both]
        cells += [share(of["never_trained"], of["targets"]) for of in both]
        rows.append([split["name"], f"{split['sizes']['train']:,}", *cells])
    return "Splits: interactions, and shares of what is to be predicted", heads, rows


def _leaks(splits: Sequence[dict[str, Any]]) -> Table:
    heads = ["", "before the last", "by days: median", "longest", "before the user's last", "later training"]
    rows = []
    for split in splits:
        leak, targets = split["leak"], split["test"]["targets"]
        earlier, own = (None if leak[n] is None else share(leak[n], targets) for n in ("earlier", "own_later"))
        days = [None if leak[n] is None else f"{leak[n] / DAY:,.0f}" for n in ("median_seconds", "longest_seconds")]
        later = None if leak["later_training"] is None else _percent(leak["later_training"])
        rows.append([split["name"], *(cell or "-" for cell in (earlier, *days, own, later))])
    return "Leaks: what is tested, against training interactions", heads, rows


def _lines(table: Table) -> list[str]:
    """A table as lines of text, with an empty one at the end."""
    title, heads, rows = table
    cells = [heads, *rows] if any(heads) else rows
    widths = [max(len(row[place]) for row in cells) for place in range(len(heads))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return [title, *(f"  {line}" for line in lines), ""]
