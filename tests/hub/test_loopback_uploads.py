"""Uploads to the loopback Hub with the real client: every step, commits, pull requests, failures in the middle."""

from __future__ import annotations

import hub_calls as calls
from loopback import CUT, LoopbackHub


def new_requests(hub: LoopbackHub, seen: int) -> list[str]:
    """Return method and end of the path of the requests after the first `seen`."""
    return [f"{request.method} {request.path.rpartition('/')[2]}" for request in hub.requests[seen:]]


# ---- uploading ----


def test_upload_folder_is_one_commit_through_every_step(client, shared_hub, folder):
    seen = len(shared_hub.requests)
    assert client.call(calls.create, "user/steps") == f"{shared_hub.endpoint}/user/steps"
    oid = client.call(calls.upload, str(folder), "user/steps")
    upload_id = next(request.path for request in shared_hub.requests[seen:] if request.method == "PUT").split("/")[-1]
    assert new_requests(shared_hub, seen) == [
        "POST create",
        "POST validate-yaml",
        "POST validate-yaml",
        "POST main",  # preupload
        "POST batch",
        f"PUT {upload_id}",
        "POST verify",
        "POST main",  # commit
    ]
    expected = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files = shared_hub.files("user/steps")
    assert files.pop(".gitattributes")
    assert files == expected
    newest, first = shared_hub.commits("user/steps")
    assert (newest.oid, newest.parent, newest.author) == (oid, first.oid, "user")
    lfs = {path for path, blob in newest.files.items() if blob.lfs}
    assert lfs == {"model.safetensors"}


