"""The teacher of the tokenizer experiment: a plain function of another width, a prompt, and corpora of other teachers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from hf_distill.evaluation.bitext import BitextEvaluator
from hf_distill.evaluation.encode import encode_sorted, normalize_rows
from hf_distill.evaluation.suite import add_speed, add_tokenizers, score_models
from hf_distill.evaluation.training_summary import Origin
from hf_distill.teachers import named
from hf_distill.teachers.callables import USE_MULTILINGUAL
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.trainers import tokenizer_materials
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.tokenizer_materials import held_out_texts, prepare, prepare_corpus, prepare_tokenizers
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe
from hf_distill.trainers.tokenizer_stages import new_student, notes, without_unknown
from hf_distill.trainers.tokenizer_teacher import open_teacher, project_teacher

SPEC = TeacherSpec(teacher=USE_MULTILINGUAL, revision="words 1.0", weights_sha256="ab" * 32, dtype="float32")
WIDTH = 48


def words(texts: list[str]) -> np.ndarray:
    """A teacher of 48 numbers: every word has its own random vector."""
    rows = []
    for text in texts:
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little") for word in text.split()]
        rows.append(np.sum([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds], axis=0))
    return np.array(rows, dtype=np.float32)


@pytest.fixture
def use(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the Universal Sentence Encoder, with a small function behind it."""
    monkeypatch.setattr(named, "use_multilingual", lambda normalize, truncate_dim: (words, SPEC))
    monkeypatch.setattr(named, "use_tokenizer", lambda: AutoTokenizer.from_pretrained(tiny_bert))


@pytest.fixture
def fields(
    tiny_sentence_transformer: str,
    tiny_bert: str,
    tiny_texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    monkeypatch.setattr(tokenizer_materials, "held_out_texts", lambda recipe: [])
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(tiny_texts) + "\n", encoding="utf-8")
    return {
        "teacher": tiny_sentence_transformer,
        "tokenizers": {"words": tiny_bert},
        "backbones": {"tiny": tiny_sentence_transformer},
        "sources": {str(file): 1},
        "num_texts": 64,
        "tasks": ["bitext"],
    }


@pytest.fixture
def args(tmp_path: Path) -> EmbeddingDistillConfig:
    return EmbeddingDistillConfig(str(tmp_path / "out"), bf16=False, report_to="none", disable_tqdm=True)


@pytest.fixture
def elsewhere(fields: dict[str, Any], args: EmbeddingDistillConfig) -> Callable[..., TokenizerRecipe]:
    """A recipe with a given corpus of the tiny teacher, or, without the manifest, as another program would write it."""
    made = TokenizerRecipe(**fields)
    prepare_corpus(made, args, prepare_tokenizers(made, args, []), [], open_teacher(made))
    place = Path(args.output_dir) / "corpus"

    def build(manifest: bool = True, **change: Any) -> TokenizerRecipe:
        if not manifest:
            (place / "corpus.json").unlink()
        return TokenizerRecipe(**{**fields, "corpus": str(place), **change})

    return build


def load(recipe: TokenizerRecipe, args: EmbeddingDistillConfig) -> int:
    tokenizers = prepare_tokenizers(recipe, args, [])
    return len(prepare_corpus(recipe, args, tokenizers, [], open_teacher(recipe))[0])


