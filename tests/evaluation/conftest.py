"""Tiny models for the evaluation tests: a random transformer with a few dimensions and a random static table."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_model(tiny_sentence_transformer):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(tiny_sentence_transformer, device="cpu")


@pytest.fixture(scope="session")
def static_model(tiny_bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert).backend_tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
