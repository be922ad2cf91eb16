"""Encoded corpora: the right rows and ids, resumed after a kill to the same bytes, read only if they are whole."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_distill.data import corpus_writer
from hf_distill.data.bpe import train_bpe
from hf_distill.data.corpus_manifest import CorpusManifest
from hf_distill.data.encoded_corpus import corpus_texts, encode_corpus, load_encoded_corpus, load_tokenizer
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import write_cache

SPEC = TeacherSpec(teacher="org/vectors", revision="1", prompt="query: ", normalize=False)
COLUMNS = ["text", "small_input_ids", "words_input_ids", "teacher_embedding_final"]
LIMIT = 40


class Teacher:
    """A plain function of texts that counts how many it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.stack([np.random.default_rng(zlib.crc32(text.encode())).standard_normal(6) for text in texts])


@pytest.fixture(scope="module")
def texts(tiny_texts: list[str]) -> list[str]:
    return tiny_texts


@pytest.fixture(scope="module")
def tokenizers(texts: list[str], tiny_bert: str) -> dict[str, PreTrainedTokenizerFast]:
    return {"small": train_bpe(texts, 600, progress=False), "words": AutoTokenizer.from_pretrained(tiny_bert)}


@pytest.fixture(scope="module")
def encode(texts: list[str], tokenizers: dict) -> Callable[..., Any]:
    """`encode_corpus` with what most tests agree on."""

    def call(folder: Path, teacher: Any = None, **options: Any) -> Any:
        given = {"spec": SPEC, "max_tokens": LIMIT, "shard_rows": 16, "progress": False, **options}
        rows, names = given.pop("texts", texts), given.pop("tokenizers", tokenizers)
        return encode_corpus(rows, names, teacher or Teacher(), folder, **given)

    return call


@pytest.fixture(scope="module")
def finished(encode: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "finished"
    encode(folder)
    return folder


@pytest.fixture
def corpus(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "corpus"))


