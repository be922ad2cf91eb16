"""Pushes to the loopback Hub: one commit, private repositories, branches; failures change nothing and can be repeated."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hub_client import HubClient
from loopback import CUT, LoopbackHub
from small_run import make_run

from hf_distill.hub.push import check_repo_id, stale_files


def push(source, repo_id, options=None):
    from hf_distill.hub.push import push_student

    return push_student(source, repo_id, **{"check": False, **(options or {})})


def upload(folder, repo_id, options=None):
    from hf_distill.hub.push import upload

    return upload(folder, repo_id, **(options or {})).oid


def access(repo_id):
    from hf_distill.hub.push import check_access

    return check_access(repo_id)


def load_both(repo_id, revision):
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "hf_distill":
                raise ImportError("blocked")

    sys.meta_path.insert(0, Blocker())
    try:
        from sentence_transformers import SentenceTransformer
        from transformers import AutoModel

        model = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
        sentences = SentenceTransformer(repo_id, revision=revision, trust_remote_code=True, device="cpu")
        return [type(model).__module__, len(sentences.encode("a small river"))]
    finally:
        sys.meta_path.pop(0)


@pytest.fixture(scope="module")
def run(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tiny_bert, tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files that stand for a student."""
    path = tmp_path / "student"
    (path / "1_Pooling").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    (path / "config.json").write_text("{}")
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    return path


def paths(hub: LoopbackHub, repo_id: str, revision: str = "main") -> set[str]:
    return set(hub.files(repo_id, revision)) - {".gitattributes"}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what a push does ----


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_is_one_checked_commit(client: HubClient, shared_hub: LoopbackHub, run: Path) -> None:
    before = content(run)
    url = client.call(push, str(run), "user/whole", {"check": True, "private": True, "commit_message": "First"})
    assert url == f"{shared_hub.endpoint}/user/whole"
    assert [commit.title for commit in shared_hub.commits("user/whole")] == ["First", "initial commit"]
    assert shared_hub.repo("user/whole").private
    found = paths(shared_hub, "user/whole")
    assert {"README.md", "model.safetensors", "results.json", "curves.png", "modeling_deltanet.py"} <= found
    assert not {path for path in found if path.endswith((".pt", ".bin", ".pth", ".pkl")) or "checkpoint" in path}
    for path, data in shared_hub.files("user/whole").items():
        assert str(run.parent).encode() not in data, path
        assert shared_hub.token.encode() not in data, path
    assert content(run) == before
    module, width = client.call(load_both, "user/whole", "main")
    assert module.startswith("transformers_modules")
    assert width == 16


def test_a_branch(client: HubClient, shared_hub: LoopbackHub, run: Path) -> None:
    url = client.call(push, str(run), "user/branches", {"revision": "v2"})
    assert url == f"{shared_hub.endpoint}/user/branches/tree/v2"
    assert paths(shared_hub, "user/branches") == set()
    assert "model.safetensors" in paths(shared_hub, "user/branches", "v2")
    assert 'revision="v2"' in shared_hub.files("user/branches", "v2")["README.md"].decode()
    client.call(push, str(run), "user/branches", {"revision": "v2"})  # the branch is there already


def test_files_of_an_older_student_go_in_the_same_commit(
    client: HubClient, shared_hub: LoopbackHub, folder: Path
) -> None:
    kept = {"notes.md": b"mine", "assets/picture.png": b"x", "checkpoint-5/modeling_old.py": b"x"}
    old = {
        "modeling_old.py": b"x",
        "pytorch_model.bin": b"x",
        ".eval_results/Old.yaml": b"[]",
        "2_Dense/config.json": b"{}",
    }
    shared_hub.add_repo("user/older", {**kept, **old})
    client.call(upload, str(folder), "user/older")
    assert paths(shared_hub, "user/older") == {*kept, *content(folder)}
    assert len(shared_hub.commits("user/older")) == 3


