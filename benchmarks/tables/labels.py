"""What variants are called in tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from benchmarks.tables.variants import VARIANTS, Variant
from rediffuse.comparison import Comparison

# Columns of a comparison that hold labels of variants.
LABELS = {"variant", "first", "second", "ablation"}


def relabelled(found: Comparison) -> Comparison:
    """The same comparison with the labels of `label`."""
    seeds = dict(found.summary.unique("variant").select("variant", "seeds").iter_rows())
    labels, position = {}, 0
    for variant in found.facts["variants"]:  # runs are in the order of variants
        labels[variant] = label(VARIANTS[Path(found.facts["runs"][position]).name.rpartition("-")[0]])
        position += seeds[variant]
    tables = {
        name: table.with_columns(pl.col(sorted(LABELS & set(table.columns))).replace(labels))
        for name, table in vars(found).items()
        if isinstance(table, pl.DataFrame)
    }
    renamed = {name: [labels[old] for old in found.facts[name]] for name in ("variants", "refitted")}
    parts = {labels[old]: part for old, part in found.facts["refitted_parts"].items()}
    return dataclasses.replace(found, facts=found.facts | renamed | {"refitted_parts": parts}, **tables)


def label(variant: Variant) -> str:
    """The model of a variant and what it changes; ", refitted" if it learned from the validation interactions too."""
    options = {option: value for option, value in variant.options.items() if option not in ("refit", "prior")}
    words = [variant.preset] if variant.preset else []
    words += ["no diffusion" if option == "diffusion" else f"{option}={options[option]}" for option in options]
    words += ["with prior"] if variant.options.get("prior") == "head" else []
    refitted = ", refitted" if variant.options.get("refit") or variant.refit_of else ""
    return (variant.label or variant.model + (f" ({', '.join(words)})" if words else "")) + refitted