def contents(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("data/*"), folder / "corpus.json"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_rows_ids_and_vectors(texts: list[str], tokenizers: dict, encode: Callable, tmp_path: Path) -> None:
    teacher = Teacher()
    report = encode(tmp_path / "c", teacher, origin={"sources": {"kenet": 64}})
    lengths = {name: np.array([len(ids) for ids in each(texts).input_ids]) for name, each in tokenizers.items()}
    keep = np.all([found <= LIMIT for found in lengths.values()], axis=0)
    kept = [text for text, good in zip(texts, keep, strict=True) if good]
    assert 0 < len(kept) < 64
    assert teacher.asked == kept  # the teacher reads nothing that is left out
    manifest = report.manifest
    assert (manifest.rows, manifest.texts, manifest.dropped) == (len(kept), 64, 64 - len(kept))
    for name, found in lengths.items():
        info = manifest.tokenizers[name]
        assert info.over_limit == (found > LIMIT).sum()
        assert (info.tokens, info.longest, info.empty) == (found[keep].sum(), found[keep].max(), 0)
        assert info.vocab_size == len(tokenizers[name])
    assert (manifest.teacher["teacher"], manifest.teacher["prompt"]) == ("org/vectors", "query: ")
    assert manifest.teacher["fingerprint"] == replace(SPEC, dtype="float32").fingerprint
    assert manifest.origin == {"sources": {"kenet": 64}}
    assert f"{len(kept)} of 64 texts were kept" in str(report)
    assert f"small: {(lengths['small'] > LIMIT).sum()} texts over 40 tokens" in str(report)

    dataset = load_encoded_corpus(tmp_path / "c")
    assert dataset.column_names == COLUMNS
    assert dataset["text"][:] == kept
    for name, each in tokenizers.items():
        assert dataset[f"{name}_input_ids"][:] == each(kept).input_ids
    vectors = np.array(dataset["teacher_embedding_final"][:])
    np.testing.assert_array_equal(vectors, Teacher()(kept).astype(np.float16))
    schema = pq.read_schema(tmp_path / "c" / "data" / "train-00000.parquet")
    assert schema.field("teacher_embedding_final").type == pa.list_(pa.float16(), 6)
    assert schema.field("small_input_ids").type == pa.list_(pa.int32())
    assert not (tmp_path / "c" / "tokenised").exists()


def test_options(texts: list[str], tokenizers: dict, encode: Callable, tmp_path: Path) -> None:
    encode(tmp_path / "c", add_special_tokens=False, dtype="float32", cache_dir=tmp_path / "caches")
    dataset = load_encoded_corpus(tmp_path / "c")
    assert dataset[0]["small_input_ids"] == tokenizers["small"](dataset[0]["text"], add_special_tokens=False).input_ids
    assert "float32" in str(dataset.features["teacher_embedding_final"])
    assert len(list((tmp_path / "caches").iterdir())) == 1
    assert not (tmp_path / "c" / "teacher_cache").exists()


def test_an_existing_cache_serves(texts: list[str], encode: Callable, finished: Path, tmp_path: Path) -> None:
    cache = write_cache(texts[::-1], Teacher(), tmp_path / "caches", spec=SPEC, progress=False)
    encode(tmp_path / "c", cache, spec=None)
    assert contents(tmp_path / "c") == contents(finished)
    with pytest.raises(KeyError, match="1 of .* texts are not in the teacher cache"):
        encode(tmp_path / "d", cache, spec=None, texts=[*texts[:3], "not cached"])


@pytest.mark.parametrize("place", ["tokenising", "teacher", "joining", "manifest"])
def test_a_killed_job_goes_on_to_the_same_bytes(
    encode: Callable, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class Killed(BaseException):
        pass

    def dies(at: str, write: Callable) -> Callable:
        def wrapped(path: Path, *rest: Any) -> Any:
            if at in str(path):
                raise Killed
            return write(path, *rest)

        return wrapped

    teacher = Teacher()
    if place == "teacher":

        def killed(texts: list[str]) -> np.ndarray:
            raise Killed

        with pytest.raises(Killed):
            encode(tmp_path / "c", killed)
    elif place == "manifest":
        monkeypatch.setattr(CorpusManifest, "save", dies("", lambda path: None))
        with pytest.raises(Killed):
            encode(tmp_path / "c", teacher)
    else:
        at = {"tokenising": "tokenised/train-00002", "joining": "data/train-00002"}[place]
        monkeypatch.setattr(corpus_writer, "_write", dies(at, corpus_writer._write))
        with pytest.raises(Killed):
            encode(tmp_path / "c", teacher)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        CorpusManifest.load(tmp_path / "c")
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*/train-0000[01].parquet")}
    assert first
    again = Teacher()
    report = encode(tmp_path / "c", again)
    assert contents(tmp_path / "c") == contents(finished)
    if place in ("joining", "manifest"):
        assert again.asked == []
        assert report.reused_shards == (2 if place == "joining" else 4)
        kept = {path: path.stat().st_mtime_ns for path in first if path.parent.name == "data"}
        assert kept.items() <= first.items()


def test_a_finished_corpus_asks_nobody(encode: Callable, corpus: Path) -> None:
    shutil.rmtree(corpus / "teacher_cache")
    before, teacher = contents(corpus), Teacher()
    report = encode(corpus, teacher)
    assert teacher.asked == []
    assert report.reused_shards == 4
    assert contents(corpus) == before
    (corpus / "data" / "train-00001.parquet").write_bytes(b"damaged")
    encode(corpus, teacher)
    assert contents(corpus) == before


def test_a_corpus_grows_and_several_processes_give_the_same(
    texts: list[str], encode: Callable, finished: Path, tmp_path: Path
) -> None:
    teacher = Teacher()
    encode(tmp_path / "c", teacher, texts=texts[:40])
    few = len(teacher.asked)
    encode(tmp_path / "c", teacher)
    assert contents(tmp_path / "c") == contents(finished)
    assert len(teacher.asked) < few + len(load_encoded_corpus(finished))  # not everything anew
    more = [f"{text} {index}" for index, text in enumerate(texts * 8)]
    for folder, num_proc in (("one", 1), ("two", 2)):
        encode(tmp_path / folder, texts=more, num_proc=num_proc, shard_rows=500)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_corpus_is_not_overwritten(texts: list[str], tokenizers: dict, encode: Callable, corpus: Path) -> None:
    before = contents(corpus)
    with pytest.raises(ValueError, match="holds a corpus of 64 other texts.*--overwrite"):
        encode(corpus, texts=texts[::-1])
    with pytest.raises(ValueError, match="holds a corpus of 64 other texts"):
        encode(corpus, texts=texts[:20])
    with pytest.raises(ValueError, match=r"max_tokens: it has 40, asked for is 41"):
        encode(corpus, max_tokens=41)
    with pytest.raises(ValueError, match="tokenizer 'words': it has [0-9a-f]{64}, asked for is None"):
        encode(corpus, tokenizers={"small": tokenizers["small"]})
    with pytest.raises(ValueError, match="other settings .teacher"):
        encode(corpus, spec=replace(SPEC, prompt=""))
    cache = write_cache(texts, Teacher(), corpus / "other", spec=replace(SPEC, revision="2"), progress=False)
    with pytest.raises(ValueError, match="other settings .teacher"):
        encode(corpus, cache, spec=None)
    assert contents(corpus) == before
    encode(corpus, texts=texts[:20], overwrite=True)
    assert CorpusManifest.load(corpus).texts == 20
    assert len(contents(corpus)) == 3  # two shards and the manifest: no file of the larger one stays


def test_rows_without_a_token_and_empty_shards(tokenizers: dict, encode: Callable, tmp_path: Path) -> None:
    texts = ["\u200b", "a river"] + ["word " * 90] * 16 + ["a mill"]
    options = {
        "texts": texts,
        "add_special_tokens": False,
        "tokenizers": {"words": tokenizers["words"]},
        "shard_rows": 2,
    }
    report = encode(tmp_path / "c", **options)
    info = report.manifest.tokenizers["words"]
    assert (info.empty, info.over_limit, report.manifest.rows) == (1, 16, 2)
    assert load_encoded_corpus(tmp_path / "c")["text"][:] == ["a river", "a mill"]
    with pytest.raises(ValueError, match="None of the 1 texts has 1 to 40 tokens for every tokenizer"):
        encode(tmp_path / "d", texts=["word " * 90])


def test_bad_requests(texts: list[str], tokenizers: dict, encode: Callable, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizers["small"].backend_tokenizer)
    with pytest.raises(ValueError, match="The tokenizer 'bare' cannot serve: it has no padding token"):
        encode(tmp_path / "c", tokenizers={"bare": bare})
    with pytest.raises(ValueError, match="tokenizer name 'Tabi-32k'"):
        encode(tmp_path / "c", tokenizers={"Tabi-32k": tokenizers["small"]})
    with pytest.raises(ValueError, match="There is no tokenizer"):
        encode(tmp_path / "c", tokenizers={})
    with pytest.raises(ValueError, match="Row 1 has no text"):
        encode(tmp_path / "c", texts=["a", ""])
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        encode(tmp_path / "c", dtype="int8")
    with pytest.raises(ValueError, match="at least 1"):
        encode(tmp_path / "c", num_proc=0)
    assert not (tmp_path / "c").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        encode(tmp_path / "file")


# ---- reading ----


def rewrite(folder: Path, column: str, change: Callable[[list], None]) -> None:
    """Change a column of the second shard in a corpus that was made elsewhere, so without a manifest."""
    (folder / "corpus.json").unlink(missing_ok=True)
    file = folder / "data" / "train-00001.parquet"
    table = pq.read_table(file)
    values = table[column].to_pylist()
    change(values)
    kind = pa.list_(pa.float32()) if column == COLUMNS[3] else table.schema.field(column).type
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, column, pa.array(values, kind)), file)
    if column == COLUMNS[3]:
        for other in folder.glob("data/*.parquet"):
            other_table = pq.read_table(other)
            pq.write_table(other_table.set_column(3, column, other_table[column].cast(kind)), other)


