"""Vocabulary pruning: kept texts are cut into the same tokens, and models give the same output."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_distill.data.pruning import prune_vocabulary

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
KINDS = ["byte_level_tokenizer", "unigram_tokenizer", "llama_tokenizer", "wordpiece_tokenizer"]


@pytest.fixture(params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(request.param)
    if tokenizer.pad_token is None:
        tokenizer = copy.deepcopy(tokenizer)  # other tests share the one without a padding token
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build(tokenizer) -> PreTrainedModel:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SMALL, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)).eval()


def test_kept_texts_do_not_change(any_tokenizer, turkish_texts, tiny_texts, tmp_path: Path) -> None:
    texts = [*turkish_texts[:2], *tiny_texts[:2]]
    model = build(any_tokenizer)
    small, tokenizer, id_map = prune_vocabulary(model, any_tokenizer, texts)
    assert len(tokenizer) == len(id_map) == small.config.vocab_size < len(any_tokenizer) == model.config.vocab_size
    assert list(id_map) == sorted(id_map)
    assert list(id_map.values()) == list(range(len(id_map)))
    for text in texts:
        assert tokenizer(text)["input_ids"] == [id_map[index] for index in any_tokenizer(text)["input_ids"]]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == any_tokenizer.decode(any_tokenizer(text)["input_ids"])
    strings = tokenizer.get_vocab()
    assert {any_tokenizer.convert_ids_to_tokens(old): new for old, new in id_map.items()} == strings
    assert tokenizer.special_tokens_map == any_tokenizer.special_tokens_map
    assert tokenizer.model_max_length == any_tokenizer.model_max_length
    pair = any_tokenizer("ev", "su")["input_ids"]
    if set(pair) <= set(id_map):
        assert tokenizer("ev", "su")["input_ids"] == [id_map[index] for index in pair]
    with torch.no_grad():
        before = model(**any_tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))[0]
        after = small(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))[0]
    torch.testing.assert_close(after, before[..., list(id_map)])
    tokenizer.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == strings
    assert [again(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_choice_of_texts(
    data, byte_level_tokenizer, unigram_tokenizer, wordpiece_tokenizer, turkish_texts
) -> None:
    tokenizer = data.draw(st.sampled_from([byte_level_tokenizer, unigram_tokenizer, wordpiece_tokenizer]))
    words = sorted({word.strip(".,;").lower() for text in turkish_texts for word in text.split()})
    if tokenizer is wordpiece_tokenizer:
        words = ["small", "river", "birdly", "notebook", "seasons", "zz", "waterly"]
    texts = data.draw(st.lists(st.lists(st.sampled_from(words), min_size=1, max_size=4).map(" ".join), min_size=1))
    _, small, id_map = prune_vocabulary(build(tokenizer), tokenizer, texts)
    for text in texts:
        assert small(text)["input_ids"] == [id_map[index] for index in tokenizer(text)["input_ids"]]


def test_ids_to_keep(any_tokenizer) -> None:
    """Ids can be kept instead of texts; each stays reachable, and special tokens stay unasked."""
    kept = random.Random(0).sample(range(len(any_tokenizer)), 12)
    model = build(any_tokenizer)
    small, tokenizer, id_map = prune_vocabulary(model, any_tokenizer, kept)
    assert {*kept, *any_tokenizer.all_special_ids} <= set(id_map)
    table, old = small.get_input_embeddings(), model.get_input_embeddings()
    for index, new in id_map.items():
        assert torch.equal(table.weight[new], old.weight[index])
    assert table.padding_idx == tokenizer.pad_token_id == id_map[any_tokenizer.pad_token_id]
    head = small.get_output_embeddings()
    assert head.weight is table.weight
    assert torch.equal(head.bias, model.get_output_embeddings().bias[list(id_map)])


def test_untied_head(byte_level_tokenizer) -> None:
    sizes = {**SMALL, "vocab_size": len(byte_level_tokenizer), "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    small, _, id_map = prune_vocabulary(model, byte_level_tokenizer, ["Küçük ırmak"])
    assert torch.equal(small.lm_head.weight, model.lm_head.weight[list(id_map)])
    assert small.lm_head.weight is not small.get_input_embeddings().weight


def test_what_is_refused(byte_level_tokenizer, wordpiece_tokenizer, unigram_tokenizer) -> None:
    model = build(byte_level_tokenizer)
    with pytest.raises(ValueError, match="keep_ids_or_texts is empty"):
        prune_vocabulary(model, byte_level_tokenizer, [])
    with pytest.raises(ValueError, match="holds 420, which is no id of the tokenizer's 420"):
        prune_vocabulary(model, byte_level_tokenizer, [3, 420])
    with pytest.raises(ValueError, match="holds 'ev', which is no id.*not both"):
        prune_vocabulary(model, byte_level_tokenizer, [3, "ev"])
    with pytest.raises(ValueError, match="beyond the model's table: this is not its tokenizer"):
        prune_vocabulary(build(unigram_tokenizer), byte_level_tokenizer, [419])
    with pytest.raises(ValueError, match="a Linear, not a transformers model"):
        prune_vocabulary(torch.nn.Linear(2, 2), byte_level_tokenizer, [3])


def test_a_python_tokenizer_is_refused() -> None:
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    from hf_distill.models.mft import HfdMftTokenizer

    with pytest.raises(ValueError, match="HfdMftTokenizer is not a fast tokenizer"):
        prune_vocabulary(torch.nn.Linear(2, 2), HfdMftTokenizer(), [3])