@pytest.mark.usefixtures("use")
def test_a_plain_function_of_another_width_teaches(
    fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_texts: list[str]
) -> None:
    recipe = TokenizerRecipe(**{**fields, "teacher": USE_MULTILINGUAL, "teacher_dim": 32})
    materials = prepare(recipe, args)
    texts, vectors = materials.dataset["text"][:], np.array(materials.dataset["teacher_embedding_final"][:])
    assert vectors.shape == (len(texts), 32)
    assert materials.dataset.column_names == ["text", "words_input_ids", "teacher_embedding_final"]
    np.testing.assert_allclose(vectors, encode_sorted(materials.teacher, texts), atol=2e-3)
    # PCA keeps the cosines as well as any map of this width
    full = normalize_rows(words(texts))
    assert np.corrcoef((vectors @ vectors.T).ravel(), (full @ full.T).ravel())[0, 1] > 0.95
    assert "48 numbers a text are brought to the students' 32 by PCA" in materials.projection
    assert materials.projection in notes(recipe, materials)
    note = "from the Python package words 1.0, weights with sha256 abababababababab"
    assert materials.origin == Origin(USE_MULTILINGUAL, license="apache-2.0", on_hub=False, note=note)
    corpus = json.loads((Path(args.output_dir) / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    assert (corpus["dim"], corpus["teacher"]["teacher"]) == (WIDTH, USE_MULTILINGUAL)
    assert prepare(recipe, args).dataset["text"][:] == texts  # a second time the corpus is its own


@pytest.mark.usefixtures("use")
def test_a_plain_function_is_scored(
    fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TokenizerRecipe(**{**fields, "teacher": USE_MULTILINGUAL, "teacher_dim": 32})
    materials = prepare(recipe, args)
    student, _ = new_student(recipe.jobs(args)[0], recipe, materials)
    models = {"teacher": (USE_MULTILINGUAL, materials.teacher), "student": ("words-tiny", student)}
    from hf_distill.evaluation import suite

    def evaluators(tasks: list[str], split: str, dtype: str, folder: Any, teacher: Any) -> dict[str, Any]:
        return {"bitext": BitextEvaluator(tiny_texts, tiny_texts, teacher, dtype=dtype, split=split)}

    monkeypatch.setattr(suite, "turkish_evaluators", evaluators)
    rows = score_models(models, {"test": ["bitext"]})
    add_speed(rows, models, 1, tiny_texts[:8])
    add_tokenizers(rows, models, tiny_texts, {"teacher": "use", "student": "words"})
    teacher, student_row = without_unknown(list(rows.values()), materials.teacher)
    assert teacher.metrics["test"]["bitext_recall_at_10"] == 1
    assert "bitext_recall_at_1" in student_row.metrics["test"]  # against the teacher's candidates, of its width
    assert teacher.size is None
    assert (teacher.speed.dtype, teacher.speed.peak_memory_mb) == ("float32", None)
    assert teacher.speed.texts_per_second > 0
    assert teacher.tokenizer.tokens_per_word > 1
    assert student_row.size.parameters > 1000


@pytest.mark.usefixtures("use")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {},
            r"words-tiny has 32 numbers a text, but its teacher use-multilingual-v3 has 48\. Choose --teacher_dim 32",
        ),
        ({"teacher_dim": 64}, "teacher_dim=64, but the teacher use-multilingual-v3 has 48"),
        ({"prompt": "query: "}, "'use-multilingual-v3' is a plain function: it knows no prompt"),
        ({"teacher_revision": "main"}, "'use-multilingual-v3' is a plain function: it knows no revision"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(
    change: dict[str, Any], message: str, fields: dict[str, Any], args: EmbeddingDistillConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(TokenizerRecipe(**{**fields, "teacher": USE_MULTILINGUAL, **change}), args)
    assert not Path(args.output_dir).exists()


def test_a_model_that_is_projected_stays_what_it_was(
    fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_sentence_transformer: str
) -> None:
    fields["backbones"] = {"narrow": {"model": tiny_sentence_transformer, "hidden_size": 16}}
    recipe = TokenizerRecipe(**fields, teacher_dim=16, prompt="see: ")
    materials = prepare(recipe, args)
    assert np.shape(materials.dataset["teacher_embedding_final"][:]) == (len(materials.dataset), 16)
    assert materials.teacher.get_embedding_dimension() == 16
    assert materials.teacher.default_prompt_name is not None
    assert len(materials.models[tiny_sentence_transformer]) == 3
    student, _ = new_student(recipe.jobs(args)[0], recipe, materials)
    assert student.get_embedding_dimension() == 16
    assert [type(module).__name__ for module in student] == ["Transformer", "Pooling", "Normalize"]
    assert student.encode(["the river"]).shape == (1, 16)


def test_a_projection_of_chosen_rows(fields: dict[str, Any], args: EmbeddingDistillConfig) -> None:
    recipe = TokenizerRecipe(**fields)
    teacher = open_teacher(recipe)
    dataset, *_ = prepare_corpus(recipe, args, prepare_tokenizers(recipe, args, []), [], teacher)
    some = dataset.select([5, 3, 9, 8])
    projected, model, _ = project_teacher(some, teacher.model, 2)
    assert projected["text"][:] == some["text"][:]
    vectors = np.array(projected["teacher_embedding_final"][:])
    np.testing.assert_allclose(vectors, encode_sorted(model, some["text"][:], dtype="float32"), atol=5e-3)


def test_the_prompt_counts_when_the_teacher_is_scored(fields: dict[str, Any], tiny_sentence_transformer: str) -> None:
    plain = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    texts = ["the river", "two children"]
    asked = open_teacher(TokenizerRecipe(**fields, prompt="the mill: "))
    expected = plain.encode(["the mill: " + text for text in texts])
    np.testing.assert_allclose(encode_sorted(asked.model, texts, dtype="float32"), expected, atol=1e-5)
    np.testing.assert_allclose(asked.encoder.embed(texts), expected, atol=2e-2)
    assert asked.spec.prompt == "the mill: "
    members = {"first": {"model": tiny_sentence_transformer, "prompt": "the mill: "}, "second": {"model": "x"}}
    first = open_teacher(TokenizerRecipe(**{**fields, "teacher": None, "teachers": members}))
    np.testing.assert_allclose(encode_sorted(first.model, texts, dtype="float32"), expected, atol=1e-5)
    members = {"second": {"model": "x"}, "named": members["first"]}
    chosen = open_teacher(TokenizerRecipe(**{**fields, "teachers": members}))
    np.testing.assert_allclose(encode_sorted(chosen.model, texts, dtype="float32"), expected, atol=1e-5)


def test_the_revision_pins_the_teacher(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = named.load_teacher
    monkeypatch.setattr(named, "load_teacher", lambda *a: asked.append(a[3]) or real(*a))
    recipe = TokenizerRecipe(**fields, teacher_revision="abc123")
    assert open_teacher(recipe).spec.revision == "abc123"
    assert asked == ["abc123"]
    assert recipe.shared(42)["teacher_revision"] == "abc123"


def test_a_corpus_of_this_teacher_is_taken(
    elsewhere: Callable[..., TokenizerRecipe], args: EmbeddingDistillConfig
) -> None:
    rows = load(elsewhere(), args)
    assert rows == load(elsewhere(manifest=False), args) > 40


def test_a_corpus_with_another_prompt_is_refused(
    elsewhere: Callable[..., TokenizerRecipe], args: EmbeddingDistillConfig
) -> None:
    with pytest.raises(ValueError, match=r"prompt: the corpus has '', expected is 'see: '"):
        load(elsewhere(prompt="see: "), args)
    with pytest.raises(
        ValueError, match=r"corpus .* than .* with the prompt 'the old mill and the gate: '.* mean cosine"
    ):
        load(elsewhere(manifest=False, prompt="the old mill and the gate: "), args)


@pytest.mark.usefixtures("use")
def test_a_corpus_of_another_teacher_is_refused(
    elsewhere: Callable[..., TokenizerRecipe], args: EmbeddingDistillConfig
) -> None:
    with pytest.raises(ValueError, match=r"teacher 'use-multilingual-v3' .*\n.*weights_sha256: the corpus has "):
        load(elsewhere(teacher=USE_MULTILINGUAL), args)
    with pytest.raises(ValueError, match=r"vectors of 32 numbers, but the teacher 'use-multilingual-v3' .* gives 48"):
        load(elsewhere(manifest=False, teacher=USE_MULTILINGUAL), args)


def test_a_corpus_made_elsewhere_may_hold_large_strings(
    elsewhere: Callable[..., TokenizerRecipe], args: EmbeddingDistillConfig
) -> None:
    recipe = elsewhere(manifest=False)
    file = Path(recipe.corpus) / "data" / "train-00000.parquet"
    table = pq.read_table(file)
    texts = table["text"].cast(pa.large_string())
    pq.write_table(table.set_column(0, "text", texts), file)
    assert pa.types.is_large_string(pq.read_schema(file).field("text").type)
    assert load(recipe, args) == len(table)


def test_what_is_held_out_follows_the_tasks(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]) -> None:
    monkeypatch.setattr(tokenizer_materials, "held_out_turkish", lambda folder: ["all"])
    assert held_out_texts(TokenizerRecipe(**fields)) == ["all"]
