"""Pushing to the Hub: everything is checked first, then one commit. What fails says why and leaves both ends as they were.

A commit is atomic, while `upload_folder` may upload a folder in several, so files are committed with `create_commit`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, errors
from huggingface_hub.utils import validate_repo_id

from hf_distill.hub.export import export_student

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_LOGIN = (
    "Log in with `hf auth login`, or set HF_TOKEN to a token with write permission (huggingface.co/settings/tokens)."
)
_AGAIN = "Nothing was published and the local files are as they were; give the same command again."
# Files of an older student that would be loaded, or shown as results, beside the new one.
_OURS = re.compile(
    r"[^/]+\.(?:py|safetensors|safetensors\.index\.json|bin|pt|pth|pkl|ckpt)|\.eval_results/.*|\d+_\w+/.*|onnx/.*"
)


def push_student(
    run_or_folder: str | Path | SentenceTransformer,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload student",
    check: bool = True,
) -> str:
    """Exports a student, checks the folder, and publishes it in one commit.

    Args:
        run_or_folder: The folder of a run or of a student; see `export_student`.
        repo_id: `user/name`; created where it does not exist.
        private: Whether a new repository is private; an existing one must be so already.
        revision: Branch to commit to; created from the main one where it does not exist.
        commit_message: Title of the commit.
        check: Load the exported folder in a clean process first.

    Returns:
        The address of the model's page.

    Raises:
        ValueError: If the id, the run or the student is not fit to be published.
        FileNotFoundError: If there is no run, no model, no results, or no such repository.
        PermissionError: If nobody is logged in, or the token may not write there.
        ConnectionError: If the Hub cannot be reached or fails.

    Example:
        >>> push_student("runs/deltanet_minilm", "user/deltanet-minilm", private=True)
        'https://huggingface.co/user/deltanet-minilm'
    """
    repo_id = check_access(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf-distill-push-") as work:
        folder = export_student(run_or_folder, Path(work) / "student", check=check, repo_id=repo_id, revision=revision)
        repo_id = open_repo(repo_id, private=private)
        upload(folder, repo_id, revision=revision, commit_message=commit_message)
    return f"{HfApi().endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")


def check_access(repo_id: str, token: str | None = None) -> str:
    """Finds out, before any work, whether the token that is in use can write to a repository.

    Args:
        repo_id: `user/name`, or only the name.
        token: Another token than the one that is logged in.

    Returns:
        The full id.

    Raises:
        ValueError: If the id is malformed.
        PermissionError: If nobody is logged in, the token only reads, or the namespace is someone else's.
        ConnectionError: If the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    with hub_errors(repo_id):
        user = HfApi(token=token).whoami()
    namespace, _, name = repo_id.rpartition("/")
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    own = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if role == "read":
        raise PermissionError(f"{repo_id}: the token of {user['name']} may only read. {_LOGIN}")
    if namespace and namespace not in own and role == "write":  # a fine-grained token does not tell all it may do
        raise PermissionError(f"{repo_id}: {user['name']} may not write there, but to {', '.join(own)}.")
    return f"{namespace or user['name']}/{name}"


def check_repo_id(repo_id: str) -> None:
    """Refuses what cannot be the id of a model.

    Raises:
        ValueError: With an example of one.
    """
    try:
        validate_repo_id(repo_id)
    except errors.HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no id such as user/name: {error}") from error


def open_repo(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Creates a model repository, or finds the one that exists.

    Args:
        repo_id: Its id.
        private: Whether it must be private; `None` takes the account's default, or what is there.
        token: Another token than the one that is logged in.

    Returns:
        The full id.

    Raises:
        ValueError: If it exists and is public, though it should be private.
        PermissionError: If the token may not write there.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and api.model_info(repo_id).private is False:
            raise ValueError(
                f"{repo_id} exists and is public; nothing was pushed. Make it private in its settings on the Hub, choose "
                "another id, or leave out the wish for a private one."
            )
    return repo_id


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    commit_message: str = "Upload student",
    token: str | None = None,
) -> CommitInfo:
    """Makes a folder the content of a revision in one commit.

    Files of an older student that the folder lacks (code, weights, results) are deleted in the same commit; what else is
    in the repository stays.

    Args:
        folder: Scanned already.
        repo_id: An existing repository.
        revision: Branch to commit to; created where it does not exist.
        commit_message: Title of the commit.
        token: Another token than the one that is logged in.

    Returns:
        The commit.

    Raises:
        PermissionError: If the token may not write there.
        FileNotFoundError: If there is no such repository.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    api, folder = HfApi(token=token), Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with hub_errors(repo_id):
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = stale_files(api.list_repo_files(repo_id, revision=revision), files)
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        operations += [CommitOperationDelete(name) for name in stale]
        return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)


def stale_files(remote: Iterable[str], files: Iterable[str]) -> list[str]:
    """Files of an older student in a repository.

    Args:
        remote: What is there.
        files: What is pushed.

    Returns:
        What must go: code, weights, module folders and results that are not pushed again.
    """
    files = set(files)
    return [name for name in remote if name not in files and _OURS.fullmatch(name)]


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Says what a failed request to the Hub means and what to do.

    Args:
        repo_id: What it was about.

    Raises:
        PermissionError: Nobody is logged in, or the token may not do it.
        FileNotFoundError: There is no such repository or revision.
        ValueError: The Hub refuses the content, such as the card's metadata.
        ConnectionError: The Hub cannot be reached, or fails.
    """
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"{repo_id}: nobody is logged in on the Hub. {_LOGIN}") from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(f"{repo_id}: HF_HUB_OFFLINE is set. Unset it to push.") from error
    except errors.HTTPError as error:
        raise _explained(repo_id, error) from error
    except RuntimeError as error:  # of one file's upload; the request that failed is its cause
        raise _explained(repo_id, error.__cause__ or error, f" ({error})") from error


def _explained(repo_id: str, error: BaseException, detail: str = "") -> Exception:
    """The error that a user understands."""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status == 401:
        return PermissionError(f"{repo_id}: the Hub does not accept the token. {_LOGIN}")
    if status == 403:
        return PermissionError(f"{repo_id}: the token may not write there. {_AGAIN} {_LOGIN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no such revision on the Hub: {error}")
    if status == 404:
        return FileNotFoundError(
            f"{repo_id} does not exist on the Hub, or the token may not see it. Check the id. {_LOGIN}"
        )
    if status in (409, 412):
        return ConnectionError(f"{repo_id}: somebody else pushed at the same time. {_AGAIN}")
    if status in (400, 422):
        return ValueError(f"{repo_id}: the Hub refuses what was sent: {error}. Nothing was published.")
    said = f"answered {status}" if status else "cannot be reached"
    return ConnectionError(f"{repo_id}: the Hub {said}{detail}: {error}. {_AGAIN}")


__all__ = ["check_access", "check_repo_id", "hub_errors", "open_repo", "push_student", "stale_files", "upload"]
