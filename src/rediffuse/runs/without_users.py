"""A run without its users, which recommends for the histories that requests bring."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from rediffuse.arguments import require_path
from rediffuse.errors import ConfigError, RunError
from rediffuse.files import atomic_folder, parquet_bytes, storage_error
from rediffuse.models.base import Model
from rediffuse.runs.card import THIS_RUN, with_section
from rediffuse.runs.lock import is_unused
from rediffuse.runs.run_folder import MANIFEST, Run, RunContents, manifest_text, read_manifest, read_run, run_path
from rediffuse.table_files import read_parquet

USERS, CARD = "users.parquet", "README.md"
# Files that hold no user.
_WITHOUT_USERS = re.compile(
    r"config\.json|environment\.json|items\.parquet|item_table\.parquet|model\.safetensors|README\.md|metrics\.jsonl"
    r"|knowledge\.parquet|index\.(json|faiss)|item_features\.(json|safetensors)|test[\w.:-]*\.json"
)


def write_without_users(run: str | Path | Run, out: str | Path) -> dict[str, Any]:
    """Copy a run without its users: neither their ids, nor their histories, nor results per user.

    The copy answers ``histories=`` as the run does, and knows no user. Its size does not depend on their number.

    Args:
        run: the run folder, or what `rediffuse.train` returned.
        out: the folder of the copy, which must be new or empty.

    Returns:
        run, out, model, users (how many the copy leaves out), left_out (the files that are not in it), and the size of
        each file in bytes.

    Raises:
        ConfigError: the weights of the model hold its users.
        RunError: ``run`` cannot be read, or was written to meanwhile; ``out`` is not empty.
        StorageError: ``out`` cannot be written.
    """
    folder = run_path("run", run)
    out = require_path("out", out, 'Name a folder for the copy: out="runs/serving".')
    if not is_unused(out):
        raise RunError(f"{out} is not empty.", "Choose another folder.")
    contents = read_run(folder)
    files, left_out = files_without_users(contents, None, "Serve this run itself.")
    try:
        with atomic_folder(out) as new:
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, new / name)
                else:
                    (new / name).write_bytes(content)
            if read_manifest(folder)["files"] != contents.digests:
                raise RunError(f"{folder} was written to while it was copied.", "Copy it again.")
    except OSError as error:
        raise storage_error(f"{out} cannot be written", error) from error
    return {
        "run": str(run),
        "out": str(out),
        "model": contents.config["model"],
        "users": len(contents.user_ids),
        "left_out": left_out,
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
    }


def files_without_users(
    contents: RunContents, address: str | None, remedy: str
) -> tuple[dict[str, Path | bytes], list[str]]:
    """What a copy of a run without users consists of.

    Args:
        contents: the run.
        address: where the copy will be, for its model card; None: any folder.
        remedy: what to do if the weights hold the users.

    Returns:
        The path or the content of each file, with a manifest, and the names of the files that are left out.

    Raises:
        ConfigError: the weights hold users.
    """
    if _holds_users(contents.model):
        raise ConfigError(
            f"The weights of {contents.config['model']} hold the vectors or interactions of its "
            f"{contents.config['data']['users']:,} users.",
            remedy,
        )
    folder, digests = contents.path, contents.digests
    kept = {name: digest for name, digest in digests.items() if _WITHOUT_USERS.fullmatch(name)}
    left_out = sorted(digests.keys() - kept.keys() - {USERS})
    changed = {USERS: parquet_bytes(read_parquet(folder / USERS).clear())}
    if (folder / CARD).exists():
        text = (folder / CARD).read_text(encoding="utf-8")
        if address is not None:
            text = text.replace(f'"{THIS_RUN}"', f'"{address}"')
        lines = ["This copy holds no users: give their histories, `recommend(histories=[[...]])`."]
        changed[CARD] = with_section(text, "Users", lines).encode()
    kept |= {name: hashlib.sha256(content).hexdigest() for name, content in changed.items()}
    paths: dict[str, Path | bytes] = {name: folder / name for name in kept}
    return paths | changed | {MANIFEST: manifest_text(kept).encode()}, left_out


def _holds_users(model: Model) -> bool:
    """Whether the weights hold users; so they may where a class from elsewhere only inherits that they do not."""
    kind = type(model)
    own = kind.__module__.startswith("rediffuse.") or "holds_users" in vars(kind)
    return model.holds_users or not own
