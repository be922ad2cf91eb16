"""Tests of the shared fixtures: what other tests rely on is true."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch


def test_tiny_texts(tiny_texts):
    lengths = [len(text.split()) for text in tiny_texts]
    assert len(tiny_texts) == 64 == len(set(tiny_texts))
    assert min(lengths) == 1
    assert max(lengths) == 60


def test_tiny_bert_covers_the_texts_and_tells_them_apart(tiny_bert, tiny_texts):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert), AutoModel.from_pretrained(tiny_bert).eval()
    batch = tokenizer(tiny_texts, padding=True, truncation=True, return_tensors="pt")
    assert (batch["input_ids"] == tokenizer.unk_token_id).sum() == 0
    assert batch["input_ids"].max() < model.config.vocab_size
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    assert hidden.shape[2] == 32
    assert len(model.encoder.layer) == 2
    assert torch.isfinite(hidden).all()


def test_tiny_sentence_transformer(tiny_sentence_transformer, tiny_texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    embeddings = model.encode(tiny_texts)
    assert embeddings.shape == (64, 32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=1e-5)
    cosines = (embeddings @ embeddings.T)[~np.eye(64, dtype=bool)]
    assert cosines.std() > 0.02


def test_no_network_and_one_thread():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert torch.get_num_threads() == 1
    with pytest.raises(Exception, match="allowed|blocked"):
        socket.create_connection(("192.0.2.1", 9), timeout=0.2)


def test_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=2).close()
