"""Writing a cache: the right rows, the same bytes, and one clear error for whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from hf_distill.teachers import writer
from hf_distill.teachers.cached import TeacherCache
from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import write_cache

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rows_equal_encode(tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    spec = TeacherSpec.of(tiny_model, dtype="float32")
    cache = write_cache(
        tiny_texts, tiny_model, tmp_path, spec=spec, shard_rows=20, tokens_per_batch=100, progress=False
    )
    rows = np.arange(len(tiny_texts))
    np.testing.assert_allclose(cache.embeddings(rows), tiny_model.encode(tiny_texts), atol=1e-3)
    assert (
        cache.manifest.num_tokens
        == cache.report.tokens
        == sum(map(len, LiveTeacher(tiny_model).tokenize(tiny_texts)[0]))
    )
    assert cache.report.tokens_per_second > 0
    assert cache.spec == spec


def test_progress_is_shown_where_it_is_wanted(
    tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str], capsys: pytest.CaptureFixture
) -> None:
    write_cache(tiny_texts, tiny_model, tmp_path / "quiet", progress=False)
    assert "teacher" not in capsys.readouterr().err
    write_cache(tiny_texts, tiny_model, tmp_path / "shown")
    assert re.search(r"teacher 100%\|.*k tokens/s", capsys.readouterr().err)


def test_bytes_per_dimension(tmp_path: Path, tiny_texts: list[str]) -> None:
    texts = [f"{text} {index}" for index in range(40) for text in tiny_texts]
    spec = TeacherSpec(teacher="wide")
    cache = write_cache(texts, lambda batch: np.ones((len(batch), 384)), tmp_path, spec=spec, progress=False)
    size = sum(path.stat().st_size for path in cache.path.iterdir())
    assert size / len(texts) / 384 <= 2.05


def test_same_settings_same_bytes(tmp_path: Path, tiny_sentence_transformer: str, tiny_texts: list[str]) -> None:
    options = {"shard_rows": 30, "signals": ("embedding", "hidden_1"), "progress": False}
    for name in ("one", "two"):
        teacher = LiveTeacher(tiny_sentence_transformer, dtype="bfloat16", device="cpu")
        write_cache(tiny_texts, teacher, tmp_path / name, **options)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(files_of(tmp_path / "one")) == 4


def test_prompt_truncation_and_normalisation(
    tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]
) -> None:
    spec = TeacherSpec.of(tiny_model, prompt="the river: ", truncate_dim=10, dtype="float32")
    cache = write_cache(tiny_texts, tiny_model, tmp_path, spec=spec, progress=False)
    expected = tiny_model.encode(tiny_texts, prompt="the river: ")[:, :10]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert cache.dim == 10
    np.testing.assert_allclose(cache.embeddings(np.arange(64)), expected, atol=1e-3)


def test_the_prompt_of_the_teacher_is_written_down(
    tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]
) -> None:
    tiny_model.prompts["query"], tiny_model.default_prompt_name = "the river: ", "query"
    for name, prompt, expected in (("own", None, "the river: "), ("none", "", ""), ("other", "a mill: ", "a mill: ")):
        teacher = LiveTeacher(tiny_model, dtype="float32", prompt=prompt)
        cache = write_cache(tiny_texts, teacher, tmp_path / name, progress=False)
        assert cache.spec.prompt == expected
        found = tiny_model.encode(tiny_texts, prompt=expected)
        np.testing.assert_allclose(cache.embeddings(range(len(tiny_texts))), found, atol=1e-3)


def test_given_token_ids(tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    rows = [row.tolist() for row in LiveTeacher(tiny_model).tokenize(tiny_texts)[0]]
    plain = write_cache(tiny_texts, tiny_model, tmp_path / "a", progress=False)
    given = write_cache(tiny_texts, tiny_model, tmp_path / "b", input_ids=rows, progress=False)
    every = np.arange(64)
    np.testing.assert_array_equal(plain.embeddings(every), given.embeddings(every))
    assert given.rows_for(tiny_texts[5:6]).tolist() == [5]
    other = [rows[0][::-1], *rows[1:]]
    changed = write_cache(tiny_texts, tiny_model, tmp_path / "b", input_ids=other, progress=False)
    assert changed.report.rows == 64
    assert not np.array_equal(changed.embeddings([0]), given.embeddings([0]))


@pytest.mark.parametrize(
    ("row", "ids", "message"),
    [
        (3, [], "row 3 are empty"),
        (3, [[1]], "row 3 are empty or not a flat list"),
        (4, [2] * 65, "row 4 are 65 tokens.*reads 64"),
        (5, [2, 999999, 3], "row 5 hold 999999.*another tokenizer"),
        (5, [2, -4, 3], "row 5 hold -4"),
    ],
)
def test_bad_token_ids(
    tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str], row: int, ids: list, message: str
) -> None:
    rows: list = [[2, 3]] * 64
    rows[row] = ids
    with pytest.raises(ValueError, match=message):
        write_cache(tiny_texts, tiny_model, tmp_path, input_ids=rows)
    with pytest.raises(ValueError, match="64 texts, but 10 rows"):
        write_cache(tiny_texts, tiny_model, tmp_path, input_ids=rows[:10])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [None, "", " \n\t", 7])
def test_a_row_without_text(tmp_path: Path, vectors: Callable, vector_spec: TeacherSpec, bad: object) -> None:
    with pytest.raises(ValueError, match="Row 2 has no text"):
        write_cache(["a", "b", bad, "c"], vectors, tmp_path, spec=vector_spec)
    with pytest.raises(ValueError, match="no texts"):
        write_cache([], vectors, tmp_path, spec=vector_spec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_teacher_that_gives_nan(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec, bad: float
) -> None:
    def broken(texts: list[str]) -> np.ndarray:
        found = vectors(texts)
        found[[text == tiny_texts[33] for text in texts], 4] = bad
        return found

    options = {"spec": vector_spec, "shard_rows": 10, "progress": False}
    with pytest.raises(ValueError, match="NaN or infinity in embedding of row 33") as error:
        write_cache(tiny_texts, broken, tmp_path, **options)
    assert tiny_texts[33][:30] in str(error.value)
    assert write_cache(tiny_texts, vectors, tmp_path, **options).report.reused_rows == 30


def test_a_hidden_state_too_large_for_float16(
    tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]
) -> None:
    live = LiveTeacher(tiny_model, dtype="float32")
    texts = [*tiny_texts[:20], "the number 9", *tiny_texts[20:]]
    with torch.no_grad():
        token = live.model.tokenizer.convert_tokens_to_ids("9")
        live.encoder.get_input_embeddings().weight[token, 5] = 1e6
        live.encoder.embeddings.LayerNorm = torch.nn.Identity()
    options = {"signals": ("embedding", "hidden_0"), "shard_rows": 8, "progress": False}
    with pytest.raises(ValueError, match=r"1e\+06 in hidden_0 of row 20, .*'the number 9'.*too large for float16"):
        write_cache(texts, live, tmp_path, **options)


@pytest.mark.parametrize(("shape", "message"), [((3, 6), r"\(3, 6\) for 64 texts"), ((64,), r"\(64,\) for 64 texts")])
def test_a_function_of_a_wrong_shape(
    tmp_path: Path, tiny_texts: list[str], vector_spec: TeacherSpec, shape: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_cache(tiny_texts, lambda _: np.ones(shape), tmp_path, spec=vector_spec, progress=False)


def test_a_function_that_changes_its_width(tmp_path: Path, tiny_texts: list[str], vector_spec: TeacherSpec) -> None:
    widths = iter([5, 5, 7, 7, 7, 7, 7])
    with pytest.raises(ValueError, match="7 dimensions from row 20 on, and 5 before"):
        write_cache(
            tiny_texts,
            lambda t: np.ones((len(t), next(widths))),
            tmp_path,
            spec=vector_spec,
            batch_size=10,
            progress=False,
        )
    for count, width in ((10, 5), (20, 6)):
        options = {"spec": vector_spec, "shard_rows": 10, "progress": False}
        embed = lambda texts, width=width: torch.ones(len(texts), width)  # noqa: E731
        if width == 5:
            write_cache(tiny_texts[:count], embed, tmp_path, **options)
        else:
            with pytest.raises(ValueError, match=r"\[5, 6\] dimensions.*Delete"):
                write_cache(tiny_texts[:count], embed, tmp_path, **options)


def test_specs_that_do_not_fit(tmp_path: Path, tiny_model: SentenceTransformer, vectors: Callable) -> None:
    spec = TeacherSpec.of(tiny_model, dtype="float32")
    for wrong in ({"weights_sha256": "ff"}, {"tokenizer_sha256": "ff"}, {"max_seq_length": 7}, {"pooling": "cls"}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"does not describe the teacher:\n  {name}: the model has"):
            write_cache(["a"], tiny_model, tmp_path, spec=replace(spec, **wrong))
    with pytest.raises(ValueError, match="dtype: the model has 'bfloat16', the spec says 'float32'"):
        write_cache(["a"], LiveTeacher(tiny_model, dtype="bfloat16"), tmp_path, spec=spec)
    with pytest.raises(ValueError, match="hidden states 0 to 2"):
        write_cache(["a"], tiny_model, tmp_path, signals=("embedding", "hidden_3"))
    with pytest.raises(ValueError, match="needs a TeacherSpec"):
        write_cache(["a"], vectors, tmp_path)
    with pytest.raises(ValueError, match="no hidden states"):
        write_cache(["a"], vectors, tmp_path, spec=TeacherSpec(teacher="f", signals=("embedding", "hidden_1")))
    with pytest.raises(ValueError, match="at least 1"):
        write_cache(["a"], vectors, tmp_path, spec=TeacherSpec(teacher="f"), batch_size=0)
    with pytest.raises(ValueError, match="does not take token ids"):
        write_cache(["a"], vectors, tmp_path, spec=TeacherSpec(teacher="f"), input_ids=[[1]])
    with pytest.raises(ValueError, match="truncate_dim is 9, but the teacher 'f' gives 6"):
        write_cache(["a"], vectors, tmp_path, spec=TeacherSpec(teacher="f", truncate_dim=9), progress=False)


def test_auto_dtype_is_recorded_and_served(tmp_path: Path, tiny_model: SentenceTransformer) -> None:
    cache = write_cache(["a river"], tiny_model, tmp_path, progress=False)
    assert cache.spec.dtype == LiveTeacher(tiny_model).dtype
    assert len(TeacherCache.open(tmp_path, expect=TeacherSpec.of(tiny_model))) == 1


def test_static_table(tmp_path: Path, tiny_model: SentenceTransformer, tiny_texts: list[str]) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    table = StaticEmbedding(tiny_model.tokenizer.backend_tokenizer, embedding_dim=8)
    model = SentenceTransformer(modules=[table], device="cpu")
    cache = write_cache(tiny_texts, model, tmp_path, progress=False)
    np.testing.assert_allclose(cache.embeddings([9, 2]), model.encode([tiny_texts[9], tiny_texts[2]]), atol=1e-3)
    assert cache.spec.dtype == "float32"


def test_processes_share_the_shards(
    tmp_path: Path, tiny_texts: list[str], vectors: Callable, vector_spec: TeacherSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = write_cache(tiny_texts, vectors, tmp_path / "alone", spec=vector_spec, shard_rows=10, progress=False)
    monkeypatch.setattr(writer, "_wait", lambda: None)
    encoder, spec = writer._prepare(vectors, vector_spec, None, 64, None)
    folder = tmp_path / "shared" / alone.path.name
    folder.mkdir(parents=True)
    jobs = [writer._Job(folder, spec, tiny_texts, *writer.hash_texts(tiny_texts), None, 10) for _ in range(2)]
    for job in jobs:
        job.find(overwrite=False)
    rows = []
    for rank in (1, 0):
        monkeypatch.setattr(writer, "_process", lambda rank=rank: (rank, 2))
        rows.append(jobs[rank].encode(encoder, progress=False).rows)
        if rank == 1:
            jobs[rank].finish()
            assert not (folder / "manifest.json").exists()
    jobs[0].finish()
    assert rows == [30, 34]
    assert files_of(folder) == files_of(alone.path)