def setter(row: int, value: Any) -> Callable[[list], None]:
    return lambda values: values.__setitem__(row, value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("small_input_ids", [1, 5000, 2], "Row {} of column 'small_input_ids' holds the token id 5000, outside"),
        ("small_input_ids", [-1], "Row {} of column 'small_input_ids' holds the token id -1"),
        ("words_input_ids", [], "Row {} of column 'words_input_ids' holds no token ids"),
        ("words_input_ids", None, "Row {} of column 'words_input_ids' holds no token ids"),
        ("teacher_embedding_final", [1.0] * 5, "Row {} of column 'teacher_embedding_final' holds 5 numbers, .* 6"),
        ("teacher_embedding_final", [float("nan")] * 6, "Row {} of column 'teacher_embedding_final' holds NaN"),
        ("teacher_embedding_final", None, "Row {} of column 'teacher_embedding_final' holds no vector"),
        ("text", " ", "Row {} of column 'text' holds no text"),
        ("text", None, "Row {} of column 'text' holds no text"),
    ],
)
def test_bad_rows_are_named(corpus: Path, tokenizers: dict, column: str, value: Any, message: str) -> None:
    row = CorpusManifest.load(corpus).shards[0].rows + 3
    rewrite(corpus, column, setter(3, value))
    with pytest.raises(ValueError, match=message.format(row)):
        load_encoded_corpus(corpus, tokenizers)


