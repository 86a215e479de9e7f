"""The examples of docs/evaluation.md run as they stand."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("position", range(2))
def test_examples_run(position):
    names: dict = {}
    exec(EXAMPLES[position], names)
    if position == 0:
        assert names["result"]["mrr@10"] == 0.5
        assert names["result"].counts["users_without_list"] == 1


def test_every_count_is_explained():
    names: dict = {}
    text = DOCS.read_text(encoding="utf-8")
    for example in EXAMPLES:
        exec(example, names)
        for count in names["result"].counts:
            assert f"`{count}`" in text or count == "truth_never_trained_share"