def test_what_is_there_is_not_sent_again(client, shared_hub, folder, uploaded):
    seen = len(shared_hub.requests)
    client.call(calls.upload, str(folder), uploaded)
    assert not any(line.startswith("PUT") or line.endswith("commit") for line in new_requests(shared_hub, seen))
    assert len(shared_hub.commits(uploaded)) == 2
    (folder / "config.json").write_text('{"model_type": "other"}')
    (folder / "copy.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    client.call(calls.upload, str(folder), uploaded)
    assert not any(line.startswith("PUT") for line in new_requests(shared_hub, seen)), "the object is here"
    assert shared_hub.files(uploaded)["config.json"] == b'{"model_type": "other"}'
    assert shared_hub.files(uploaded)["copy.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_large_objects_are_uploaded_in_parts(client, shared_hub, folder, monkeypatch):
    monkeypatch.setattr(shared_hub, "part_size", 20_000)
    client.call(calls.create, "user/parts")
    seen = len(shared_hub.requests)
    client.call(calls.upload, str(folder), "user/parts")
    steps = [line for line in new_requests(shared_hub, seen) if "PUT" in line or "complete" in line]
    assert steps == ["PUT 1", "PUT 2", "PUT 3", "POST complete"]
    assert shared_hub.files("user/parts")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_binary_and_large_files_go_through_lfs_text_does_not(client, shared_hub, tmp_path):
    (tmp_path / "picture.raw").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "words.txt").write_text("é" * 400)  # the sample of 512 bytes may end within a character
    (tmp_path / "large.txt").write_text("x" * (10 * 2**20 + 1))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    client.call(calls.create, "user/modes")
    client.call(calls.upload, str(tmp_path), "user/modes")
    files = shared_hub.repo("user/modes").resolve("main").files
    held = {path: blob.lfs for path, blob in files.items() if path != ".gitattributes"}
    assert held == {"picture.raw": True, "words.txt": False, "large.txt": True, "empty.safetensors": False}


def test_gitignore_leaves_files_out(client, shared_hub, tmp_path):
    (tmp_path / ".gitignore").write_text("# ours\n*.tmp\nscratch/\n")
    (tmp_path / "scratch").mkdir()
    for name in ("kept.txt", "lost.tmp", "scratch/lost.txt"):
        (tmp_path / name).write_text(name)
    client.call(calls.create, "user/ignoring")
    client.call(calls.upload, str(tmp_path), "user/ignoring")
    assert set(shared_hub.files("user/ignoring")) == {".gitattributes", ".gitignore", "kept.txt"}


def test_card_with_bad_metadata_is_refused_and_nothing_is_committed(client, shared_hub, uploaded, folder):
    (folder / "README.md").write_text("---\nlicense: no-such-licence\n---\n")
    (folder / "extra.txt").write_text("x")
    error = client.error(calls.upload, str(folder), uploaded)
    assert error.name == "ValueError"
    assert '"license" must be one of' in error.message
    assert len(shared_hub.commits(uploaded)) == 2


# ---- commits ----


def test_commits_change_delete_and_check_their_parent(client, shared_hub, uploaded):
    first, url, _ = client.call(calls.commit, uploaded, {"a/one.txt": "1", "a/two.txt": "2", "b.txt": "3"})
    assert url == f"{shared_hub.endpoint}/{uploaded}/commit/{first}"
    second, _, _ = client.call(calls.commit, uploaded, {"b.txt": "4"}, ["a/"], {"parent_commit": first})
    files = shared_hub.files(uploaded)
    assert files["b.txt"] == b"4"
    assert not any(path.startswith("a/") for path in files)
    assert shared_hub.commits(uploaded)[1].read("a/two.txt") == b"2"
    error = client.error(calls.commit, uploaded, {"b.txt": "5"}, [], {"parent_commit": first})
    assert (error.status, shared_hub.commits(uploaded)[0].oid) == (412, second)


def test_delete_file_and_what_is_not_there(client, shared_hub, uploaded):
    def delete(repo_id, path):
        from huggingface_hub import HfApi

        HfApi().delete_file(path, repo_id)

    client.call(delete, uploaded, "config.json")
    assert "config.json" not in shared_hub.files(uploaded)
    error = client.error(delete, uploaded, "config.json")
    assert (error.name, error.status) == ("RemoteEntryNotFoundError", 404)
    assert client.error(calls.commit, uploaded, {"new.txt": "x"}, ["missing/"]).status == 404
    assert "new.txt" not in shared_hub.files(uploaded), "a commit is all or nothing"


def test_copies_within_a_repository(client, shared_hub, uploaded):
    def copy(repo_id, source, target):
        from huggingface_hub import CommitOperationCopy, HfApi

        HfApi().create_commit(repo_id, [CommitOperationCopy(source, target)], commit_message="Copy")

    client.call(copy, uploaded, "model.safetensors", "old/model.safetensors")
    client.call(copy, uploaded, "config.json", "old/config.json")
    files = shared_hub.files(uploaded)
    assert files["old/model.safetensors"] == files["model.safetensors"]
    assert files["old/config.json"] == files["config.json"]


def test_pull_requests_leave_main_alone(client, shared_hub, uploaded):
    _, _, revision = client.call(calls.commit, uploaded, {"proposal.txt": "x"}, [], {"create_pr": True})
    assert revision == "refs/pr/1"
    assert "proposal.txt" not in shared_hub.files(uploaded)
    assert client.call(calls.download, uploaded, "proposal.txt", {"revision": revision}) == "x"
    assert client.call(calls.commit, uploaded, {"proposal.txt": "y"}, [], {"create_pr": True})[2] == "refs/pr/2"


# ---- failures on demand ----


def test_a_failed_upload_leaves_the_repository_alone_and_can_be_repeated(client, shared_hub, uploaded, folder):
    (folder / "model.safetensors").write_bytes(b"new weights" * 1000)
    before = shared_hub.files(uploaded)
    for method, path in (("PUT", "/lfs-upload/"), ("POST", "/verify"), ("POST", f"{uploaded}/commit/")):
        shared_hub.fail_next(method, path, 403)
        assert client.error(calls.upload, str(folder), uploaded).name in ("RuntimeError", "HfHubHTTPError")
        assert shared_hub.files(uploaded) == before
    client.call(calls.upload, str(folder), uploaded)
    assert shared_hub.files(uploaded)["model.safetensors"] == b"new weights" * 1000
    assert len(shared_hub.commits(uploaded)) == 3


def test_the_client_survives_a_busy_server_and_an_upload_that_was_cut(client, shared_hub, uploaded, folder):
    (folder / "model.safetensors").write_bytes(b"newer weights" * 50_000)
    shared_hub.fail_next("PUT", "/lfs-upload/", CUT)
    shared_hub.fail_next("POST", "/verify", 503)
    seen = len(shared_hub.requests)
    client.call(calls.upload, str(folder), uploaded)
    puts = [request.status for request in shared_hub.requests[seen:] if request.method == "PUT"]
    assert puts == [CUT, 200]
    assert [request.status for request in shared_hub.requests[seen:] if "verify" in request.path] == [503, 200]


def test_the_client_goes_on_with_a_download_that_was_cut(client, shared_hub):
    content = bytes(range(256)) * (24 * 2**12)  # the client keeps what it got in pieces of 10 MB
    shared_hub.add_repo("user/cut", {"large.bin": content})
    shared_hub.fail_next("GET", "/resolve/", CUT)
    assert client.call(calls.download, "user/cut", "large.bin").encode("latin-1") == content
    gets = [
        request.status for request in shared_hub.requests if request.method == "GET" and "user/cut" in request.path
    ]
    assert gets == [200, 206]
