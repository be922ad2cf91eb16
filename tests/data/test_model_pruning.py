"""Layer and width pruning: which parts stay, that they stay as they were, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.data.model_pruning import prune_model, spaced_layers

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 30,
}
IDS = torch.tensor([[2, 3, 4, 5, 6, 7]])


@pytest.fixture(params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    config = {"bert": BertConfig, "roberta": XLMRobertaConfig}[request.param](**SIZES)
    return {"bert": BertModel, "roberta": XLMRobertaModel}[request.param](config).eval()


@torch.no_grad()
def hidden(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS).last_hidden_state


def test_spaced_layers() -> None:
    assert spaced_layers(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spaced_layers(1, 12) == [11]
    assert spaced_layers(12, 12) == list(range(12))
    with pytest.raises(ValueError, match="num_layers=13 must lie between 1 and the source's 12"):
        spaced_layers(13, 12)


def test_nothing_asked_is_a_copy(encoder) -> None:
    copy = prune_model(encoder)
    assert torch.equal(hidden(copy), hidden(encoder))
    assert copy.embeddings.word_embeddings.weight is not encoder.embeddings.word_embeddings.weight
    # the full widths take the other way, with the same result
    assert torch.equal(hidden(prune_model(encoder, hidden_size=24, intermediate_size=20)), hidden(encoder))


def test_layers(encoder, tmp_path: Path) -> None:
    pruned = prune_model(encoder, num_layers=2)
    assert pruned.config.num_hidden_layers == 2
    assert encoder.config.num_hidden_layers == 4
    for new, old in zip(pruned.encoder.layer, (encoder.encoder.layer[0], encoder.encoder.layer[3]), strict=True):
        assert torch.equal(new.output.dense.weight, old.output.dense.weight)
    pruned.save_pretrained(tmp_path)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), hidden(pruned))


def test_layers_of_a_model_with_kinds_of_layers(tmp_path: Path) -> None:
    """EmbeddingGemma's backbone alternates windowed and full attention, and numbers its layers for the cache."""
    torch.manual_seed(0)
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "full_attention"]
    sizes = {**SIZES, "head_dim": 8, "num_key_value_heads": 1, "layer_types": kinds, "sliding_window": 3}
    model = Gemma3TextModel(Gemma3TextConfig(**sizes)).eval()
    pruned = prune_model(model, num_layers=3)
    assert pruned.config.layer_types == [kinds[0], kinds[2], kinds[3]]
    assert [layer.self_attn.layer_idx for layer in pruned.layers] == [0, 1, 2]
    assert torch.equal(pruned.layers[2].mlp.up_proj.weight, model.layers[3].mlp.up_proj.weight)
    pruned.save_pretrained(tmp_path)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), hidden(pruned))


@torch.no_grad()
def test_dead_neurons_go_first_and_leave_no_trace(encoder, tmp_path: Path) -> None:
    dead = [[1, 4, 19], [0, 2, 3], [7, 8, 9], [5, 10, 15]]
    for layer, neurons in zip(encoder.encoder.layer, dead, strict=True):
        layer.output.dense.weight[:, neurons] = 0
    pruned = prune_model(encoder, intermediate_size=17)
    torch.testing.assert_close(hidden(pruned), hidden(encoder))
    kept = [i for i in range(20) if i not in dead[0]]
    assert torch.equal(
        pruned.encoder.layer[0].intermediate.dense.bias, encoder.encoder.layer[0].intermediate.dense.bias[kept]
    )
    pruned.save_pretrained(tmp_path)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), hidden(pruned))


@torch.no_grad()
def test_heads_stay_whole_and_channels_in_order(encoder, tmp_path: Path) -> None:
    """The weakest head of each layer and the weakest channels go; all else is copied."""
    weak_heads, weak_channels = [1, 0, 2, 2], [0, 3, 6, 9, 12, 15, 18, 21]
    rows = lambda head: slice(8 * head, 8 * head + 8)  # noqa: E731
    for layer, head in zip(encoder.encoder.layer, weak_heads, strict=True):
        attention = layer.attention
        for part in (attention.self.query, attention.self.key, attention.self.value):
            part.weight[rows(head)] *= 0.01
        attention.output.dense.weight[:, rows(head)] *= 0.01
        layer.intermediate.dense.weight[:, weak_channels] *= 0.01
        layer.output.dense.weight[weak_channels] *= 0.01
    encoder.embeddings.word_embeddings.weight[:, weak_channels] *= 0.01
    pruned = prune_model(encoder, num_attention_heads=2)
    assert (pruned.config.hidden_size, pruned.config.num_attention_heads) == (16, 2)
    channels = [c for c in range(24) if c not in weak_channels]
    assert torch.equal(
        pruned.embeddings.word_embeddings.weight, encoder.embeddings.word_embeddings.weight[:, channels]
    )
    for new, old, weak in zip(pruned.encoder.layer, encoder.encoder.layer, weak_heads, strict=True):
        kept = [row for head in range(3) if head != weak for row in range(8 * head, 8 * head + 8)]
        query = old.attention.self.query
        assert torch.equal(new.attention.self.query.weight, query.weight[kept][:, channels])
        assert torch.equal(new.attention.self.query.bias, query.bias[kept])
        out = old.attention.output
        assert torch.equal(new.attention.output.dense.weight, out.dense.weight[channels][:, kept])
        assert torch.equal(new.attention.output.LayerNorm.bias, out.LayerNorm.bias[channels])
        assert torch.equal(new.output.dense.weight, old.output.dense.weight[channels])
    assert torch.equal(pruned.pooler.dense.weight, encoder.pooler.dense.weight[channels][:, channels])
    assert torch.isfinite(hidden(pruned)).all()
    # the other width says the same, and layers and widths go together
    assert torch.equal(hidden(prune_model(encoder, hidden_size=16)), hidden(pruned))
    both = prune_model(encoder, num_layers=2, hidden_size=16, intermediate_size=8)
    assert [p.shape for p in both.encoder.layer[1].output.dense.parameters()] == [(16, 8), (16,)]
    both.save_pretrained(tmp_path)
    assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), hidden(both))


def test_what_is_refused(encoder) -> None:
    for sizes, message in (
        ({"num_layers": 5}, "num_layers=5 must lie between 1 and the source's 4"),
        ({"hidden_size": 25}, "hidden_size=25 must lie between 1 and the model's 24"),
        ({"hidden_size": 20}, "hidden_size must be 8 times the number of heads"),
        ({"hidden_size": 16, "num_attention_heads": 3}, "Give one of the two only"),
        ({"intermediate_size": 0}, "intermediate_size=0 must lie between 1"),
    ):
        with pytest.raises(ValueError, match=message):
            prune_model(encoder, **sizes)
    with pytest.raises(ValueError, match="BertForMaskedLM cannot be made narrower: only BertModel, "):
        prune_model(BertForMaskedLM(BertConfig(**SIZES)), hidden_size=16)
    encoder.twin = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    with pytest.raises(ValueError, match="has 2 lists of 4 modules"):
        prune_model(encoder, num_layers=2)
