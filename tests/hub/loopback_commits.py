"""How files get into the loopback Hub: the question how to upload each, and the commit of all changes or none."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from typing import TYPE_CHECKING, Any

from loopback_cards import check_card
from loopback_http import Answer, Request, json_answer
from loopback_store import Blob, HubError, Repo

if TYPE_CHECKING:
    from loopback import LoopbackHub

REGULAR_LIMIT = 10 * 2**20


def _is_lfs(path: str, sample: bytes, size: int, attributes: bytes) -> bool:
    """Return whether a file goes through LFS: by .gitattributes, by size, or because it is not text."""
    patterns = [line.split()[0] for line in attributes.decode().splitlines() if "filter=lfs" in line]
    name = path.rpartition("/")[2]
    if size > REGULAR_LIMIT or any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
        return True
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 3  # the sample may end within a character
    return b"\0" in sample


def _is_ignored(path: str, gitignore: str) -> bool:
    """Return whether a .gitignore (plain patterns, no negation) leaves a file out."""
    patterns = [line.strip() for line in gitignore.splitlines() if line.strip() and not line.startswith("#")]
    parts = path.split("/")
    return any(
        fnmatch.fnmatch(path, pattern.strip("/")) or any(fnmatch.fnmatch(part, pattern.strip("/")) for part in parts)
        for pattern in patterns
    )


def preupload(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str) -> Answer:
    """Say for every file how to upload it, whether to leave it out, and what is there now."""
    found, payload = hub.store.find_for_writing(kind, repo, request.caller), request.json()
    files, answers = found.resolve(revision).files, []
    attributes = files[".gitattributes"].data if ".gitattributes" in files else b""
    for asked in payload.get("files", []):
        path, sample = asked["path"], base64.b64decode(asked["sample"])
        mode = "lfs" if _is_lfs(path, sample, asked["size"], attributes) else "regular"
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": _is_ignored(path, payload.get("gitIgnore", ""))}
        answers.append(answer | ({"oid": files[path].etag} if path in files else {}))
    return json_answer({"files": answers, "commitOid": found.resolve(revision).oid})


def _apply(repo: Repo, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
    """Apply one line of a commit to `files`."""
    path = value.get("path", "")
    if not path or path.startswith("/") or {"..", "", ".git"} & set(path.rstrip("/").split("/")):
        raise HubError(400, f"Invalid path: {path!r}")
    if key == "file":
        try:
            data = base64.b64decode(value["content"], validate=True)
        except (KeyError, binascii.Error) as error:
            raise HubError(400, f"{path}: the content is not base64.") from error
        if len(data) > REGULAR_LIMIT:
            raise HubError(400, f"{path} is larger than 10 MiB: use LFS.")
        if path == "README.md":
            errors, _ = check_card(data.decode("utf-8", "replace"), repo.repo_type)
            if errors:
                raise HubError(400, "Invalid metadata in README.md. " + "; ".join(errors))
        files[path] = Blob(data)
    elif key == "lfsFile":
        if value.get("oid") not in repo.objects:
            raise HubError(400, f"{path}: an LFS pointer pointed to a file that does not exist.")
        files[path] = Blob(repo.objects[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        prefix = f"{path.rstrip('/')}/"
        gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(prefix))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")


def commit(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str) -> Answer:
    """Commit all changes or none."""
    found = hub.store.find_for_writing(kind, repo, request.caller)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
        raise HubError(400, "A commit begins with a header that has a summary.")
    header, head, pull = lines[0]["value"], found.resolve(revision), request.flag("create_pr")
    if header.get("parentCommit") not in (None, head.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    if not pull and revision not in found.branches and revision not in found.pulls:
        raise HubError(400, f"{revision} is not a branch: commits go to branches.")
    files = dict(head.files)
    for line in lines[1:]:
        _apply(found, files, line["key"], line["value"])
    number = len(found.pulls) + 1
    ref = f"refs/pr/{number}" if pull else revision
    if pull:
        found.pulls[ref] = head.oid
    made = found.put(ref, files, header["summary"], header.get("description", ""), request.caller.user.name)
    url = f"{hub.endpoint}/{found.url_path}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", "hookOutput": ""}
    return json_answer(answer | ({"pullRequestUrl": f"{url}/discussions/{number}"} if pull else {}))