def test_stale_files() -> None:
    remote = ["a.py", "b.py", "sub/c.py", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "x.json"]
    assert stale_files(remote, ["b.py"]) == [
        "a.py",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_a_name_alone_is_the_users(client: HubClient, shared_hub: LoopbackHub, run: Path) -> None:
    assert client.call(push, str(run), "alone") == f"{shared_hub.endpoint}/user/alone"
    assert "user/alone" in shared_hub.files("user/alone")["README.md"].decode()


# ---- what goes wrong ----


@pytest.mark.parametrize("bad", ["user/na me", "a/b/c", "user/--x", "", "user/x.git"])
def test_a_bad_id_is_refused_without_the_hub(bad: str) -> None:
    with pytest.raises(ValueError, match="is no id such as user/name"):
        check_repo_id(bad)


def test_what_is_wrong_with_the_run_is_said_before_the_hub_changes(
    client: HubClient, shared_hub: LoopbackHub, run: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    results = json.loads((broken / "results.json").read_text())
    results["rows"][0]["metrics"]["test"]["stsb_spearman"] = 0.99
    (broken / "results.json").write_text(json.dumps(results))
    error = client.error(push, str(broken), "user/broken")
    assert error.name == "ValueError"
    assert "edited by hand" in error.message
    (broken / "results.json").unlink()
    assert "Train or evaluate" in client.error(push, str(broken), "user/broken").message
    with pytest.raises(KeyError):
        shared_hub.repo("user/broken")


@pytest.mark.parametrize(
    ("who", "says"),
    [
        ("nobody", "nobody is logged in.*hf auth login"),
        ("stranger", "does not accept the token.*hf auth login"),
        ("reader", "may only read.*token with write permission"),
        ("other", "other may not write there, but to other"),
    ],
)
def test_no_permission(shared_hub: LoopbackHub, who: str, says: str) -> None:
    users = shared_hub.users
    tokens = {"nobody": "", "stranger": "hf_wrong", "reader": users["user"].read_token, "other": users["other"].token}
    client = HubClient(shared_hub.env(token=tokens[who]))
    try:
        found = client.error(access, "user/denied")
    finally:
        client.close()
    assert found.name == "PermissionError"
    assert re.search(says, found.message), found.message


def test_permission_is_asked_for_before_the_work(client: HubClient, shared_hub: LoopbackHub, tmp_path: Path) -> None:
    error = client.error(push, str(tmp_path / "no run"), "other/student")
    assert error.name == "PermissionError"  # not yet the missing run
    assert client.call(access, "org/student") == "org/student"
    assert client.call(access, "student") == "user/student"


def test_a_repository_of_somebody_else(client: HubClient, shared_hub: LoopbackHub, folder: Path) -> None:
    shared_hub.add_repo("other/theirs", {"a.txt": b"a"})
    shared_hub.add_repo("other/hidden", {"a.txt": b"a"}, private=True)
    error = client.error(upload, str(folder), "other/theirs")
    assert error.name == "PermissionError"
    assert "may not write there" in error.message
    error = client.error(upload, str(folder), "other/hidden")
    assert error.name == "FileNotFoundError"
    assert "does not exist on the Hub, or the token may not see it" in error.message
    assert "RevisionNotFound" not in error.message
    assert paths(shared_hub, "other/theirs") == {"a.txt"}


def test_a_public_repository_is_not_taken_for_a_private_one(
    client: HubClient, shared_hub: LoopbackHub, run: Path
) -> None:
    shared_hub.add_repo("user/public", {"a.txt": b"a"})
    error = client.error(push, str(run), "user/public", {"private": True})
    assert error.name == "ValueError"
    assert "exists and is public; nothing was pushed" in error.message
    assert paths(shared_hub, "user/public") == {"a.txt"}


@pytest.mark.parametrize(
    ("method", "path", "status", "error", "says"),
    [
        ("PUT", "/lfs-upload/", 403, "PermissionError", "may not write there"),
        ("PUT", "/lfs-upload/", 400, "ValueError", "refuses what was sent"),
        ("POST", "/commit/", 403, "PermissionError", "may not write there"),
        ("POST", "/commit/", 409, "ConnectionError", "somebody else pushed at the same time"),
        ("POST", "/commit/", 500, "ConnectionError", "the Hub answered 500"),
        ("POST", "/commit/", CUT, "ConnectionError", "the Hub cannot be reached"),
    ],
)
def test_an_upload_that_fails_changes_nothing_and_can_be_repeated(
    client: HubClient,
    shared_hub: LoopbackHub,
    folder: Path,
    method: str,
    path: str,
    status: int,
    error: str,
    says: str,
) -> None:
    repo_id = f"user/fails-{path.strip('/')}-{'cut' if status == CUT else status}"
    shared_hub.add_repo(repo_id, {"model.safetensors": b"old", "a.py": b"old"})
    before, local = shared_hub.files(repo_id), content(folder)
    shared_hub.fail_next(method, path, status, times=1 if status != 500 else 20)
    found = client.error(upload, str(folder), repo_id)
    with shared_hub._lock:
        shared_hub._failures.clear()
    assert found.name == error, found
    assert says in found.message
    assert shared_hub.files(repo_id) == before
    assert content(folder) == local
    client.call(upload, str(folder), repo_id)
    assert paths(shared_hub, repo_id) == set(local)


def test_offline_mode(shared_hub: LoopbackHub) -> None:
    client = HubClient(shared_hub.env() | {"HF_HUB_OFFLINE": "1"})
    try:
        error = client.error(access, "user/offline")
    finally:
        client.close()
    assert error.name == "ConnectionError"
    assert "HF_HUB_OFFLINE is set. Unset it to push." in error.message
