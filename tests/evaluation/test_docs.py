"""The examples of docs/evaluation.md run unchanged."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)


def test_examples_run_and_every_count_is_explained():
    names: dict = {}
    results = []
    for example in EXAMPLES:
        exec(example, names)
        results.append(names["result"])
    lists, task = results
    assert lists["mrr@10"] == 0.5
    assert lists.counts["users_without_list"] == 1
    text = DOCS.read_text(encoding="utf-8")
    for count in {*lists.counts, *task.counts} - {"truth_never_trained_share"}:
        assert f"`{count}`" in text
