"""The loopback Hub against the real client: revisions, reading, data sets, and what is left when it ends.

Functions given to `client.call` run in the client's process. Uploads and rights have files of their own.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
import urllib.error
import urllib.request

import hub_calls as calls
import pytest
from hub_client import HubClient
from loopback import LoopbackHub, Seen

# ---- branches, tags, history ----


def refs(repo_id):
    from huggingface_hub import HfApi

    found = HfApi().list_repo_refs(repo_id)
    return [{ref.name: ref.target_commit for ref in names} for names in (found.branches, found.tags)]


def test_branches(client, shared_hub, uploaded):
    def branch(repo_id, name, options=None, delete=False):
        from huggingface_hub import HfApi

        if delete:
            HfApi().delete_branch(repo_id, branch=name)
        else:
            HfApi().create_branch(repo_id, branch=name, **(options or {}))

    first = shared_hub.commits(uploaded)[1].oid
    client.call(branch, uploaded, "try/one")
    client.call(branch, uploaded, "empty", {"revision": first})
    assert client.error(branch, uploaded, "try/one").status == 409
    client.call(branch, uploaded, "try/one", {"exist_ok": True})
    assert client.error(branch, uploaded, "x", {"revision": "nowhere"}).name == "RevisionNotFoundError"
    oid, _, _ = client.call(calls.commit, uploaded, {"b.txt": "1"}, [], {"revision": "try/one"})
    main = shared_hub.commits(uploaded)[0].oid
    assert client.call(refs, uploaded) == [{"main": main, "try/one": oid, "empty": first}, {}]
    assert client.call(calls.download, uploaded, "b.txt", {"revision": "try/one"}) == "1"
    assert "b.txt" not in shared_hub.files(uploaded)
    assert set(shared_hub.files(uploaded, "empty")) == {".gitattributes"}
    client.call(branch, uploaded, "empty", None, True)
    assert client.error(branch, uploaded, "empty", None, True).status == 404
    assert client.error(branch, uploaded, "main", None, True).status == 403
    assert (
        client.error(calls.commit, uploaded, {"b.txt": "2"}, [], {"revision": "nowhere"}).name
        == "RevisionNotFoundError"
    )


def test_tags_stay_where_they_are(client, shared_hub, uploaded):
    def tag(repo_id, name, options=None, delete=False):
        from huggingface_hub import HfApi

        if delete:
            HfApi().delete_tag(repo_id, tag=name)
        else:
            HfApi().create_tag(repo_id, tag=name, tag_message="A release", **(options or {}))

    client.call(tag, uploaded, "v1")
    assert client.error(tag, uploaded, "v1").status == 409
    client.call(tag, uploaded, "v1", {"exist_ok": True})
    tagged = shared_hub.commits(uploaded)[0].oid
    client.call(calls.commit, uploaded, {"config.json": '{"model_type": "new"}'})
    assert client.call(refs, uploaded)[1] == {"v1": tagged}
    assert "tiny" in client.call(calls.download, uploaded, "config.json", {"revision": "v1"})
    assert "new" in client.call(calls.download, uploaded, "config.json")
    assert client.error(calls.commit, uploaded, {"b.txt": "2"}, [], {"revision": "v1"}).status == 400
    client.call(tag, uploaded, "v1", None, True)
    assert client.error(calls.download, uploaded, "config.json", {"revision": "v1"}).name == "RevisionNotFoundError"


def test_every_commit_is_a_revision(client, shared_hub, uploaded):
    def history(repo_id):
        from huggingface_hub import HfApi

        return [[made.commit_id, made.title] for made in HfApi().list_repo_commits(repo_id)]

    client.call(calls.commit, uploaded, {"step.txt": "1"})
    client.call(calls.commit, uploaded, {"step.txt": "2"})
    listed = client.call(history, uploaded)
    assert [title for _, title in listed][-1] == "initial commit"
    assert [oid for oid, _ in listed] == [made.oid for made in shared_hub.commits(uploaded)]
    texts = [client.call(calls.download, uploaded, "step.txt", {"revision": oid}) for oid, _ in listed[:2]]
    assert texts == ["2", "1"]


# ---- reading ----


def test_download_metadata_and_what_is_missing(client, shared_hub, uploaded):
    def metadata(repo_id, path):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        found = get_hf_file_metadata(hf_hub_url(repo_id, path))
        return [found.commit_hash, found.etag, found.size]

    head, files = shared_hub.commits(uploaded)[0].oid, shared_hub.files(uploaded)
    weights = files["model.safetensors"]
    assert client.call(metadata, uploaded, "model.safetensors") == [head, hashlib.sha256(weights).hexdigest(), 51200]
    git = hashlib.sha1(b"blob %d\0" % len(files["config.json"]) + files["config.json"]).hexdigest()
    assert client.call(metadata, uploaded, "config.json") == [head, git, len(files["config.json"])]
    assert client.call(calls.download, uploaded, "model.safetensors").encode("latin-1") == weights
    assert client.error(calls.download, uploaded, "missing.txt").name == "RemoteEntryNotFoundError"
    assert client.error(calls.download, uploaded, "config.json", {"revision": "v9"}).name == "RevisionNotFoundError"
    assert client.error(calls.download, "user/missing", "config.json").name == "RepositoryNotFoundError"


def test_snapshot_download_and_its_cache(client, shared_hub, uploaded):
    def snapshot(repo_id):
        from pathlib import Path

        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo_id))
        return {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }

    sizes = {path: len(data) for path, data in shared_hub.files(uploaded).items()}
    assert client.call(snapshot, uploaded) == sizes
    seen = len(shared_hub.requests)
    assert client.call(snapshot, uploaded) == sizes
    assert [request.path for request in shared_hub.requests[seen:]] == [f"/api/models/{uploaded}/revision/main"]


def test_tree_and_paths(client, shared_hub, uploaded):
    def tree(repo_id, options):
        from huggingface_hub import HfApi

        return sorted(
            [entry.path, type(entry).__name__, entry.last_commit and entry.last_commit.title]
            for entry in HfApi().list_repo_tree(repo_id, **options)
        )

    def paths(repo_id, names):
        from huggingface_hub import HfApi

        return [[entry.path, bool(getattr(entry, "lfs", None))] for entry in HfApi().get_paths_info(repo_id, names)]

    client.call(calls.commit, uploaded, {"1_Pooling/more.txt": "x"})
    top = client.call(tree, uploaded, {})
    assert ["1_Pooling", "RepoFolder", None] in top
    assert ["model.safetensors", "RepoFile", None] in top
    assert not any("/" in path for path, _, _ in top)
    below = client.call(tree, uploaded, {"path_in_repo": "1_Pooling", "expand": True})
    assert below == [
        ["1_Pooling/config.json", "RepoFile", "Upload folder using huggingface_hub"],
        ["1_Pooling/more.txt", "RepoFile", "Change"],
    ]
    everything = client.call(tree, uploaded, {"recursive": True})
    files = {path for path, kind, _ in everything if kind == "RepoFile"}
    assert files == set(shared_hub.files(uploaded))
    assert client.error(tree, uploaded, {"path_in_repo": "data"}).name == "RemoteEntryNotFoundError"
    wanted = ["model.safetensors", "1_Pooling", "missing"]
    assert client.call(paths, uploaded, wanted) == [["model.safetensors", True], ["1_Pooling", False]]


def test_model_info_and_eval_results(client, shared_hub, uploaded):
    def info(repo_id):
        from huggingface_hub import HfApi

        found = HfApi().model_info(repo_id, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size for sibling in found.siblings}
        return [found.sha, found.tags, found.card_data.license, found.config, found.library_name, sizes]

    def evaluated(repo_id):
        from huggingface_hub import HfApi

        found = HfApi().model_info(repo_id, expand=["evalResults"])
        return [found.sha, [[e.dataset_id, e.task_id, e.value, e.notes] for e in found.eval_results or []]]

    def unknown(repo_id):
        from huggingface_hub import HfApi

        HfApi().model_info(repo_id, expand=["nonsense"])

    sha, tags, licence, config, library, sizes = client.call(info, uploaded)
    assert sha == shared_hub.commits(uploaded)[0].oid
    assert tags == ["transformers", "custom_code", "dataset:user/prose", "license:mit"]
    assert (licence, library, config["model_type"]) == ("mit", "transformers", "tiny")
    assert sizes["model.safetensors"] == 51200
    score = ["mteb/stsbenchmark-sts", "STSBenchmark", 87.5, "test split"]
    assert client.call(evaluated, uploaded) == [None, [score]], "expand leaves the rest out"
    client.call(
        calls.commit, uploaded, {".eval_results/bad.yaml": "- value: 1\n", ".eval_results/worse.yml": "a: [1\n"}
    )
    assert client.call(evaluated, uploaded)[1] == [score], "files that break the format are skipped"
    assert client.error(unknown, uploaded).status == 400


def test_ranges(client, shared_hub, uploaded):
    def read(repo_id, start, end):
        from huggingface_hub import HfFileSystem

        return HfFileSystem().read_block(f"{repo_id}/model.safetensors", start, end - start).hex()

    def raw(value: str) -> tuple[int, str | None, bytes]:
        address = f"{shared_hub.endpoint}/{uploaded}/resolve/main/model.safetensors"
        request = urllib.request.Request(address, headers={"Range": value})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.headers["Content-Range"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Range"], b""

    assert client.call(read, uploaded, 250, 260) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3]).hex()
    assert shared_hub.requests[-1].status == 206
    assert raw("bytes=0-1") == (206, "bytes 0-1/51200", b"\x00\x01")
    assert raw("bytes=-2") == (206, "bytes 51198-51199/51200", b"\xfe\xff")
    assert raw("bytes=51199-99999") == (206, "bytes 51199-51199/51200", b"\xff")
    assert raw("bytes=51200-") == (416, "bytes */51200", b"")


# ---- data sets ----


def test_datasets_push_load_and_stream(client, shared_hub, tmp_path):
    def push(repo_id):
        from datasets import Dataset

        made = Dataset.from_dict({"text": [f"text {n}" for n in range(300)], "label": list(range(300))})
        made.push_to_hub(repo_id, num_shards=2)

    def load(repo_id, streaming):
        from datasets import load_dataset

        loaded = load_dataset(repo_id, split="train", streaming=streaming)
        return [row["text"] for row in loaded][::100]

    client.call(push, "user/sentences")
    assert sorted(shared_hub.files("user/sentences", repo_type="dataset")) == [
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    seen = len(shared_hub.requests)
    assert client.call(load, "user/sentences", True) == ["text 0", "text 100", "text 200"]
    assert any(request.status == 206 for request in shared_hub.requests[seen:]), "streaming reads ranges"
    assert client.call(load, "user/sentences", False) == ["text 0", "text 100", "text 200"]
    assert client.error(load, "user/nothing", True).name == "DatasetNotFoundError"


# ---- the Hub itself ----


def test_xet_stays_off(client, shared_hub, uploaded):
    assert [request for request in shared_hub.requests if "/xet-" in request.path] == []
    assert Seen("POST", "/api/validate-yaml", 200) in shared_hub.requests


def test_the_environment_knows_no_other_hub(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_CACHE", "HTTP_PROXY", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("UNRELATED", "kept")
    with LoopbackHub() as hub:
        environment = hub.env(token="", home=tmp_path)
        assert "mine" not in environment.values()
        assert (environment["UNRELATED"], environment["HF_TOKEN"]) == ("kept", "")
        assert environment["HF_HOME"] == str(tmp_path)
        assert environment["HF_ENDPOINT"] == hub.endpoint
        assert hub.env()["HF_TOKEN"] == hub.token
        assert hub.users["other"].token not in hub.env().values()


def test_other_hosts_are_cut_off(shared_hub):
    def elsewhere():
        import urllib.request

        urllib.request.urlopen("http://example.invalid", timeout=5)

    stranger = HubClient(shared_hub.env())
    error = stranger.error(elsewhere)
    stranger.close()
    assert "Connection refused" in error.message


def test_nothing_is_left_when_a_hub_ends():
    before = set(threading.enumerate())
    with LoopbackHub() as hub:
        port = int(hub.endpoint.rpartition(":")[2])
        home = hub.env()["HF_HOME"]
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        idle[0].sendall(b"GET /api/agent-harnesses HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[0].recv(100).startswith(b"HTTP/1.1 200")
        assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    end = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()
    for connection in idle:
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with pytest.raises(FileNotFoundError):
        open(home)