def test_files_that_are_not_what_was_written(corpus: Path, tokenizers: dict) -> None:
    file = corpus / "data" / "train-00001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(ValueError, match=r"train-00001\.parquet is not the file that corpus\.json names"):
        load_encoded_corpus(corpus)
    (corpus / "corpus.json").unlink()
    pq.write_table(table.drop_columns(["words_input_ids"]), file)
    with pytest.raises(
        ValueError, match=r"train-00001\.parquet lacks the column 'words_input_ids', which train-00000"
    ):
        load_encoded_corpus(corpus, tokenizers)
    file.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="not a Parquet file"):
        load_encoded_corpus(corpus, tokenizers)


def test_missing_files(corpus: Path, tmp_path: Path) -> None:
    (corpus / "data" / "train-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="train-00002.*Encode the corpus"):
        load_encoded_corpus(corpus)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no corpus.json"):
        load_encoded_corpus(tmp_path / "empty")
    (corpus / "corpus.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(ValueError, match="its format is not 1"):
        load_encoded_corpus(corpus)


def test_columns_belong_to_tokenizers(corpus: Path, tokenizers: dict) -> None:
    assert load_encoded_corpus(corpus, {"words": tokenizers["words"]}).column_names == [COLUMNS[0], *COLUMNS[2:]]
    with pytest.raises(ValueError, match="'small_input_ids' was made by another tokenizer"):
        load_encoded_corpus(corpus, {"small": tokenizers["words"]})
    with pytest.raises(ValueError, match=r"no column 'mft_input_ids'; its tokenizers are \['small', 'words'\]"):
        load_encoded_corpus(corpus, {"mft": 32768})
    (corpus / "corpus.json").unlink()
    with pytest.raises(ValueError, match="column 'small_input_ids' has no tokenizer"):
        load_encoded_corpus(corpus)
    assert load_encoded_corpus(corpus, {"small": 600}).column_names == [*COLUMNS[:2], COLUMNS[3]]


def test_the_hub(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = load_encoded_corpus(finished)

    def fake(hub_id: str, config: str | None, split: str, streaming: bool) -> Dataset:
        assert (hub_id, split) == ("alibayram/cosmos-corpus-encoded", "train")
        return local.remove_columns("text") if columns == "fewer" else local

    monkeypatch.setattr("hf_distill.data.sources.load_dataset", fake)
    columns = "all"
    dataset = load_encoded_corpus("alibayram/cosmos-corpus-encoded", {"words": 400})
    assert dataset["words_input_ids"][:] == local["words_input_ids"][:]
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_encoded_corpus("alibayram/cosmos-corpus-encoded")
    columns = "fewer"
    with pytest.raises(ValueError, match="an encoded corpus has 'text', too"):
        load_encoded_corpus("alibayram/cosmos-corpus-encoded", {"words": 400})


# ---- texts and tokenizers by name ----


def test_texts_of_sources_without_the_evaluations(tmp_path: Path, texts: list[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(texts), encoding="utf-8")
    found, rows, overlap = corpus_texts({str(file): 1}, 1000, held_out=[texts[0].upper()])
    assert texts[0] not in found
    assert len(found) == len(texts) - overlap.removed < len(texts)
    assert rows == {"mine.txt": len(found) + overlap.removed}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"anchor": "a river", "positive": "a mill"}), encoding="utf-8")
    with pytest.raises(ValueError, match="pairs"):
        corpus_texts({str(pairs): 1}, 10)


def test_tokenizers_by_name(tiny_bert: str, tmp_path: Path) -> None:
    assert len(load_tokenizer(tiny_bert)) > 100
    with pytest.raises(ConnectionError, match="org/none.*recipes/train_tokenizer.py"):
        load_tokenizer("org/none")
    with pytest.raises(FileNotFoundError, match="cannot be loaded from that folder"):
        load_tokenizer(str(tmp_path))


def test_the_mft_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    mft = load_tokenizer("mft")
    encode_corpus(["Kitapları okudum.", "Kar yağıyor."], {"mft": mft}, Teacher(), tmp_path, spec=SPEC, progress=False)
    assert load_encoded_corpus(tmp_path)["mft_input_ids"][:] == mft(["Kitapları okudum.", "Kar yağıyor."]).input_ids
