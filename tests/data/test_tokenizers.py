"""Tokenizer surgery: where every row comes from, that rows are what the strategy says, and models before and after."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.data.tokenizers import (
    ORIGINS,
    STRATEGIES,
    SurgeryReport,
    TokenMap,
    TokenSource,
    swap_tokenizer,
    token_map,
    transplant_embeddings,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def shuffled(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> tuple[PreTrainedTokenizerFast, dict[int, int]]:
    """The same WordPiece tokenizer with other ids, and from old ids to new ones."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = list(definition["model"]["vocab"].values())
    new = dict(zip(ids, random.Random(seed).sample(ids, len(ids)), strict=True))
    definition["model"]["vocab"] = {token: new[index] for token, index in definition["model"]["vocab"].items()}
    for token in definition["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in definition["post_processor"]["special_tokens"].values():
        token["ids"] = [new[index] for index in token["ids"]]
    backend = Tokenizer.from_str(json.dumps(definition))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map), new


def build(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A tiny random model of a kind."""
    torch.manual_seed(0)
    sizes = {**SMALL, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if name == "bert":
        return BertModel(BertConfig(**sizes)).eval()
    if name == "masked":
        model = BertForMaskedLM(BertConfig(**sizes)).eval()
        torch.nn.init.normal_(model.get_output_embeddings().bias)
        return model
    if name == "roberta":
        return XLMRobertaModel(XLMRobertaConfig(**sizes, max_position_embeddings=40)).eval()
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer))).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).eval()


@torch.no_grad()
def output(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, padding=True, truncation=True, max_length=30, return_tensors="pt")
    return (
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        * batch["attention_mask"][..., None]
    )


# ---------------------------------------------------------------- rows


sources = st.one_of(
    st.just(TokenSource("fallback")),
    st.integers(0, 11).map(lambda index: TokenSource("exact", (((index, 2),),))),
    st.lists(
        st.lists(st.tuples(st.integers(0, 11), st.integers(1, 9)), min_size=1, max_size=4).map(tuple),
        min_size=1,
        max_size=3,
    ).map(lambda readings: TokenSource("composed", tuple(readings))),
)


def expected_row(weight: np.ndarray, source: TokenSource, strategy: str) -> np.ndarray:
    forms = []
    for reading in source.readings:
        rows = weight[[index for index, _ in reading]]
        characters = np.array([count for _, count in reading], dtype=np.float64)
        forms.append(
            {
                "mean": rows.sum(0) / len(rows),
                "weighted": characters @ rows / characters.sum(),
                "first": rows[0],
                "last": rows[-1],
                "max": rows.max(0),
            }[strategy]
        )
    return np.mean(forms, axis=0)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(sources, min_size=1, max_size=12), strategy=st.sampled_from(STRATEGIES), seed=st.integers(0, 9)
)
def test_rows_are_what_the_strategy_says(entries: list[TokenSource], strategy: str, seed: int) -> None:
    weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
    mapping = TokenMap(entries, [str(index) for index in range(len(entries))])
    table, report = transplant_embeddings(weight, mapping, strategy, seed=seed)
    assert table.shape == (len(entries), 5)
    assert torch.isfinite(table).all()
    for row, source in zip(table, entries, strict=True):
        if source.how == "fallback":
            continue
        if len(source.source_ids) == 1:
            assert torch.equal(row, weight[source.source_ids[0]])
        assert_close(row.double(), torch.tensor(expected_row(weight.double().numpy(), source, strategy)))
    assert sum(report.rows.values()) == report.target_rows == len(entries)
    assert list(report.rows) == list(ORIGINS)


def test_one_source_keeps_every_bit_and_the_type() -> None:
    weight = torch.randn(4, 3).bfloat16()
    mapping = TokenMap([TokenSource("exact", (((2, 1),),)), TokenSource("composed", (((0, 1), (1, 3)),))], ["a", "b"])
    table, _ = transplant_embeddings(weight, mapping, "weighted")
    assert table.dtype == torch.bfloat16
    assert torch.equal(table[0], weight[2])
    assert torch.equal(table[1], ((weight[0].float() + 3 * weight[1].float()) / 4).bfloat16())


def test_rows_without_a_source_lie_around_the_mean() -> None:
    scale = torch.tensor([4.0, 1.0, 0.0, 0.5])
    weight = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) * scale + 3
    mapping = TokenMap([TokenSource("fallback")] * 4000, [""] * 4000)
    table, report = transplant_embeddings(weight, mapping, seed=1)
    assert_close(table.mean(0), weight.mean(0), atol=0.03, rtol=0)
    assert_close(table.std(0), 0.1 * weight.std(0), atol=0.01, rtol=0.05)
    assert torch.equal(table, transplant_embeddings(weight, mapping, seed=1)[0])
    assert not torch.equal(table, transplant_embeddings(weight, mapping, seed=2)[0])
    assert report.rows["fallback"] == 4000
    # one wide rows and a single column (the bias of an output layer) work too
    assert transplant_embeddings(weight[:, :1], mapping)[0].shape == (4000, 1)


def test_wrong_arguments_of_the_table() -> None:
    mapping = TokenMap([TokenSource("exact", (((7, 1),),))], ["a"])
    with pytest.raises(ValueError, match="strategy='sum' is unknown. Choose one of mean, weighted"):
        transplant_embeddings(torch.zeros(9, 2), mapping, "sum")
    with pytest.raises(ValueError, match="ids up to 7, but the source table is .5, 2."):
        transplant_embeddings(torch.zeros(5, 2), mapping)


# ---------------------------------------------------------------- the map


def test_a_tokenizer_maps_onto_itself(unigram_tokenizer, byte_level_tokenizer, wordpiece_tokenizer) -> None:
    for tokenizer in (unigram_tokenizer, byte_level_tokenizer, wordpiece_tokenizer):
        mapping = token_map(tokenizer, tokenizer)
        assert [source.source_ids[0] for source in mapping.sources[:20]] == list(range(20))
        assert all(len(source.source_ids) == 1 or source.how == "bytes" for source in mapping.sources)
        assert mapping.counts()["composed"] == mapping.counts()["fallback"] == 0
        assert mapping.counts()["special"] == len(tokenizer.all_special_ids)


def test_origins_across_kinds(byte_level_tokenizer, unigram_tokenizer) -> None:
    mapping = token_map(byte_level_tokenizer, unigram_tokenizer)
    source = unigram_tokenizer.convert_tokens_to_ids

    def of(token: str) -> TokenSource:
        return mapping[byte_level_tokenizer.convert_tokens_to_ids(token)]

    assert of("<|end|>") == TokenSource("special", (((source("</s>"), 1),),))
    assert of("<|pad|>").source_ids == (source("<pad>"),)
    assert of("Ġ") == TokenSource("exact", (((source("▁"), 1),),))
    assert of("a") == TokenSource("exact", (((source("a"), 1),),))
    assert of("Ä") == TokenSource("fallback")  # half a character, and the source has no bytes
    assert of("~") == TokenSource("fallback")  # the source has no such character
    composed = [i for i, s in enumerate(mapping.sources) if s.how == "composed" and len(s.source_ids) > 1]
    assert composed
    for index in composed:
        pieces = "".join(unigram_tokenizer.convert_ids_to_tokens(list(mapping[index].source_ids)))
        text = byte_level_tokenizer.decode([index])
        assert pieces.replace("▁", " ").strip() == text.strip()
        assert pieces.startswith("▁") == text.startswith(" ")


def test_bytes_are_found_in_a_source_with_bytes(byte_level_tokenizer, llama_tokenizer) -> None:
    mapping = token_map(byte_level_tokenizer, llama_tokenizer)
    half = mapping[byte_level_tokenizer.convert_tokens_to_ids("Ä")]
    assert half.how == "bytes"
    assert llama_tokenizer.convert_ids_to_tokens(list(half.source_ids)) == ["<0xC4>"]
    assert mapping.counts()["bytes"] >= 100
    # the source has no padding token: the end of sequence stands in
    assert mapping[byte_level_tokenizer.pad_token_id].source_ids == (llama_tokenizer.eos_token_id,)


def test_special_tokens_by_role_and_by_name(wordpiece_tokenizer, byte_level_tokenizer, unigram_tokenizer) -> None:
    def source_of(mapping: TokenMap, token: str, target, source) -> str:
        return source.convert_ids_to_tokens(mapping[target.convert_tokens_to_ids(token)].source_ids[0])

    mapping = token_map(unigram_tokenizer, wordpiece_tokenizer)
    roles = {"<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]", "<unk>": "[UNK]", "<mask>": "[MASK]"}
    assert {t: source_of(mapping, t, unigram_tokenizer, wordpiece_tokenizer) for t in roles} == roles
    given = token_map(byte_level_tokenizer, wordpiece_tokenizer, {"<|end|>": "[MASK]", "a": "bird"})
    assert source_of(given, "<|end|>", byte_level_tokenizer, wordpiece_tokenizer) == "[MASK]"
    assert source_of(given, "a", byte_level_tokenizer, wordpiece_tokenizer) == "bird"
    with pytest.raises(ValueError, match=r"special_tokens names \['<eos>'\], which the target tokenizer"):
        token_map(byte_level_tokenizer, wordpiece_tokenizer, {"<eos>": "[SEP]"})
    with pytest.raises(ValueError, match=r"special_tokens names \['</s>'\], which the source tokenizer"):
        token_map(byte_level_tokenizer, wordpiece_tokenizer, {"<|end|>": "</s>"})


def test_the_mft_vocabulary(unigram_tokenizer) -> None:
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    from hf_distill.models.mft import HfdMftTokenizer

    tokenizer = HfdMftTokenizer()
    mapping = token_map(tokenizer, unigram_tokenizer)
    assert len(mapping) == 32768
    source = unigram_tokenizer.convert_tokens_to_ids
    roles = {5: "<pad>", 6: "</s>", 1: "<unk>"}
    assert {index: unigram_tokenizer.convert_ids_to_tokens(mapping[index].source_ids[0]) for index in roles} == roles
    assert mapping[2] == TokenSource("exact", (((source("▁"), 1),),))
    assert mapping[3].source_ids == mapping[4].source_ids == (source("▁"),)
    # a suffix: the average of its forms, none of which starts a word
    suffix = mapping[20026]  # dı di du dü tı ti tu tü
    assert len(suffix.readings) == 8
    assert not any("▁" in token for token in unigram_tokenizer.convert_ids_to_tokens(list(suffix.source_ids)))
    # reserved ids have no source
    assert {mapping[index].how for index in range(7, 100)} == {"fallback"}
    # a root starts a word
    root = mapping[tokenizer.convert_tokens_to_ids("ırmak")]
    assert "".join(unigram_tokenizer.convert_ids_to_tokens([i for i, _ in root.readings[0]])) == "▁ırmak"
    table, report = transplant_embeddings(torch.randn(len(unigram_tokenizer), 3), mapping)
    assert torch.isfinite(table).all()
    assert report.rows["special"] == 3


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["bert", "masked", "roberta", "gpt2", "llama"])
def test_renamed_ids_change_nothing(name, wordpiece_tokenizer, tiny_texts, tmp_path: Path) -> None:
    """A tokenizer with the same tokens under other ids: same outputs, saved and reloaded too."""
    target, new = shuffled(wordpiece_tokenizer, seed=1)
    model = build(name, wordpiece_tokenizer)
    before = output(model, wordpiece_tokenizer, tiny_texts[:6])
    student, report = swap_tokenizer(model, wordpiece_tokenizer, target)
    after = output(student, target, tiny_texts[:6])
    order = [old for old, _ in sorted(new.items(), key=lambda item: item[1])]
    assert torch.equal(after, before[..., order] if name in ("masked", "gpt2", "llama") else before)
    assert torch.equal(output(model, wordpiece_tokenizer, tiny_texts[:6]), before)  # the source is as it was
    assert report.rows["exact"] + report.rows["special"] == len(target) == student.config.vocab_size
    assert student.config.pad_token_id == target.pad_token_id != wordpiece_tokenizer.pad_token_id
    head = student.get_output_embeddings()
    tied = head is not None and head.weight is student.get_input_embeddings().weight
    assert report.tied == {"masked": True, "gpt2": True, "llama": False}.get(name)
    assert tied == bool(report.tied)
    if name != "gpt2":
        assert student.get_input_embeddings().padding_idx == target.pad_token_id
    student.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path).eval(), target, tiny_texts[:6]), after)


def test_positions_behind_the_padding_id_move_along(wordpiece_tokenizer) -> None:
    target, _ = shuffled(wordpiece_tokenizer, seed=3)
    model = build("roberta", wordpiece_tokenizer)
    shift = target.pad_token_id - wordpiece_tokenizer.pad_token_id
    student, _ = swap_tokenizer(model, wordpiece_tokenizer, target)
    assert (
        student.config.max_position_embeddings == 40 + shift == student.embeddings.position_embeddings.num_embeddings
    )
    assert model.config.max_position_embeddings == 40
    # the longest text of the source still fits
    ids = torch.full((1, 39), next(i for i in range(9) if i != target.pad_token_id))
    assert torch.isfinite(student(input_ids=ids)[0]).all()


def test_another_vocabulary(wordpiece_tokenizer, byte_level_tokenizer, tiny_texts, tmp_path: Path) -> None:
    for name in ("masked", "llama"):
        model = build(name, wordpiece_tokenizer)
        student, report = swap_tokenizer(model, wordpiece_tokenizer, byte_level_tokenizer, strategy="weighted")
        table, head = student.get_input_embeddings().weight, student.get_output_embeddings()
        mapping = token_map(byte_level_tokenizer, wordpiece_tokenizer)
        wanted, _ = transplant_embeddings(model.get_input_embeddings().weight, mapping, "weighted")
        assert torch.equal(table, wanted)
        wanted, _ = transplant_embeddings(model.get_output_embeddings().weight, mapping, "weighted")
        assert torch.equal(head.weight, wanted)
        assert head.out_features == len(table) == len(byte_level_tokenizer)
        if name == "masked":
            bias, _ = transplant_embeddings(model.get_output_embeddings().bias[:, None], mapping, "weighted")
            assert torch.equal(head.bias, bias[:, 0])
        assert output(student, byte_level_tokenizer, tiny_texts[:2]).shape[-1] == len(byte_level_tokenizer)
        assert (student.config.eos_token_id, student.config.bos_token_id) == (0, None)
        assert report.rows == mapping.counts()
        assert student.training == model.training
    assert student.generation_config.pad_token_id == 1
    for one, other in zip(model.model.layers.parameters(), student.model.layers.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_new_padding_row_gets_no_gradient(wordpiece_tokenizer, byte_level_tokenizer) -> None:
    student, _ = swap_tokenizer(build("bert", wordpiece_tokenizer), wordpiece_tokenizer, byte_level_tokenizer)
    ids = torch.arange(4)[None]
    student(input_ids=ids).last_hidden_state.square().sum().backward()
    moved = student.get_input_embeddings().weight.grad.abs().sum(1) > 0
    assert moved[:4].tolist() == [True, False, True, True]


def test_random_weights_do_not_depend_on_the_tokenizer(wordpiece_tokenizer) -> None:
    """The control of an experiment: one seed, one model, whatever the tokenizer of that size."""
    targets = [shuffled(wordpiece_tokenizer, seed=seed)[0] for seed in (4, 5)]
    for name in ("bert", "roberta", "llama"):
        model = build(name, wordpiece_tokenizer)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        one, other = (swap_tokenizer(model, wordpiece_tokenizer, t, init="random", seed=3)[0] for t in targets)
        assert torch.equal(torch.get_rng_state(), state)
        another, report = swap_tokenizer(model, wordpiece_tokenizer, targets[0], init="random", seed=4)
        assert report.rows == {"random": len(targets[0])}
        assert "random (seed 4)" in str(report)
        table = one.get_input_embeddings().weight
        assert not torch.equal(table, another.get_input_embeddings().weight)
        assert not torch.equal(table, model.get_input_embeddings().weight)
        assert one.config.pad_token_id == targets[0].pad_token_id != targets[1].pad_token_id
        pads = {wordpiece_tokenizer.pad_token_id, *(t.pad_token_id for t in targets)}
        rows = [index for index in range(len(table)) if index not in pads]
        assert torch.equal(table[rows], other.get_input_embeddings().weight[rows])
        if table.grad is None and one.get_input_embeddings().padding_idx is not None:
            assert table[one.config.pad_token_id].abs().sum() == 0
        for (key, value), (_, twin) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            if key.endswith("position_embeddings.weight"):
                size = min(len(value), len(twin)) - 1 - max(t.pad_token_id for t in targets)
                assert torch.equal(value[-size:], twin[-size:])
            elif value is not table:
                assert torch.equal(value, twin), key


def test_the_report_reads_well(wordpiece_tokenizer, unigram_tokenizer) -> None:
    _, report = swap_tokenizer(build("llama", unigram_tokenizer), unigram_tokenizer, wordpiece_tokenizer)
    text = str(report)
    assert f"{len(wordpiece_tokenizer):,} rows from a table of {len(unigram_tokenizer):,}: " in text
    assert " exact (" in text
    assert "source tokens each on average, by mean" in text
    assert "mean of all source rows and noise, such as " in text
    assert text.endswith("The output layer got the same map.")
    assert sum(report.rows.values()) == report.target_rows
    assert report.pieces > 1.0
    assert str(SurgeryReport(3, 2, dict.fromkeys(ORIGINS, 0), "mean")).endswith("fallback (0.0%).")


def test_what_is_refused(wordpiece_tokenizer, byte_level_tokenizer, llama_tokenizer, unigram_tokenizer) -> None:
    model = build("bert", wordpiece_tokenizer)
    with pytest.raises(ValueError, match="no padding token.*tokenizer.pad_token = "):
        swap_tokenizer(model, wordpiece_tokenizer, llama_tokenizer)
    with pytest.raises(ValueError, match="init='zeros' is unknown. Choose one of source, random"):
        swap_tokenizer(model, wordpiece_tokenizer, byte_level_tokenizer, init="zeros")
    with pytest.raises(ValueError, match=r"a Linear, not a transformers model.*auto_model"):
        swap_tokenizer(torch.nn.Linear(2, 2), wordpiece_tokenizer, byte_level_tokenizer)
    small = build("bert", unigram_tokenizer)
    with pytest.raises(ValueError, match="this is not the model's own tokenizer"):
        swap_tokenizer(small, wordpiece_tokenizer, shuffled(wordpiece_tokenizer)[0])
    mpnet = MPNetModel(MPNetConfig(**SMALL, vocab_size=len(wordpiece_tokenizer)))
    with pytest.raises(ValueError, match="MPNet's code takes id 1 for padding"):
        swap_tokenizer(mpnet, wordpiece_tokenizer, wordpiece_tokenizer)


def test_auto_class_of_the_student(wordpiece_tokenizer, byte_level_tokenizer, tmp_path: Path) -> None:
    student, _ = swap_tokenizer(build("bert", wordpiece_tokenizer), wordpiece_tokenizer, byte_level_tokenizer)
    student.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert again.config.vocab_size == len(byte_level_tokenizer)
    assert torch.equal(again.get_input_embeddings().weight, student.get_input_embeddings().weight)
