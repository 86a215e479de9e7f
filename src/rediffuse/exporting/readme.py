"""The README.md of an export: its files, and the complete inference code."""

from __future__ import annotations

from typing import Any

from rediffuse.exporting.graphs import EXTERNAL

_IMPORTS = {
    "onnx": """import onnxruntime
import polars as pl
from safetensors.numpy import load_file


def load_graph(name):
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    return lambda **inputs: session.run(None, inputs)
""",
    "torch-export": """import polars as pl
import torch
from safetensors.numpy import load_file


def load_graph(name):
    network, names = torch.export.load(f"{name}.pt2").module(), export["graphs"][name]["inputs"]

    def run(**inputs):
        with torch.no_grad():
            outputs = network(*(torch.from_numpy(inputs[each]) for each in names))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return run
""",
}

_WINDOWS = """
export = json.loads(Path("export.json").read_text(encoding="utf-8"))
tensors, items = load_file("items.safetensors"), pl.read_parquet("items.parquet")
histories = [[3, 1, 2], [0]]  # item numbers of items.parquet, oldest first; at least one per user

recent = [history[-export["max_length"] :] for history in histories]
lengths = np.array([len(row) for row in recent], dtype=np.int64)
windows = np.full((len(recent), lengths.max()), export["pad"], dtype=np.int64)
for window, row in zip(windows, recent):
    window[: len(row)] = row
"""

_ENCODED = """(query,) = load_graph("history")(items=windows, lengths=lengths)
"""

_DENOISED = """
normal = np.random.default_rng(0).standard_normal
encoded = dict(zip(export["graphs"]["history"]["outputs"], load_graph("history")(items=windows, lengths=lengths)))
denoise, x = load_graph("step"), normal((len(recent), export["embedding_size"]), dtype=np.float32)
for step in export["denoising"]["steps"]:
    t, noise = np.full(len(recent), step["t"], dtype=np.int64), normal(encoded["z"].shape, dtype=np.float32)
    (x0_hat,) = denoise(**encoded, lengths=lengths, x_t=x, t=t, noise=noise)
    x = step["x0_hat"] * x0_hat + step["x_t"] * x + step["noise"] * normal(x.shape, dtype=np.float32)
query = x
"""

# A further input of the graph of a step -> what it changes in the code above.
_FURTHER = {
    "estimate": (
        ("for step in", "x0_hat = np.zeros_like(x)  # no estimate yet\nfor step in"),
        ("noise=noise", "noise=noise, estimate=x0_hat"),
    ),
    "noise_alone": (
        ("    (x0_hat,) =", "    alone = normal(x.shape, dtype=np.float32)\n    (x0_hat,) ="),
        ("noise=noise", "noise=noise, noise_alone=alone"),
    ),
}

_COSINE = """query = x / np.linalg.norm(x, axis=1, keepdims=True) * export["metric"]["temperature"] ** -0.5
"""

_RANKED = """
scores = query @ tensors["vectors"].T
for score, row, history in zip(scores, recent, histories):
    score[np.unique(row)] += export["repeat_bias"] or 0.0
    score[history] = -np.inf  # filter seen items
best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
print([items["item_id"].gather(row).to_list() for row in best])
"""

_NOISE = """
Each step uses {drawn} standard normal draws: `noise`{and_alone} of the graph, and the draw that is added to the
state. Any generator works. Rediffuse draws from `rediffuse.diffusion.noise.RowNoise(row_keys(windows, lengths), seed)`:
first the initial state; then for each step the {inputs} and, if `noise` of that step in export.json is not 0, the draw
that is added. With these draws, the lists equal those of Rediffuse.
"""


def readme(description: dict[str, Any]) -> str:
    """Write the text of an export's README.

    Args:
        description: the content of its export.json.
    """
    query, noise = _ENCODED, ""
    if description["denoising"] is not None:
        further = [name for name in _FURTHER if name in description["graphs"]["step"]["inputs"]]
        query = _DENOISED
        for found, replacement in (change for name in further for change in _FURTHER[name]):
            query = query.replace(found, replacement)
        if description["metric"]["temperature"] is not None:
            query = query.replace("query = x\n", _COSINE)
        guided = "noise_alone" in further
        noise = _NOISE.format(
            drawn="three" if guided else "two",
            and_alone=" and `noise_alone`, inputs" if guided else ", an input",
            inputs="inputs `noise` and `noise_alone`" if guided else "input `noise`",
        )
    packages = {"onnx": "onnxruntime", "torch-export": "torch"}[description["format"]]
    code = "import json\nfrom pathlib import Path\n\nimport numpy as np\n"
    code += _IMPORTS[description["format"]] + "\n" + _WINDOWS + query + _RANKED
    graphs = "\n".join(
        f"- `{graph['file']}`: {_signature(graph)}{_weights(graph['file'] + EXTERNAL, description)}"
        for graph in description["graphs"].values()
    )
    return f"""# {description["model"]}, exported by Rediffuse {description["rediffuse"]}

{graphs}
- `items.safetensors`: `vectors` ({description["num_items"]}, {description["embedding_size"]}), whose inner products
  with a query are the scores, and `popularity`, the scores for users without a history.
- `items.parquet`: the number and the id of each item.
- `export.json`: the shapes and types of the graphs, all numbers that the code below needs, and the sha256 of each file.

B is the number of users, L the length of the longest history, at most {description["max_length"]}; both may be any
number from 1. Histories are padded on the right with {description["pad"]}. This Python code needs numpy, polars,
safetensors and {packages}:

```python
{code}```
{noise}"""


def _weights(file: str, description: dict[str, Any]) -> str:
    """Where the weights of a graph are, if they are in a file of their own."""
    return f" Its weights are in `{file}`, which must be in the same folder." if file in description["files"] else ""


def _signature(graph: dict[str, Any]) -> str:
    """Write the inputs and outputs of a graph with their shapes."""
    sides = (
        ", ".join(f"`{name}` ({', '.join(map(str, tensor['shape']))})" for name, tensor in graph[side].items())
        for side in ("inputs", "outputs")
    )
    return " -> ".join(sides) + "."
