"""What the loopback Hub keeps in memory: users with tokens, repositories with commits, branches, tags, LFS objects.

Nothing here knows HTTP; what a caller may not do is a `HubError` with the status and code the real Hub answers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Literal

MAIN = "main"
REPO_TYPES = {"models": "model", "datasets": "dataset"}
_COUNTER = itertools.count()
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]{0,94}[A-Za-z0-9_])?")
_LFS_SUFFIXES = ("safetensors", "bin", "parquet", "arrow", "onnx", "pt", "pth", "npz", "npy", "zip", "gz", "xz", "tar")
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES).encode()


class HubError(Exception):
    """An answer of 400 and more.

    Args:
        status: HTTP status.
        message: What the client shows (`X-Error-Message`).
        code: `X-Error-Code`, by which the client chooses its exception.
        body: More fields of the JSON body.
        headers: More headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body, self.headers = (
            status,
            message,
            code,
            body or {},
            headers or {},
        )


def new_token() -> str:
    """Return a token that looks like a real one, made at run time so that no file ever holds one."""
    return "hf_" + secrets.token_hex(17)


@dataclass(frozen=True)
class User:
    """An account: `token` may write, `read_token` only read; `orgs` are namespaces it writes to beside its own."""

    name: str
    orgs: tuple[str, ...] = ()
    token: str = field(default_factory=new_token, repr=False)
    read_token: str = field(default_factory=new_token, repr=False)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Return where this user's repositories are."""
        return (self.name, *self.orgs)


@dataclass(frozen=True)
class Caller:
    """Who sent a request, with the rights of the token it was sent with."""

    user: User
    role: Literal["read", "write"]


@dataclass(frozen=True)
class Blob:
    """A file's content, held by git itself or through LFS."""

    data: bytes = field(repr=False)
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the content, the name of an LFS object."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """Return what git holds in place of an LFS object."""
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def oid(self) -> str:
        """Return git's id of what git holds."""
        held = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        """Return the id by which clients cache the content."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One commit with all its files."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: dict[str, Blob] = field(repr=False)

    def read(self, path: str) -> bytes:
        """Return the content of a file of this commit."""
        return self.files[path].data


def now() -> str:
    """Return the time as the Hub writes it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Repo:
    """A repository: commits by id, and the names that point to them."""

    repo_id: str
    repo_type: str
    author: str
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    granted: set[str] = field(default_factory=set)
    created: str = field(default_factory=now)
    history: dict[str, Commit] = field(default_factory=dict, repr=False)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.put(MAIN, {".gitattributes": Blob(GITATTRIBUTES)}, "initial commit", "", self.author)

    @property
    def namespace(self) -> str:
        """Return the user or organisation that owns it."""
        return self.repo_id.partition("/")[0]

    @property
    def url_path(self) -> str:
        """Return its path on the Hub."""
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    def resolve(self, revision: str) -> Commit:
        """Return the commit of a branch, tag, pull request, or (shortened) commit id."""
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return self.history[names[revision]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            found = [commit for oid, commit in self.history.items() if oid.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def put(self, ref: str, files: dict[str, Blob], title: str, description: str, author: str) -> Commit:
        """Add a commit of `files` on a branch or pull request; the ref is made if it is new and `history` is empty."""
        refs = self.pulls if ref.startswith("refs/pr/") else self.branches
        parent, date = refs.get(ref), now()
        content = [(path, blob.oid) for path, blob in sorted(files.items())]
        made = json.dumps([parent, content, title, description, author, date, next(_COUNTER)])
        oid = hashlib.sha1(made.encode()).hexdigest()
        self.history[oid] = Commit(oid, parent, title, description, author, date, dict(sorted(files.items())))
        refs[ref] = oid
        return self.history[oid]

    def log(self, revision: str) -> list[Commit]:
        """Return the commits that lead to a revision, newest first."""
        commits, commit = [], self.resolve(revision)
        while True:
            commits.append(commit)
            if commit.parent is None:
                return commits
            commit = self.history[commit.parent]

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the commit that gave a file or folder the content it has in `commit`."""

        def held(at: Commit) -> list[tuple[str, str]]:
            return [(p, blob.oid) for p, blob in at.files.items() if p == path or p.startswith(f"{path}/")]

        changed = commit
        for older in self.log(commit.oid)[1:]:
            if held(older) != held(commit):
                return changed
            changed = older
        return changed


@dataclass
class Store:
    """Users and repositories, and who may do what."""

    users: dict[str, User]
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)

    def authenticate(self, header: str | None) -> Caller | None:
        """Return the caller of an `Authorization` header, `None` without one; a wrong token is refused."""
        if not header:
            return None
        token = header.removeprefix("Bearer ").strip()
        for user in self.users.values():
            if token in (user.token, user.read_token):
                return Caller(user, "write" if token == user.token else "read")
        raise HubError(401, "Invalid credentials in Authorization header")

    def find(self, repo_type: str, repo_id: str, caller: Caller | None) -> Repo:
        """Return a repository that the caller may see; another's private one looks like one that does not exist."""
        repo = self.repos.get((repo_type, repo_id))
        hidden = repo is None or (repo.private and (caller is None or repo.namespace not in caller.user.namespaces))
        if repo is None or hidden:
            raise HubError(404 if caller else 401, "Repository not found", "RepoNotFound")
        return repo

    def find_for_files(self, repo_type: str, repo_id: str, caller: Caller | None) -> Repo:
        """Return a repository whose files the caller may read: gated ones only by owner or grant."""
        repo = self.find(repo_type, repo_id, caller)
        if repo.gated and (caller is None or not {repo.namespace, *repo.granted} & set(caller.user.namespaces)):
            message = f"Access to {repo_type} {repo_id} is restricted and you are not in the authorized list."
            raise HubError(403 if caller else 401, message, "GatedRepo")
        return repo

    def find_for_writing(self, repo_type: str, repo_id: str, caller: Caller | None) -> Repo:
        """Return a repository that the caller may change."""
        repo = self.find(repo_type, repo_id, caller)
        if caller is None:
            # the client turns a 401 of the real host into RepositoryNotFoundError; for another host it needs the code
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        self.check_write(caller, repo.namespace, "Authorization error.")
        return repo

    def check_write(self, caller: Caller, namespace: str, message: str) -> None:
        """Refuse a caller who may not write in a namespace."""
        if namespace not in caller.user.namespaces:
            raise HubError(403, f"Forbidden: {message}")
        if caller.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")

    def create(self, repo_type: str, repo_id: str, author: str, private: bool, **settings: Any) -> Repo:
        """Add a repository.

        Raises:
            HubError: 400 for a bad name, 409 (with the existing one in `repo`) if there is one.
        """
        namespace, _, name = repo_id.partition("/")
        if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name)):
            raise HubError(400, f"Invalid repo name: {repo_id}")
        if repo_type not in REPO_TYPES.values():
            raise HubError(400, f"Invalid repo type: {repo_type}")
        if (repo_type, repo_id) in self.repos:
            raise HubError(409, f"You already created this {repo_type} repo: {repo_id}")
        repo = Repo(repo_id, repo_type, author, private=private, **settings)
        self.repos[(repo_type, repo_id)] = repo
        return repo
