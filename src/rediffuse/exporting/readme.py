"""The README.md of an export: how to answer with its files."""

from __future__ import annotations

from typing import Any

_IMPORTS = {
    "onnx": """import onnxruntime
import polars as pl
from safetensors.numpy import load_file


def graph(name):
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    return lambda **inputs: session.run(None, inputs)
""",
    "torch-export": """import polars as pl
import torch
from safetensors.numpy import load_file


def graph(name):
    network, order = torch.export.load(f"{name}.pt2").module(), about["graphs"][name]["inputs"]

    def call(**inputs):
        with torch.no_grad():
            made = network(*(torch.from_numpy(inputs[each]) for each in order))
        return [one.numpy() for one in (made if isinstance(made, tuple) else (made,))]

    return call
""",
}

_WINDOWS = """
about = json.loads(Path("export.json").read_text(encoding="utf-8"))
items, table = load_file("items.safetensors"), pl.read_parquet("items.parquet")
histories = [[3, 1, 2], [0]]  # item numbers as in items.parquet, oldest first; at least one each

recent = [history[-about["max_length"] :] for history in histories]
lengths = np.array([len(row) for row in recent], dtype=np.int64)
windows = np.full((len(recent), lengths.max()), about["pad"], dtype=np.int64)
for window, row in zip(windows, recent):
    window[: len(row)] = row
"""

_PLAIN = """(query,) = graph("history")(items=windows, lengths=lengths)
"""

_DENOISED = """
normal = np.random.default_rng(0).standard_normal
known = dict(zip(about["graphs"]["history"]["outputs"], graph("history")(items=windows, lengths=lengths)))
step, x = graph("step"), normal((len(recent), about["embedding_size"]), dtype=np.float32)
for now in about["denoising"]["steps"]:
    t, noise = np.full(len(recent), now["t"], dtype=np.int64), normal(known["z"].shape, dtype=np.float32)
    (x0_hat,) = step(**known, lengths=lengths, x_t=x, t=t, noise=noise)
    x = now["x0"] * x0_hat + now["x_t"] * x + now["noise"] * normal(x.shape, dtype=np.float32)
query = x
"""

_COSINE = """query = x / np.linalg.norm(x, axis=1, keepdims=True) * about["metric"]["temperature"] ** -0.5
"""

_RANKED = """
scores = query @ items["vectors"].T
for score, row, history in zip(scores, recent, histories):
    score[np.unique(row)] += about["repeat_bias"] or 0.0
    score[history] = -np.inf  # leave out what was seen
best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
print([table["item_id"].gather(row).to_list() for row in best])
"""

_ABOUT_NOISE = """
In each step `noise` is a fresh standard normal draw, and so is what is added after it; any generator does. Rediffuse
itself takes them from `rediffuse.diffusion.noise.RowNoise(row_keys(windows, lengths), seed)`: first the start, then
for each step that of `noise` and, where the step's own `noise` in export.json is not 0, the one that is added. With
those, these lists are the library's.
"""


def readme(about: dict[str, Any]) -> str:
    """The text for the export that ``about``, the content of its export.json, describes."""
    if about["denoising"] is None:
        query = _PLAIN
    elif about["metric"]["temperature"] is None:
        query = _DENOISED
    else:
        query = _DENOISED.replace("query = x\n", _COSINE)
    packages = {"onnx": "onnxruntime", "torch-export": "torch"}[about["format"]]
    code = "import json\nfrom pathlib import Path\n\nimport numpy as np\n"
    code += _IMPORTS[about["format"]] + "\n" + _WINDOWS + query + _RANKED
    files = "\n".join(f"- `{graph['file']}`: {_signature(graph)}" for graph in about["graphs"].values())
    return f"""# {about["model"]}, exported by Rediffuse {about["rediffuse"]}

{files}
- `items.safetensors`: `vectors` ({about["num_items"]}, {about["embedding_size"]}), whose inner products with a query
  are scores, and `popularity`, the scores for people without history.
- `items.parquet`: the number of each item, and its id.
- `export.json`: shapes, types, and all numbers that are needed below.

B, the people, and L, the items of the longest history of at most {about["max_length"]}, may be any numbers from 1. Rows
are padded on the right with {about["pad"]}. In Python, with numpy, polars, safetensors and {packages}:

```python
{code}```
{"" if about["denoising"] is None else _ABOUT_NOISE}"""


def _signature(graph: dict[str, Any]) -> str:
    """Its inputs and outputs with their shapes, as a sentence has them."""
    sides = (
        ", ".join(f"`{name}` ({', '.join(map(str, each['shape']))})" for name, each in graph[side].items())
        for side in ("inputs", "outputs")
    )
    return " -> ".join(sides) + "."
