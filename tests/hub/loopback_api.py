"""The endpoints of the loopback Hub for accounts, repositories, their files, branches and tags; all but commits."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from loopback_cards import check_card, eval_results, read_metadata
from loopback_http import Answer, Request, json_answer
from loopback_store import MAIN, Blob, Commit, HubError, Repo

if TYPE_CHECKING:
    from loopback import LoopbackHub

EXPANDABLE = set(
    """author baseModels cardData childrenModelCount citation config createdAt description disabled downloads
    downloadsAllTime evalResults gated gguf inference inferenceProviderMapping lastModified library_name likes mask_token
    model-index paperswithcode_id pipeline_tag private resourceGroup safetensors sha siblings spaces tags
    transformersInfo trendingScore usedStorage widgetData mainSize""".split()
)


# ---- accounts and repositories ----


def whoami(hub: LoopbackHub, request: Request) -> Answer:
    """Say whose token it is and what it may do."""
    if request.caller is None:
        raise HubError(401, "Invalid username or password.")
    user, token = request.caller.user, {"displayName": "loopback", "role": request.caller.role}
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in user.orgs]
    auth = {"type": "access_token", "accessToken": token}
    return json_answer(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}
    )


def _named(request: Request) -> tuple[dict[str, Any], str, str]:
    """Return payload, type and full name of the repository that a create or delete names."""
    if request.caller is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    payload = request.json()
    namespace = payload.get("organization") or request.caller.user.name
    return payload, payload.get("type") or "model", f"{namespace}/{payload.get('name')}"


def create_repo(hub: LoopbackHub, request: Request) -> Answer:
    """Create a repository with its first commit; one that exists is a 409 that names its address."""
    payload, repo_type, repo_id = _named(request)
    namespace = repo_id.partition("/")[0]
    message = f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}".'
    hub.store.check_write(request.caller, namespace, message)
    private = payload.get("visibility", "private" if payload.get("private") else "public") == "private"
    try:
        repo = hub.store.create(repo_type, repo_id, request.caller.user.name, private)
    except HubError as error:
        if error.status == 409:
            error.body["url"] = f"{hub.endpoint}/{hub.store.repos[(repo_type, repo_id)].url_path}"
        raise
    return json_answer({"url": f"{hub.endpoint}/{repo.url_path}", "name": repo_id, "id": repo_id})


def delete_repo(hub: LoopbackHub, request: Request) -> Answer:
    """Delete a repository."""
    _, repo_type, repo_id = _named(request)
    hub.store.find_for_writing(repo_type, repo_id, request.caller)
    del hub.store.repos[(repo_type, repo_id)]
    return json_answer({})


def settings(hub: LoopbackHub, request: Request, kind: str, repo: str) -> Answer:
    """Change who may see a repository."""
    found, payload = hub.store.find_for_writing(kind, repo, request.caller), request.json()
    found.gated = payload.get("gated", found.gated)
    if "visibility" in payload:
        found.private = payload["visibility"] == "private"
    return json_answer({"gated": found.gated, "private": found.private})


def auth_check(hub: LoopbackHub, request: Request, kind: str, repo: str, write: str | None) -> Answer:
    """Say whether the caller may read (or write) a repository's files."""
    (hub.store.find_for_writing if write else hub.store.find_for_files)(kind, repo, request.caller)
    return json_answer({})


def validate_yaml(hub: LoopbackHub, request: Request) -> Answer:
    """Check the metadata of a card: 400 with the errors, or 200 with the warnings."""
    payload = request.json()
    errors, warnings = check_card(payload.get("content", ""), payload.get("repoType", "model"))
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_answer(answer, 400 if errors else 200)


# ---- reading ----


