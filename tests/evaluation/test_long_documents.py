"""Long documents: of the asked length, the same every time, their query inside; the evaluator's score means recall."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import MPNetConfig, MPNetModel

from hf_distill.data.length import estimate_tokens
from hf_distill.evaluation import long_documents as module
from hf_distill.evaluation.corpus import hashed_passages
from hf_distill.evaluation.long_documents import LongDocumentEvaluator, long_documents
from hf_distill.trainers.students import build_student, wrap_encoder


@pytest.mark.parametrize("num_tokens", [256, 512])
def test_documents_hold_the_passage_that_is_asked_for(num_tokens: int) -> None:
    task = long_documents("validation", num_tokens, count=60)
    assert task == long_documents("validation", num_tokens, count=60)
    assert len(task.documents) == len(task.queries) == 60
    lengths = [estimate_tokens(document) for document in task.documents]
    assert max(lengths) <= 1.05 * max(num_tokens, 256)
    assert np.mean(lengths) > 0.6 * num_tokens
    bodies = {passage.summary: passage.body for passage in hashed_passages("validation")}
    depths = [document.find(bodies[query]) / len(document) for document, query in zip(*task, strict=True)]
    assert min(depths) >= 0
    assert max(depths) > 0.4  # not always the first passage


def test_splits_share_no_document() -> None:
    assert not set(long_documents("validation", 256, 50).documents) & set(long_documents("test", 256, 50).documents)


def test_wrong_split_and_count() -> None:
    with pytest.raises(ValueError, match="no split"):
        long_documents("train", 256)
    with pytest.raises(ValueError, match="Lower count"):
        long_documents("validation", 512, count=100_000)


def test_recall(tiny_model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = LongDocumentEvaluator(lengths=(128, 256), count=10)
    limit = tiny_model.max_seq_length
    metrics = evaluator(tiny_model)
    assert set(metrics) == {"long_recall", "long_recall_128", "long_recall_256"}
    assert all(0 <= value <= 1 for value in metrics.values())
    assert tiny_model.max_seq_length == limit

    def encode(_: object, texts: list[str], **__: object) -> np.ndarray:
        """Perfect but for two queries that ask for each other's documents."""
        vectors = np.eye(10, dtype=np.float32)
        return vectors[[1, 0, *range(2, 10)]] if texts[0] in evaluator.tasks[128].queries else vectors

    monkeypatch.setattr(module, "encode_sorted", encode)
    assert evaluator(tiny_model)["long_recall_128"] == pytest.approx(0.8)
    assert evaluator(tiny_model)["long_recall_256"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("positions", "lengths", "reads"),
    [
        ("rotary", (128, 512), 512),  # its own limit is larger, yet it sees no more than the others
        ("none", (512, 128), 512),
        ("absolute", (128, 512), 128),  # the rows of its table
        ("absolute", (96,), 96),
    ],
)
def test_models_read_the_longest_documents_as_far_as_their_positions_go(
    tiny_sentence_transformer: str,
    monkeypatch: pytest.MonkeyPatch,
    positions: str,
    lengths: tuple[int, ...],
    reads: int,
) -> None:
    source = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    model = build_student("deltanet", source, position_embedding_type=positions)
    limit = model.max_seq_length
    assert limit == (64 if positions == "absolute" else 8192)
    seen = []

    def encode(model: SentenceTransformer, texts: list[str], **_: object) -> np.ndarray:
        seen.append(model.max_seq_length)
        return np.eye(len(texts), dtype=np.float32)

    monkeypatch.setattr(module, "encode_sorted", encode)
    LongDocumentEvaluator(lengths=lengths, count=5)(model)
    assert seen == [reads] * 2 * len(lengths)
    assert model.max_seq_length == limit

    def fail(*_: object, **__: object) -> np.ndarray:
        raise RuntimeError("no memory")

    monkeypatch.setattr(module, "encode_sorted", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        LongDocumentEvaluator(lengths=lengths, count=5)(model)
    assert model.max_seq_length == limit


def test_a_model_that_counts_its_positions_from_two(tiny_sentence_transformer: str) -> None:
    """MPNet's table has two rows more than a text may have tokens: all of them would be an index error."""
    source = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = MPNetConfig(vocab_size=len(source.tokenizer), max_position_embeddings=130, **sizes)
    model = wrap_encoder(MPNetModel(config), source.tokenizer, 64)
    assert module._positions(model) == 128
    assert 0 <= LongDocumentEvaluator(lengths=(256,), count=3)(model)["long_recall"] <= 1
