"""`push`: a run as a model repository on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

from rediffuse.arguments import require_flag, require_text, wrong_type
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.runs.card import THIS_RUN
from rediffuse.runs.hub import LOGIN, REPO, SCHEME, explained
from rediffuse.runs.run_folder import MANIFEST, Run, RunContents, manifest_text, read_manifest, read_run, run_path
from rediffuse.runs.without_users import CARD, files_without_users


def push(
    run: str | Path | Run,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    with_histories: bool = False,
) -> str:
    """Upload a run to the Hugging Face hub, from where ``rd.Recommender.load("hf://user/name")`` reads it.

    The files that the manifest lists are uploaded, in one commit; checkpoints are not. By default the copy holds no
    users: neither their ids, nor their histories, nor results per user. It answers ``histories=`` as the run does, and
    knows no user. The catalogue, with its training counts, is part of it.

    Args:
        run: the run folder, or what `rediffuse.train` returned.
        repo: "user/name"; created if it does not exist.
        private: create it as a private one.
        revision: the branch; created if it does not exist. None: main.
        message: of the commit.
        with_histories: publish the ids and histories of all users too.

    Returns:
        The address of what was uploaded, "hf://user/name@commit".

    Raises:
        ConfigError: ``repo`` is not of the form user/name, there is no login, the weights hold users and
            ``with_histories`` is not set, or ``private`` is set and the repository is public.
        RunError: the run cannot be read, or was written to meanwhile; the hub refuses or cannot be reached.

    Warns:
        RediffuseWarning: what is published of users, or which files are left out.
    """
    folder = run_path("run", run)
    if not isinstance(repo, str):
        raise wrong_type("repo", repo, "text", 'For example: repo="user/name".')
    if not re.fullmatch(REPO, repo.removeprefix(SCHEME)):
        raise ConfigError(f"{repo!r} is not the name of a repository.", 'Write it as "user/name".')
    repo = repo.removeprefix(SCHEME)
    private, with_histories = require_flag("private", private), require_flag("with_histories", with_histories)
    revision, message = require_text("revision", revision), require_text("message", message)
    contents = read_run(folder)
    files = _published(contents, repo, with_histories)

    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if huggingface_hub.get_token() is None:
        raise ConfigError("There is no login for the Hugging Face hub.", LOGIN)
    api = huggingface_hub.HfApi()
    with explained(repo, revision):
        api.create_repo(repo, private=private or None, exist_ok=True)
        # The visibility of a repository that exists already is left alone.
        if private and not api.repo_info(repo).private:
            raise ConfigError(f"{repo} exists and is public.", "Make it private on the hub, or choose another name.")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        stale = set(api.list_repo_files(repo, revision=revision)) - {*files, ".gitattributes"}
        operations = [
            CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
            for name, content in files.items()
        ]
        commit = api.create_commit(
            repo,
            [*operations, *(CommitOperationDelete(name) for name in sorted(stale))],
            commit_message=message or f"{contents.config['model']} run of Rediffuse",
            revision=revision,
        )
    if read_manifest(contents.path)["files"] != contents.digests:
        raise RunError(f"{folder} was written to while it was uploaded.", "Push it again.")
    return f"{SCHEME}{repo}@{commit.oid}"


def _published(contents: RunContents, repo: str, with_histories: bool) -> dict[str, Path | bytes]:
    """What is uploaded: the path or the content of each file, with a manifest of its own."""
    folder, digests = contents.path, dict(contents.digests)
    users = len(contents.user_ids)
    if not with_histories:
        files, left_out = files_without_users(
            contents,
            f"{SCHEME}{repo}",
            "Publish a model that does not, or, if you may publish them, push with_histories (--with-histories).",
        )
        more = f" and {', '.join(left_out)}" if left_out else ""
        warnings.warn(
            f"The ids and histories of {users:,} users{more} stay here. The copy recommends for histories= and knows "
            "no user.",
            RediffuseWarning,
            stacklevel=3,
        )
        return files
    warnings.warn(f"The ids and histories of {users:,} users are published.", RediffuseWarning, stacklevel=3)
    changed: dict[str, bytes] = {}
    if (folder / CARD).exists():
        text = (folder / CARD).read_text(encoding="utf-8").replace(f'"{THIS_RUN}"', f'"{SCHEME}{repo}"')
        changed[CARD] = text.encode()
    digests |= {name: hashlib.sha256(content).hexdigest() for name, content in changed.items()}
    files = {name: folder / name for name in digests}
    return files | changed | {MANIFEST: manifest_text(digests).encode()}
