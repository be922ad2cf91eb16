"""ONNX export of ridge students: equal to torch for any length, batch and padding; what cannot be exported is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hf_distill.hub.onnx import (
    TOLERANCE,
    ExportableEncoder,
    compare_onnx,
    export_onnx,
    exportable_operations,
    solve_by_elimination,
)
from hf_distill.models.deltanet import HfdDeltaNetConfig, HfdDeltaNetModel

SIZES = {
    "vocab_size": 60,
    "hidden_size": 40,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
}


def build(**fields) -> HfdDeltaNetModel:
    torch.manual_seed(0)
    model = HfdDeltaNetModel(HfdDeltaNetConfig(**{**SIZES, "max_position_embeddings": 70, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the neutral start, so that every branch counts
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def sentence_model(encoder: HfdDeltaNetModel, tokenizer_folder: str, folder: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer

    encoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(40, pooling_mode="mean"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


@pytest.mark.parametrize(("size", "columns"), [(1, 1), (8, 3), (10, 4), (32, 32)])
def test_elimination_solves_positive_definite_systems(size: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(size)
    factor = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.mT + 0.05 * torch.eye(size, dtype=torch.float64)
    rhs = torch.randn(2, 3, size, columns, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(solve_by_elimination(matrix, rhs), torch.linalg.solve(matrix, rhs))


@pytest.mark.parametrize(
    "fields",
    [
        {"local_size": 5, "beta_activation": "exp"},
        {"conv_size": 3, "use_output_gate": True, "use_head_norm": True, "position_embedding_type": "rotary"},
        {"ridge_center": False},
    ],
    ids=["local", "conv", "plain"],
)
def test_the_replaced_operations_are_equal(fields: dict) -> None:
    """In torch: the wrapper with its operations gives what the model gives, wherever the padding is."""
    model = build(**fields)
    graph, ids = ExportableEncoder(model).eval(), torch.randint(1, 60, (4, 11))
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, :5] = mask[3, 3:7] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        with exportable_operations(model):
            (found,) = graph(ids, mask)
        after = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    assert torch.equal(after, expected)  # the replacements are gone again


def test_code_saved_before_a_name_existed_is_exportable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student carries the code it was saved with; a name that this code lacks is not left behind in it."""
    model = build()
    ridge = sys.modules[HfdDeltaNetModel.__module__.replace("modeling_deltanet", "ops_ridge")]
    monkeypatch.delattr(ridge, "_fewer_tokens_than_channels")
    ids = torch.arange(1, 6)[None]
    with torch.no_grad(), exportable_operations(model):
        ExportableEncoder(model).eval()(ids, torch.ones_like(ids))
    assert "_fewer_tokens_than_channels" not in vars(ridge)


def test_a_sentence_transformer_in_onnxruntime(tiny_bert: str, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers import AutoTokenizer

    rows = len(AutoTokenizer.from_pretrained(tiny_bert))
    encoder = build(local_size=5, beta_activation="exp", vocab_size=rows)
    model = sentence_model(encoder, tiny_bert, tmp_path / "model")
    path = export_onnx(model, tmp_path / "onnx" / "model.onnx")
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    texts = ["a bird", "the river runs past the old mill and turns the wooden wheel", "a bird of the sea"]
    batch = model.tokenizer(texts, padding=True, return_tensors="np")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    (found,) = session.run(["sentence_embedding"], inputs)
    torch.testing.assert_close(torch.from_numpy(found), torch.tensor(model.encode(texts)), rtol=1e-3, atol=1e-5)

    proto = onnx.load(path)
    axes = [[d.dim_param for d in value.type.tensor_type.shape.dim] for value in proto.graph.input]
    assert axes == [["batch", "length"]] * 2
    data = path.read_bytes()
    for place in (str(Path(__file__).parents[2]), sys.prefix, str(tmp_path), "site-packages"):
        assert place.encode() not in data


def test_a_wrong_file_is_found_out(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build(position_embedding_type="rotary", conv_size=3)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert compare_onnx(path, ExportableEncoder(model).eval()) < TOLERANCE
    with torch.no_grad():
        model.layers[0].mixer.value.weight.add_(0.3)
    with pytest.raises(ValueError, match="onnxruntime computes something else than torch: last_hidden_state"):
        compare_onnx(path, ExportableEncoder(model).eval())


@pytest.mark.parametrize("mixer", ["delta_causal", "delta_flip", "delta_split"])
def test_mixers_that_scan_are_refused(mixer: str) -> None:
    with pytest.raises(ValueError, match=f"mixer='{mixer}' cannot be exported"):
        ExportableEncoder(build(mixer=mixer))


def test_other_models_are_refused(tiny_sentence_transformer: str) -> None:
    from sentence_transformers import SentenceTransformer

    with pytest.raises(ValueError, match="Only DeltaNet students"):
        ExportableEncoder(SentenceTransformer(tiny_sentence_transformer, device="cpu"))


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_distill\[onnx\]'"):
        export_onnx(build(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
