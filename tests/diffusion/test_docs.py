"""The examples of docs/diffusion.md run, one after the other, as a reader would."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "diffusion.md"


def test_examples_run():
    text = PAGE.read_text(encoding="utf-8")
    examples = list(re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))
    assert len(examples) >= 5
    names: dict[str, object] = {}
    for example in examples:
        # After as many empty lines as there are lines before it, so that an error names the line of the page.
        before = "\n" * (text[: example.start(1)].count("\n"))
        exec(compile(before + example.group(1), str(PAGE), "exec"), names)


def test_every_schedule_is_in_the_table():
    from rediffuse.diffusion import SCHEDULES

    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name in listed if name in SCHEDULES] == list(SCHEDULES)
