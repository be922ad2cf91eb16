"""Teacher caches on the loopback Hub: pushed, streamed, pulled; what is wrong is refused; packed corpora stream, too."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import HubClient
from loopback import CUT, LoopbackHub

from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.manifest import MANIFEST_NAME, TeacherSpec
from hf_distill.teachers.projection import project_cache
from hf_distill.teachers.writer import write_cache

RECIPE = Path(__file__).parents[2] / "recipes" / "cache_teacher.py"
FIRST = "data/train-00000-of-00004.parquet"


def push(path, repo_id, texts=None, options=None):
    from hf_distill.hub.cache_dataset import push_cache
    from hf_distill.teachers.cached import TeacherCache

    return push_cache(TeacherCache.open(path), repo_id, texts=texts, **(options or {}))


def pull(repo_id, folder, options=None):
    from hf_distill.hub.cache_dataset import pull_cache

    return str(pull_cache(repo_id, folder, **(options or {})).path)


def stream(repo_id, count):
    from datasets import load_dataset

    rows = load_dataset(repo_id, split="train", streaming=True)
    return [str(rows.features), list(rows.take(count))]


def embed(texts: list[str]) -> np.ndarray:
    """A teacher that is a plain function of the text."""
    return np.stack([np.random.default_rng(zlib.crc32(text.encode())).standard_normal(6) for text in texts])


@pytest.fixture(scope="module")
def cache(tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    """64 rows in four shards, with a projection beside them."""
    spec = TeacherSpec(teacher="org/vectors", revision="1", prompt="query: ", pooling="mean", normalize=False)
    folder = tmp_path_factory.mktemp("caches")
    written = write_cache(tiny_texts, embed, folder, spec=spec, shard_rows=16, progress=False)
    return project_cache(written, 4)


def files(hub: LoopbackHub, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    found = hub.files(repo_id, revision, repo_type="dataset")
    return {name: data for name, data in found.items() if name != ".gitattributes"}


def put(hub: LoopbackHub, repo_id: str, changed: dict[str, bytes | None], source: str) -> None:
    """Add a data set that differs from another in some files; `None` leaves one out."""
    held = {**files(hub, source), **changed}
    hub.add_repo(repo_id, {name: data for name, data in held.items() if data is not None}, repo_type="dataset")


@pytest.fixture(scope="module")
def pushed(client: HubClient, cache: TeacherCache, tiny_texts: list[str]) -> str:
    """The cache with its texts on `shared_hub`."""
    client.call(push, str(cache.path), "user/vectors", tiny_texts)
    return "user/vectors"


# ---- there and back ----


def test_what_is_published(shared_hub: LoopbackHub, pushed: str, cache: TeacherCache) -> None:
    found = files(shared_hub, pushed)
    parquet = [f"data/train-0000{number}-of-00004.parquet" for number in range(4)]
    assert sorted(found) == ["README.md", *parquet, MANIFEST_NAME]
    assert len(shared_hub.commits(pushed, repo_type="dataset")) == 2, "one commit, after the Hub's own"
    manifest = json.loads(found[MANIFEST_NAME])
    assert (manifest["fingerprint"], manifest["num_rows"]) == (cache.spec.fingerprint, 64)
    assert manifest["projections"] == []
    schema = pq.read_schema(io.BytesIO(found[FIRST]))
    assert schema.field("text_hash").type == pa.uint64()
    assert schema.field("embedding").type == pa.list_(pa.float16(), 6)
    assert schema.names == ["text", "text_hash", "embedding"]
    for data in found.values():
        assert str(cache.path).encode() not in data
        assert shared_hub.token.encode() not in data


def test_rows_stream(
    client: HubClient, shared_hub: LoopbackHub, pushed: str, cache: TeacherCache, tiny_texts: list[str]
) -> None:
    seen = len(shared_hub.requests)
    features, rows = client.call(stream, pushed, 20)
    assert any(request.status == 206 for request in shared_hub.requests[seen:]), "streaming reads ranges"
    assert isinstance(rows[0]["embedding"][0], float)
    assert not any("00003-of-00004" in request.path for request in shared_hub.requests[seen:] if request.status == 206)
    assert "float16" in features
    assert [row["text"] for row in rows] == tiny_texts[:20]
    assert [row["text_hash"] for row in rows] == cache.text_hashes[:20].tolist()
    expected = TeacherCache.open(cache.path).embeddings(np.arange(20))
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], dtype=np.float16), expected)


def test_a_pulled_cache_is_the_same(
    client: HubClient, pushed: str, cache: TeacherCache, tiny_texts: list[str], tmp_path: Path
) -> None:
    path = Path(client.call(pull, pushed, str(tmp_path)))
    local = TeacherCache.open(cache.path)
    pulled = TeacherCache.open(tmp_path, expect=local.spec)
    assert pulled.path == path
    assert pulled.spec == local.spec
    pulled.verify()
    assert {file.name for file in path.iterdir()} == {MANIFEST_NAME, *(shard.file for shard in local.manifest.shards)}
    some = [tiny_texts[index] for index in (50, 3, 3, 17)]
    assert pulled.rows_for(some).tolist() == [50, 3, 3, 17]
    every = np.arange(64)
    assert pulled.embeddings(every).tobytes() == local.embeddings(every).tobytes()
    assert client.call(pull, pushed, str(tmp_path)) == str(path), "a second pull finds it there"
    # the cache goes on growing where it was pulled to
    more = write_cache([*tiny_texts, "one more"], embed, tmp_path, spec=local.spec, shard_rows=16, progress=False)
    assert (more.report.rows, more.report.reused_rows) == (1, 64)


def test_without_texts_in_private_on_a_branch(
    client: HubClient, shared_hub: LoopbackHub, cache: TeacherCache, tmp_path: Path
) -> None:
    url = client.call(push, str(cache.path), "bare", None, {"private": True, "revision": "v2"})
    assert url == f"{shared_hub.endpoint}/datasets/user/bare/tree/v2"
    assert shared_hub.repo("user/bare", "dataset").private
    assert files(shared_hub, "user/bare") == {}
    found = files(shared_hub, "user/bare", "v2")
    assert pq.read_schema(io.BytesIO(found[FIRST])).names == ["text_hash", "embedding"]
    assert 'pull_cache("user/bare", "teacher_caches", revision="v2")' in found["README.md"].decode()
    path = client.call(pull, "user/bare", str(tmp_path), {"revision": "v2"})
    assert TeacherCache.open(path).manifest.shards == cache.manifest.shards


def test_hidden_layers_travel(
    client: HubClient, tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path: Path
) -> None:
    signals = ("embedding", "hidden_0", "hidden_2")
    options = {"signals": signals, "shard_rows": 24, "progress": False}
    local = write_cache(tiny_texts, tiny_sentence_transformer, tmp_path / "here", **options)
    client.call(push, str(local.path), "user/layers", tiny_texts)
    pulled = TeacherCache.open(client.call(pull, "user/layers", str(tmp_path / "there")), expect=local.spec)
    pulled.verify()
    for layer in (0, 2):
        there, here = pulled.hidden(layer, [40, 1]), local.hidden(layer, [40, 1])
        assert there.values.tobytes() == here.values.tobytes()
        assert there.offsets.tolist() == here.offsets.tolist()
    features, rows = client.call(stream, "user/layers", 2)
    assert "hidden_2" in features
    assert np.shape(rows[1]["hidden_2"]) == local.hidden(2, [1]).values.shape


def test_a_smaller_cache_replaces_a_larger_one(
    client: HubClient, shared_hub: LoopbackHub, pushed: str, cache: TeacherCache, tiny_texts: list[str], tmp_path: Path
) -> None:
    client.call(push, str(cache.path), "user/shrinks")
    small = write_cache(tiny_texts[:20], embed, tmp_path / "small", spec=cache.spec, shard_rows=16, progress=False)
    client.call(push, str(small.path), "user/shrinks")
    parquet = [name for name in files(shared_hub, "user/shrinks") if name.startswith("data/")]
    assert parquet == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    path = client.call(pull, "user/shrinks", str(tmp_path / "pulled"))
    assert len(TeacherCache.open(path)) == 20
    error = client.error(pull, pushed, str(tmp_path / "pulled"))
    assert error.name == "ValueError"
    assert "holds another cache of this teacher than user/vectors" in error.message


# ---- what is wrong here ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda texts: texts[:-1], "There are 63 texts, but the teacher cache .* has 64 rows"),
        (lambda texts: texts[::-1], r"the first is number 0: .*in the same order, or none"),
        (lambda texts: [*texts[:9], "another", *texts[10:]], "1 of 64 texts .* number 9: 'another'"),
        (lambda texts: [*texts[:9], None, *texts[10:]], "Row 9 has no text"),
    ],
)
def test_other_texts_are_refused(
    client: HubClient, shared_hub: LoopbackHub, cache: TeacherCache, tiny_texts: list[str], change, says: str
) -> None:
    error = client.error(push, str(cache.path), "user/wrong-texts", change(tiny_texts))
    assert error.name == "ValueError"
    assert re.search(says, error.message), error.message
    with pytest.raises(KeyError):
        shared_hub.repo("user/wrong-texts", "dataset")


def test_secrets_and_damage_are_refused(
    client: HubClient, shared_hub: LoopbackHub, cache: TeacherCache, tmp_path: Path
) -> None:
    texts = ["a river", f"the token {shared_hub.token} is secret"]
    secret = write_cache(texts, embed, tmp_path / "secret", spec=cache.spec, progress=False)
    error = client.error(push, str(secret.path), "user/refused", texts)
    assert error.name == "ValueError"
    assert "Texts 0 to 1 hold" in error.message
    assert shared_hub.token not in error.message
    leaking = TeacherSpec(teacher="/".join(["", "home", "someone", "models", "vectors"]), normalize=False)
    named = write_cache(["a river"], embed, tmp_path / "named", spec=leaking, progress=False)
    assert "the local path" in client.error(push, str(named.path), "user/refused").message
    damaged = Path(shutil.copytree(cache.path, tmp_path / "damaged"))
    shard = damaged / cache.manifest.shards[1].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "is damaged" in client.error(push, str(damaged), "user/refused").message
    with pytest.raises(KeyError):
        shared_hub.repo("user/refused", "dataset")


# ---- what is wrong on the Hub ----


def test_a_manifest_that_does_not_fit_is_refused(
    client: HubClient, shared_hub: LoopbackHub, pushed: str, tmp_path: Path
) -> None:
    text = files(shared_hub, pushed)[MANIFEST_NAME].decode()
    body = json.loads(text)
    sha256 = body["shards"][0]["sha256"]
    edits = {
        "json": ("{" + text, "was changed or damaged"),
        "prompt": (text.replace("query: ", "passage: "), "was changed or damaged"),
        "rows": (text.replace('"num_rows": 64', '"num_rows": 65'), "was changed or damaged"),
        "escape": (text.replace(body["shards"][0]["file"], "../../shard.safetensors"), "was changed or damaged"),
        "sha": (text.replace(sha256, "0" * 64), f"{FIRST} does not fit {MANIFEST_NAME}: its rows give .* {sha256}"),
        "dim": (text.replace('"dim": 6', '"dim": 5'), r"its embeddings are \(16, 6\), the manifest says \(16, 5\)"),
    }
    for name, (edited, says) in edits.items():
        assert edited != text, name
        put(shared_hub, f"user/edited-{name}", {MANIFEST_NAME: edited.encode()}, pushed)
        error = client.error(pull, f"user/edited-{name}", str(tmp_path / name))
        assert error.name == "ValueError", error
        assert re.search(says, error.message), error.message
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "nothing is kept"
    put(shared_hub, "user/no-manifest", {MANIFEST_NAME: None}, pushed)
    error = client.error(pull, "user/no-manifest", str(tmp_path))
    assert error.name == "FileNotFoundError"
    assert "is no teacher cache" in error.message


def test_data_that_do_not_fit_are_refused(
    client: HubClient, shared_hub: LoopbackHub, pushed: str, tmp_path: Path
) -> None:
    table = pq.read_table(io.BytesIO(files(shared_hub, pushed)[FIRST]))

    def changed(column: str, values: list) -> bytes:
        index, out = table.schema.get_field_index(column), io.BytesIO()
        new = pa.array(values, table.schema.field(column).type)
        pq.write_table(table.set_column(index, column, new) if values else table.remove_column(index), out)
        return out.getvalue()

    embeddings, texts = table["embedding"].to_pylist(), table["text"].to_pylist()
    data = {
        "vector": (changed("embedding", [[1.0] * 6, *embeddings[1:]]), "its rows give the SHA-256"),
        "text": (changed("text", ["another", *texts[1:]]), "the text of its row 0 does not have the hash beside it"),
        "column": (changed("text_hash", []), "text_hash"),
        "missing": (None, "it is missing"),
        "html": (b"<html>", "does not fit"),
    }
    for name, (content, says) in data.items():
        put(shared_hub, f"user/data-{name}", {FIRST: content}, pushed)
        error = client.error(pull, f"user/data-{name}", str(tmp_path / name))
        assert error.name == "ValueError", error
        assert f"user/data-{name}: {FIRST} does not fit {MANIFEST_NAME}" in error.message
        assert says in error.message
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_permission(client: HubClient, shared_hub: LoopbackHub, cache: TeacherCache, tmp_path: Path) -> None:
    shared_hub.add_repo("other/secret", {"a.txt": b"a"}, repo_type="dataset", private=True)
    shared_hub.add_repo("other/gated", {MANIFEST_NAME: b"a"}, repo_type="dataset", gated="auto")
    shared_hub.add_repo("user/prose", {"data/train.parquet": b"a"}, repo_type="dataset")
    cases = [
        (push, (str(cache.path), "other/mine"), "PermissionError", "user may not write there"),
        (push, (str(cache.path), "a/b/c"), "ValueError", "such as user/name"),
        (push, (str(cache.path), "user/prose"), "ValueError", "holds something else than a teacher cache"),
        (push, (str(cache.path), "user/prose", None, {"private": True}), "ValueError", "exists and is public"),
        (pull, ("other/secret", str(tmp_path)), "FileNotFoundError", "or the token may not see it"),
        (pull, ("other/gated", str(tmp_path)), "PermissionError", "is gated: ask for access"),
        (pull, ("user/nothing", str(tmp_path)), "FileNotFoundError", "does not exist on the Hub"),
        (pull, ("user/prose", str(tmp_path), {"revision": "v9"}), "FileNotFoundError", "has no such revision"),
        (pull, ("user/prose", str(tmp_path)), "FileNotFoundError", "is no teacher cache"),
        (pull, ("a/b/c", str(tmp_path)), "ValueError", "such as user/name"),
    ]
    for function, arguments, name, says in cases:
        error = client.error(function, *arguments)
        assert error.name == name, error
        assert says in error.message, error.message
    assert files(shared_hub, "user/prose") == {"data/train.parquet": b"a"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("PUT", "/lfs-upload/", 403, "PermissionError"),
        ("POST", "/commit/", 500, "ConnectionError"),
        ("POST", "/commit/", CUT, "ConnectionError"),
    ],
)
def test_a_push_that_fails_can_be_repeated(
    client: HubClient, shared_hub: LoopbackHub, cache: TeacherCache, method: str, path: str, status: int, error: str
) -> None:
    repo_id = f"user/fails-{path.strip('/')}-{'cut' if status == CUT else status}"
    before = {file.name: file.read_bytes() for file in cache.path.iterdir()}
    shared_hub.fail_next(method, path, status, times=20 if status == 500 else 1)
    found = client.error(push, str(cache.path), repo_id)
    assert found.name == error, found
    assert files(shared_hub, repo_id) == {}
    shared_hub.clear_failures()
    client.call(push, str(cache.path), repo_id)
    assert len(files(shared_hub, repo_id)) == 6
    assert before == {file.name: file.read_bytes() for file in cache.path.iterdir()}


def test_a_pull_that_was_interrupted_goes_on(
    client: HubClient, shared_hub: LoopbackHub, cache: TeacherCache, tmp_path: Path
) -> None:
    client.call(push, str(cache.path), "user/slow")
    shared_hub.fail_next("*", "user/slow/resolve/.*/data/train-00002", 500, times=20)
    error = client.error(pull, "user/slow", str(tmp_path))
    assert error.name == "ConnectionError", error
    assert "could not be downloaded" in error.message
    shared_hub.clear_failures()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    with pytest.raises(FileNotFoundError, match="did not finish"):
        TeacherCache.open(next(tmp_path.iterdir()))
    seen = len(shared_hub.requests)
    TeacherCache.open(client.call(pull, "user/slow", str(tmp_path))).verify()
    asked = {request.path for request in shared_hub.requests[seen:] if "/data/" in request.path}
    assert all("train-00002" in path or "train-00003" in path for path in asked), asked


# ---- the command line; packed corpora ----


@pytest.mark.slow
def test_the_recipe_publishes(tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(tiny_texts) + "\n")
    command = [sys.executable, str(RECIPE), "--teacher", tiny_sentence_transformer, "--source"]
    command += [str(tmp_path / "texts.txt"), "--output_dir", str(tmp_path / "caches"), "--device", "cpu", "--private"]

    def run(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = {**environment, "PYTHONPATH": str(RECIPE.parents[1])}
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)

    with LoopbackHub() as hub:
        denied = run("--push_to_hub", "other/tiny", environment=hub.env())
        assert denied.returncode == 1
        assert denied.stderr.strip().splitlines()[-1].startswith("error: other/tiny: user may not write there")
        assert not (tmp_path / "caches").exists(), "asked before the work"
        done = run("--push_to_hub", "tiny", environment=hub.env())
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().splitlines()[-1] == f"{hub.endpoint}/datasets/user/tiny"
        assert hub.repo("user/tiny", "dataset").private
        assert "data/train-00000-of-00001.parquet" in hub.files("user/tiny", repo_type="dataset")
        assert "--push_to_hub user/name, too" in run(environment=hub.env()).stderr


def test_a_packed_corpus_pushes_and_streams(client: HubClient, shared_hub: LoopbackHub) -> None:
    """Token ids in rows of one length, as packing leaves them, and in rows of any."""

    def push_corpus(repo_id):
        from datasets import Dataset, Features, List, Value

        features = Features(
            {"text_input_ids": List(Value("uint16")), "packed": List(Value("int32"), length=8), "row": Value("int64")}
        )
        rows = [{"text_input_ids": list(range(n % 7)), "packed": [n] * 8, "row": n} for n in range(100)]
        Dataset.from_list(rows, features=features).push_to_hub(repo_id, num_shards=2, private=True)

    def stream_corpus(repo_id):
        from datasets import load_dataset

        rows = load_dataset(repo_id, split="train", streaming=True)
        taken = list(rows.skip(48).take(4))
        return [str(rows.features), taken]

    client.call(push_corpus, "user/corpus")
    assert {"data/train-00000-of-00002.parquet", "README.md"} < set(files(shared_hub, "user/corpus"))
    seen = len(shared_hub.requests)
    features, rows = client.call(stream_corpus, "user/corpus")
    assert any(request.status == 206 for request in shared_hub.requests[seen:])
    assert "uint16" in features
    assert rows == [{"text_input_ids": list(range(n % 7)), "packed": [n] * 8, "row": n} for n in range(48, 52)]
