"""A Hugging Face Hub on 127.0.0.1, in memory, that the real `huggingface_hub` client can be pointed at.

It knows models and data sets: creating and deleting, uploads (regular and LFS), commits, revisions, files with ranges,
access rights, gated repositories, and failures on demand. Xet is off: the client must be told so (`env()` does).

Example:
    ```python
    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "upload.py"], env=hub.env(), check=True)
        assert "config.json" in hub.files("user/student")
    ```
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import traceback
from types import TracebackType
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import loopback_api as api
import loopback_commits as commits
import loopback_lfs as lfs
from loopback_http import CUT, Answer, Request, Server, error_answer
from loopback_store import MAIN, REPO_TYPES, Blob, Commit, HubError, Repo, Store, User

__all__ = ["CUT", "LoopbackHub", "User"]

_API = rf"/api/(?P<kind>{'|'.join(REPO_TYPES)})/(?P<repo>[^/]+(?:/[^/]+)?)"
_GIT = r"/(?P<kind>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)"
_REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", api.whoami),
    ("POST", "/api/repos/create", api.create_repo),
    ("DELETE", "/api/repos/delete", api.delete_repo),
    ("POST", "/api/validate-yaml", api.validate_yaml),
    ("GET HEAD", r"/api/(?:telemetry/.*|agent-harnesses)", api.nothing),
    ("PUT", f"{_API}/settings", api.settings),
    ("GET", f"{_API}/auth-check(?P<write>/write)?", api.auth_check),
    ("POST", f"{_API}/preupload/{_REVISION}", commits.preupload),
    ("POST", f"{_API}/commit/{_REVISION}", commits.commit),
    ("GET", f"{_API}/tree/{_REVISION}(?:/(?P<path>.*))?", api.tree),
    ("POST", f"{_API}/paths-info/{_REVISION}", api.paths_info),
    ("GET", f"{_API}/refs", api.refs),
    ("GET", f"{_API}/commits/{_REVISION}", api.commits),
    ("POST DELETE", f"{_API}/branch/(?P<name>.+)", api.branch),
    ("POST DELETE", f"{_API}/tag/(?P<name>.+)", api.tag),
    ("GET", f"{_API}(?:/revision/{_REVISION})?", api.repo_info),
    ("POST", rf"{_GIT}\.git/info/lfs/objects/batch", lfs.batch),
    ("POST", rf"{_GIT}\.git/info/lfs/verify", lfs.verify),
    ("PUT", "/lfs-upload/(?P<upload>[^/]+)", lfs.put),
    ("PUT", r"/lfs-upload/(?P<upload>[^/]+)/(?P<number>\d+)", lfs.put_part),
    ("POST", "/lfs-upload/(?P<upload>[^/]+)/complete", lfs.complete),
    ("GET HEAD", f"{_GIT}/resolve/{_REVISION}/(?P<path>.+)", api.resolve),
]

# The client reads these when it is imported; whatever a developer has set must not reach it.
_FOREIGN = re.compile(
    r"(HF_|HUGGING|TRANSFORMERS_|SENTENCE_TRANSFORMERS_|DATASETS_).*|(https?|all|no)_proxy", re.IGNORECASE
)
_NOWHERE = "http://127.0.0.1:9"


class Seen(NamedTuple):
    """A request the Hub answered."""

    method: str
    path: str
    status: int


class LoopbackHub:
    """The Hub. Use it as a context manager; nothing is left behind.

    Attributes:
        endpoint: Its address, for `HF_ENDPOINT`.
        users: By name: `user` (also in the organisation `org`) and `other`, each with `token` and `read_token`.
        user: The user that `token` and `env()` mean.
        requests: Every request so far.
        part_size: LFS objects above this many bytes are uploaded in parts.
    """

    def __init__(self) -> None:
        self.user = "user"
        self.users = {user.name: user for user in (User("user", orgs=("org",)), User("other"))}
        self.store = Store(self.users)
        self.uploads: dict[str, lfs.Upload] = {}
        self.requests: list[Seen] = []
        self.part_size = 64 * 2**20
        self._failures: list[list[Any]] = []
        self._lock = threading.RLock()

    def __enter__(self) -> LoopbackHub:
        self._folder = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._server = Server(self._answer, self._planned_failure)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.close()
        self._folder.cleanup()

    @property
    def token(self) -> str:
        """Return the writing token of `user`."""
        return self.users[self.user].token

    @property
    def crashes(self) -> list[str]:
        """Return the tracebacks of errors within the Hub itself: none, or the Hub is wrong."""
        return self._server.crashes

    def env(self, *, token: str | None = None, home: str | os.PathLike[str] | None = None) -> dict[str, str]:
        """Return the whole environment for a process that is to use this Hub and no other.

        Args:
            token: Who the process is; `None` is `user` with the right to write, `""` is nobody.
            home: Its `HF_HOME`; `None` is one that all processes of this Hub share.

        Returns:
            The environment of this process without its settings for the real Hub; other hosts are cut off by a proxy
            that does not exist.
        """
        environment = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
        proxies = {f"{scheme}_proxy": _NOWHERE for scheme in ("http", "https", "all")} | {
            "no_proxy": "127.0.0.1,localhost"
        }
        return environment | {
            **proxies,
            **{name.upper(): value for name, value in proxies.items()},
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(home or self._folder.name),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_ETAG_TIMEOUT": "60",
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",
            "TOKENIZERS_PARALLELISM": "false",
        }

    # ---- what is on the Hub ----

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """Return a repository with its branches, tags and settings; `KeyError` if there is none."""
        return self.store.repos[(repo_type, repo_id)]

    def files(self, repo_id: str, revision: str = MAIN, repo_type: str = "model") -> dict[str, bytes]:
        """Return path and content of every file at a revision (`.gitattributes`, which the Hub adds, included)."""
        commit = self.repo(repo_id, repo_type).resolve(revision)
        return {path: blob.data for path, blob in commit.files.items()}

    def commits(self, repo_id: str, revision: str = MAIN, repo_type: str = "model") -> list[Commit]:
        """Return the commits that lead to a revision, newest first; the last is the Hub's own "initial commit"."""
        return self.repo(repo_id, repo_type).log(revision)

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes] | None = None,
        *,
        repo_type: str = "model",
        private: bool = False,
        gated: Literal[False, "auto", "manual"] = False,
    ) -> Repo:
        """Add a repository as if its owner had pushed it, with `files` as a second commit."""
        with self._lock:
            repo = self.store.create(repo_type, repo_id, repo_id.partition("/")[0], private, gated=gated)
            if files is not None:
                held = repo.resolve(MAIN).files | {path: Blob(data) for path, data in files.items()}
                repo.put(MAIN, held, "Add files", "", repo.author)
        return repo

    # ---- failures ----

    def fail_next(self, method: str, path: str, status: int, times: int = 1) -> None:
        """Let the next matching requests fail.

        Args:
            method: Such as `PUT`; `*` is any.
            path: Regular expression searched for in the path, such as `/lfs-upload/`.
            status: What to answer. In uploads the client tries again, up to five times, after 408, 429 and 5xx (it is
                told to wait no longer than its minimum, a second), not after 400 or 403. `CUT` hangs up halfway
                through the body, the caller's or ours.
            times: How many requests.
        """
        with self._lock:
            self._failures.append([method, re.compile(path), status, times])

    def clear_failures(self) -> None:
        """Let all further requests through."""
        with self._lock:
            self._failures.clear()

    def _planned_failure(self, method: str, path: str) -> int | None:
        """Return the status to fail with, and count."""
        with self._lock:
            for failure in self._failures:
                if failure[3] and failure[0] in (method, "*") and failure[1].search(path):
                    failure[3] -= 1
                    if failure[2] != CUT or method in ("POST", "PUT"):  # a download that is cut is answered first
                        self.requests.append(Seen(method, path, failure[2]))
                    return failure[2]
        return None

    # ---- answers ----

    def _answer(self, request: Request) -> Answer:
        """Answer a request, one at a time."""
        with self._lock:
            try:
                request.caller = self.store.authenticate(request.headers.get("Authorization"))
                answer = self._route(request)
            except HubError as error:
                answer = error_answer(error)
            except Exception:
                self.crashes.append(traceback.format_exc())
                answer = error_answer(HubError(500, "The loopback Hub crashed."))
            self.requests.append(Seen(request.method, unquote(request.path), answer.status))
        return answer

    def _route(self, request: Request) -> Answer:
        """Find the endpoint of an address and call it with the parts of the address."""
        for methods, pattern, endpoint in ROUTES:
            match = re.fullmatch(pattern, request.path) if request.method in methods.split() else None
            if match:
                parts = {name: value and unquote(value) for name, value in match.groupdict().items()}
                if "kind" in parts:
                    parts["kind"] = REPO_TYPES[(parts["kind"] or "models").rstrip("/")]
                return endpoint(self, request, **parts)
        raise HubError(404, f"There is no {request.method} {request.path} here.")
