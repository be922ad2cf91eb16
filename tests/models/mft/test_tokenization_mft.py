"""The MFT tokenizer: the package's ids behind Hugging Face's interface, saved, reloaded and used without hf_distill."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_distill.models.mft import tokenization_mft

package = pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")

from hf_distill.models.mft import HfdMftTokenizer  # noqa: E402

TEXTS = [
    "Merhaba dünya!",
    "İstanbul'da KEDİLER ve Iğdır   kitaplarından bahsettik.\nYeni satır\t2024",
    "<eos> ><eos>x <pad><unknown> <uppercase> special_7 日本 €",
    " ",
    "",
    "\n",
]
WORDS = st.sampled_from(
    "ev evler Kitabı GELİYORUM ığdır camelCase <eos> < e os> özgürlüğün 12.5 q_x 中 \n \t".split(" ")
)


@pytest.fixture(scope="module")
def original() -> package.TurkishTokenizer:
    return package.TurkishTokenizer()


@pytest.fixture(scope="module")
def tokenizer() -> HfdMftTokenizer:
    return HfdMftTokenizer()


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=12).map(" ".join)))
@example(text=TEXTS[1])
@example(text=TEXTS[2])
def test_ids_are_the_packages(text: str, original: package.TurkishTokenizer, tokenizer: HfdMftTokenizer) -> None:
    expected = original.encode(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode(text) == expected  # now with all words remembered
    assert tokenizer.tokenize(text) == original.tokenize(text)
    assert tokenizer.decode(expected) == original.decode(expected)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 32767), st.integers(0, 115), st.integers(20000, 20050)), max_size=12))
def test_decoding_is_the_packages(
    ids: list[int], original: package.TurkishTokenizer, tokenizer: HfdMftTokenizer
) -> None:
    assert tokenizer.decode(ids) == original.decode(ids)


def test_vocabulary(tokenizer: HfdMftTokenizer) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == 32768
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(32768))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (5, 6, 1)
    assert tokenizer.bos_token_id is tokenizer.cls_token_id is tokenizer.mask_token_id is None
    assert tokenizer.model_max_length == 512
    # several surface forms, one id, one name for it
    assert tokenizer.convert_tokens_to_ids(["lar", "ler", "kitap", "kitab", "nothing like it"]) == [
        *(20000, 20000),
        *(vocabulary["kitap"], vocabulary["kitap"]),
        1,
    ]
    assert tokenizer.convert_ids_to_tokens([20000, 0, 5]) == ["lar", "<uppercase>", "<pad>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids("ler")) == "lar"
    assert tokenizer.convert_tokens_to_string(["kitap", "lar"]) == "kitaplar"


def test_padding_truncation_and_mask(tokenizer: HfdMftTokenizer) -> None:
    batch = tokenizer(["kitaplar", "kitap okudum"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist()[0][2:] == [5] * (batch["input_ids"].shape[1] - 2)
    assert batch["attention_mask"].sum(1).tolist() == [2, len(tokenizer.encode("kitap okudum"))]
    assert set(batch) == {"input_ids", "attention_mask"}
    cut = tokenizer("kitap okudum " * 9, truncation=True, max_length=4, padding="max_length")
    assert len(cut["input_ids"]) == 4
    left = tokenizer(["kitaplar", "kitap okudum"], padding=True, padding_side="left", pad_to_multiple_of=8)
    assert left["input_ids"][0][:6] == [5] * 6
    assert left["attention_mask"][0] == [0] * 6 + [1] * 2
    assert len(tokenizer("ev " * 400, truncation=True)["input_ids"]) == 512


def test_end_of_sequence_is_an_option(tokenizer: HfdMftTokenizer, tmp_path: Path) -> None:
    assert tokenizer.num_special_tokens_to_add() == 0
    ending = HfdMftTokenizer(append_eos=True, model_max_length=64)
    assert ending.encode("kitaplar") == [*tokenizer.encode("kitaplar"), 6]
    assert ending.encode("kitaplar", add_special_tokens=False) == tokenizer.encode("kitaplar")
    assert ending("ev " * 90, truncation=True)["input_ids"][-1] == 6
    assert ending("ev", return_special_tokens_mask=True)["special_tokens_mask"] == [0, 1]
    assert ending.decode(ending.encode("kitaplar"), skip_special_tokens=True) == "kitaplar"
    ending.save_pretrained(tmp_path)
    again = HfdMftTokenizer.from_pretrained(tmp_path)
    assert again.append_eos
    assert again.model_max_length == 64
    assert again.encode(TEXTS[1]) == ending.encode(TEXTS[1])


def test_ids_instead_of_texts(tokenizer: HfdMftTokenizer) -> None:
    ids = tokenizer.encode("kitap okudum")
    assert tokenizer(ids)["input_ids"] == ids
    assert tokenizer.prepare_for_model(ids, truncation=True, max_length=2)["input_ids"] == ids[:2]
    batch = tokenizer([ids, ids[:1]], padding=True)
    assert batch["attention_mask"][1] == [1] + [0] * (len(ids) - 1)
    assert tokenizer.pad([{"input_ids": ids}, {"input_ids": ids[:1]}])["input_ids"][1][1:] == [5] * (len(ids) - 1)


def test_added_tokens() -> None:
    tokenizer = HfdMftTokenizer()
    assert tokenizer.add_tokens(["[SORGU]"]) == 1
    assert len(tokenizer) == 32769
    ids = tokenizer.encode("[SORGU] ev")
    assert ids == [32768, *HfdMftTokenizer().encode(" ev")]
    assert tokenizer.decode(ids) == "[SORGU] ev"
    assert tokenizer.surface_forms()[-1] == ("[SORGU]",)


def test_what_is_refused(tokenizer: HfdMftTokenizer) -> None:
    with pytest.raises(NotImplementedError, match="no offsets"):
        tokenizer("ev", return_offsets_mapping=True)
    with pytest.raises(ValueError, match="40000 lies outside the MFT vocabulary of 32768"):
        tokenizer.decode([3, 40000])
    with pytest.raises(ValueError, match="-1 lies outside"):
        tokenizer.convert_ids_to_tokens([-1])


def test_surface_forms(tokenizer: HfdMftTokenizer) -> None:
    forms = tokenizer.surface_forms()
    assert len(forms) == 32768
    assert forms[20000] == ("lar", "ler")
    assert forms[tokenizer.convert_tokens_to_ids("kitap")] == (" kitap", " kitab")
    assert forms[tokenizer.convert_tokens_to_ids("日")] == (" 日",)
    assert forms[:1] + forms[2:5] == [(" ",), (" ",), ("\n",), ("\t",)]
    assert [index for index, form in enumerate(forms) if not form] == [1, *range(5, 100)]


def test_a_pickle_holds_no_words_seen(tokenizer: HfdMftTokenizer) -> None:
    before = pickle.dumps(HfdMftTokenizer())
    used = HfdMftTokenizer()
    used.encode(TEXTS[1])
    assert pickle.dumps(used) == before
    assert pickle.loads(before).encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


def test_saved_folder(tokenizer: HfdMftTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "one")
    settings = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["auto_map"] == {"AutoTokenizer": ["tokenization_mft.HfdMftTokenizer", None]}
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"tokenizer_config.json", "tokenization_mft.py"}
    remote = AutoTokenizer.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert type(remote).__module__.startswith("transformers_modules")
    remote.save_pretrained(tmp_path / "two")  # a copy of a copy
    again = AutoTokenizer.from_pretrained(tmp_path / "two", trust_remote_code=True)
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
    assert (again.pad_token_id, again.model_max_length, len(again)) == (5, 512, 32768)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_works_where_hf_distill_is_not_installed(tokenizer: HfdMftTokenizer, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    from hf_distill.hub.clean_process import (
        SENTENCES,
        check_in_clean_process,
        model_output,
        one_thread,
        sentence_output,
    )

    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size, config.pad_token_id = 16, tokenizer.pad_token_id
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    transformer = Transformer(str(tmp_path / "bert"), processor_kwargs={"trust_remote_code": True}, max_seq_length=32)
    student = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], device="cpu")
    texts = TEXTS[:3]
    with one_thread():
        expected = {
            SENTENCES: sentence_output(student, texts),
            "AutoModel": model_output(model, tokenizer, texts),
        }
    # padding changes nothing: one text alone and in the batch
    alone = sentence_output(student, texts[:1])
    assert torch.allclose(alone[0], expected[SENTENCES][0], atol=1e-6)
    student.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    assert (tmp_path / "student" / "tokenization_mft.py").is_file()
    check_in_clean_process(tmp_path / "student", texts, expected)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "turkish_tokenizer", None)
    spec = importlib.util.spec_from_file_location("tokenization_mft_alone", tokenization_mft.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r"pip install turkish-tokenizer==0\.2\.26"):
        module.HfdMftTokenizer()


def test_other_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(package.TurkishTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.suffixes = {**self.suffixes, "lar": 20001}

    monkeypatch.setattr(tokenization_mft, "TurkishTokenizer", Newer)
    with pytest.raises(ImportError, match=r"other dictionaries than version 0\.2\.26"):
        HfdMftTokenizer()
