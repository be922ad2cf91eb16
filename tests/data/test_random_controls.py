"""The random control of an experiment: one seed gives the same layers, however many tokens a tokenizer has."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.data.tokenizers import swap_tokenizer

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
MODELS = {
    "bert": (BertModel, BertConfig),
    "masked": (BertForMaskedLM, BertConfig),
    "roberta": (XLMRobertaModel, XLMRobertaConfig),
    "gpt2": (GPT2LMHeadModel, GPT2Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_do_not_depend_on_the_size_of_the_vocabulary(
    name: str, wordpiece_tokenizer, byte_level_tokenizer, unigram_tokenizer
) -> None:
    kind, config = MODELS[name]
    model = kind(config(**SMALL, vocab_size=len(wordpiece_tokenizer), pad_token_id=wordpiece_tokenizer.pad_token_id))
    targets = [byte_level_tokenizer, unigram_tokenizer, wordpiece_tokenizer]
    students = [swap_tokenizer(model, wordpiece_tokenizer, t, init="random", seed=3)[0] for t in targets]
    tables = [student.get_input_embeddings().weight for student in students]
    assert len({len(table) for table in tables}) == 3
    first, *others = (dict(student.named_parameters()) for student in students)
    shared = []
    for key, value in first.items():
        if key.endswith("position_embeddings.weight") and name == "roberta":
            behind = 40 - 1 - wordpiece_tokenizer.pad_token_id  # each tokenizer's padding id
            assert all(torch.equal(value[-behind:], other[key][-behind:]) for other in others)
        elif all(value.shape == other[key].shape for other in others):
            assert all(torch.equal(value, other[key]) for other in others), key
            shared.append(value)
    assert len(shared) >= len(first) - 3  # all but the table, the positions, the output layer or its bias
    drawn = [value for value in shared if value.std() > 0]
    assert len(drawn) >= 8
    for table in tables:
        assert_close(table.std(), torch.tensor(model.config.initializer_range), rtol=0.1, atol=0)
        for value in drawn:  # no token vector is made of a layer's numbers
            assert torch.isin(table[table != 0], value).float().mean() < 0.01
    head = students[0].get_output_embeddings()
    if head is not None:
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert (head.weight is tables[0]) == tied


def test_a_source_that_pads_behind_the_new_vocabulary(wordpiece_tokenizer) -> None:
    model = BertModel(BertConfig(**SMALL, vocab_size=900, pad_token_id=899))
    student, _ = swap_tokenizer(model, wordpiece_tokenizer, wordpiece_tokenizer, init="random")
    table, padding = student.get_input_embeddings(), wordpiece_tokenizer.pad_token_id
    assert table.padding_idx == student.config.pad_token_id == padding
    assert (table.weight.abs().sum(1) == 0).nonzero().flatten().tolist() == [padding]