def _file_fields(blob: Blob, sha: str = "oid") -> dict[str, Any]:
    """Return what the Hub says about a file's content; `sha` is how this endpoint calls an object's SHA-256."""
    lfs_fields = {sha: blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return {"size": len(blob.data)} | ({"lfs": lfs_fields} if blob.lfs else {})


def _read_config(data: bytes) -> dict[str, Any]:
    """Return a config.json; one that is no JSON object says nothing."""
    try:
        config = json.loads(data)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _describe(repo: Repo, commit: Commit, blobs: bool) -> dict[str, Any]:
    """Return everything the Hub tells about a repository at a commit."""
    read = {path: blob.data for path, blob in commit.files.items()}
    card = read_metadata(read.get("README.md", b"").decode("utf-8", "replace"))
    config = _read_config(read.get("config.json", b"{}"))
    siblings = [
        {"rfilename": path} | ({"blobId": blob.oid, **_file_fields(blob, "sha256")} if blobs else {})
        for path, blob in commit.files.items()
    ]
    many = {name: value if isinstance(value, list) else [value] for name, value in card.items()}
    tags = [card["library_name"]] if "library_name" in card else []
    tags += [*many.get("tags", []), *many.get("language", [])]
    tags += [f"dataset:{name}" for name in many.get("datasets", [])]
    tags += [f"base_model:{name}" for name in many.get("base_model", [])]
    tags += [f"license:{name}" for name in many.get("license", [])]
    described = {
        "_id": hashlib.sha1(repo.url_path.encode()).hexdigest()[:24],
        "id": repo.repo_id,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(dict.fromkeys(map(str, tags))),
        "cardData": card,
        "siblings": siblings,
        "usedStorage": sum(map(len, repo.objects.values())),
    }
    if repo.repo_type == "model":
        described["config"] = {
            name: config[name] for name in ("architectures", "model_type", "auto_map") if name in config
        }
        described |= {name: card[name] for name in ("library_name", "pipeline_tag", "model-index") if name in card}
        described |= {
            "modelId": repo.repo_id,
            "baseModels": many.get("base_model", []),
            "evalResults": eval_results(read),
        }
    return described


def repo_info(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str | None) -> Answer:
    """Tell about a repository at a revision; `expand` chooses the fields."""
    found = hub.store.find(kind, repo, request.caller)
    described = _describe(found, found.resolve(revision or MAIN), request.flag("blobs"))
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    if unknown := sorted(set(wanted) - EXPANDABLE):
        raise HubError(400, f'"expand" must be one of [{", ".join(sorted(EXPANDABLE))}], not {unknown}')
    left_out = {"evalResults", "baseModels"}
    names = ["_id", "id", *wanted] if wanted else [name for name in described if name not in left_out]
    return json_answer({name: described[name] for name in names if name in described})


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any] | None:
    """Return what a tree says about a path: a file, a folder, or nothing."""
    if path in commit.files:
        blob = commit.files[path]
        entry = {"type": "file", "path": path, "oid": blob.oid, **_file_fields(blob)}
    else:
        inside = [(name, blob.oid) for name, blob in commit.files.items() if name.startswith(f"{path}/")]
        if not inside:
            return None
        entry = {"type": "directory", "path": path, "oid": hashlib.sha1(repr(inside).encode()).hexdigest(), "size": 0}
    if expand:
        last = repo.last_change(commit, path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entry


def _missing(path: str, commit: Commit) -> HubError:
    """Return the error of a file that a revision does not hold; the commit lets clients remember it."""
    return HubError(404, f"Entry not found: {path}", "EntryNotFound", headers={"X-Repo-Commit": commit.oid})


def tree(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str, path: str | None) -> Answer:
    """List a folder, with `recursive` everything below it."""
    found = hub.store.find(kind, repo, request.caller)
    commit, prefix = found.resolve(revision), f"{path.strip('/')}/" if path else ""
    below = [name[len(prefix) :].split("/") for name in commit.files if name.startswith(prefix)]
    if prefix and not below:
        raise _missing(path or "", commit)
    depths = {tuple(parts[:n]) for parts in below for n in range(1, len(parts) + 1)}
    names = sorted(prefix + "/".join(parts) for parts in depths if request.flag("recursive") or len(parts) == 1)
    return json_answer([_entry(found, commit, name, request.flag("expand")) for name in names])


def paths_info(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str) -> Answer:
    """Tell about the given paths; those that do not exist are left out."""
    found, payload = hub.store.find(kind, repo, request.caller), request.json()
    commit, expand = found.resolve(revision), str(payload.get("expand", [""])).lower().find("true") >= 0
    entries = (_entry(found, commit, path.strip("/"), expand) for path in payload.get("paths", []))
    return json_answer([entry for entry in entries if entry is not None])


def _range(header: str, size: int) -> tuple[int, int]:
    """Return first and last byte of a `Range` header."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match[0] == "bytes=-":
        raise HubError(400, f"Range not understood: {header}")
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last), size - 1) if last else size - 1


def resolve(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str, path: str) -> Answer:
    """Serve a file, or a range of it."""
    found = hub.store.find_for_files(kind, repo, request.caller)
    commit = found.resolve(revision)
    if path not in commit.files:
        raise _missing(path, commit)
    blob = commit.files[path]
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{blob.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f'inline; filename="{path.rpartition("/")[2]}"',
    }
    if blob.lfs:
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
    if request.headers.get("Range") is None:
        return Answer(blob.data, headers=headers)
    first, last = _range(request.headers["Range"], len(blob.data))
    if first > last:
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(blob.data)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.data)}"
    return Answer(blob.data[first : last + 1], 206, headers)


# ---- branches, tags, history ----


def refs(hub: LoopbackHub, request: Request, kind: str, repo: str) -> Answer:
    """List branches, tags and, if asked, pull requests."""
    found = hub.store.find(kind, repo, request.caller)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()]

    answer = {
        "branches": listed(found.branches, "refs/heads/"),
        "tags": listed(found.tags, "refs/tags/"),
        "converts": [],
    }
    if request.flag("include_prs"):
        answer["pullRequests"] = listed(found.pulls, "")
    return json_answer(answer)


def commits(hub: LoopbackHub, request: Request, kind: str, repo: str, revision: str) -> Answer:
    """List the commits that lead to a revision, newest first."""
    found = hub.store.find(kind, repo, request.caller)
    return json_answer(
        [
            {"id": c.oid, "title": c.title, "message": c.description, "date": c.date, "authors": [{"user": c.author}]}
            for c in found.log(revision)
        ]
    )


def branch(hub: LoopbackHub, request: Request, kind: str, repo: str, name: str) -> Answer:
    """Create or delete a branch."""
    found = hub.store.find_for_writing(kind, repo, request.caller)
    if request.method == "POST":
        if name in found.branches:
            raise HubError(409, f"Reference already exists: {name}")
        found.branches[name] = found.resolve(request.json().get("startingPoint", MAIN)).oid
    elif name == MAIN:
        raise HubError(403, "Forbidden: the main branch cannot be deleted.")
    elif found.branches.pop(name, None) is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return json_answer({})


def tag(hub: LoopbackHub, request: Request, kind: str, repo: str, name: str) -> Answer:
    """Create a tag (at the revision in the address) or delete it."""
    found = hub.store.find_for_writing(kind, repo, request.caller)
    if request.method == "POST":
        commit, new = found.resolve(name), request.json().get("tag", "")
        if not new or new in found.tags:
            raise HubError(
                409 if new else 400, f"Tag reference exists already: {new}" if new else "A tag needs a name."
            )
        found.tags[new] = commit.oid
    elif found.tags.pop(name, None) is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return json_answer({})


def nothing(hub: LoopbackHub, request: Request) -> Answer:
    """Answer what clients ask at best effort: telemetry and the like."""
    return json_answer({})
