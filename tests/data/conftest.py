"""Small trained tokenizers of each kind that surgery has to read: byte-level, SentencePiece, Llama's and WordPiece."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TURKISH = """Küçük ırmak her sabah eski değirmenin yanından akar ve tahta çarkı döndürür.
Çocuklar kapının önünde kırmızı bir topla oynarken anneleri uzun bir mektup okuyordu.
Belediye gelecek hafta temiz su raporunu yayımlayacak; başkan bütün soruları yanıtlayacak.
Kimse trenin zamanında geleceğini beklemiyordu, ama saat dokuzu vurunca durdu.
Yüksek otlara yuva yapan kuş tohumla, böcekle ve soğuk kışlarda meyveyle beslenir.
Notlarını paylaşan öğrenciler dersi yalnızca dinleyenlerden daha iyi hatırlar."""


@pytest.fixture(scope="session")
def turkish_texts() -> list[str]:
    """Return six Turkish sentences."""
    return TURKISH.split("\n")


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 420 tokens, as GPT-2's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TURKISH.split("\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=64
    )


@pytest.fixture(scope="session")
def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Return a Unigram of about 150 pieces with XLM-R's special tokens, markers and template."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[*names, "<mask>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TURKISH.split("\n") * 2, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=64, **roles
    )


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Return a BPE with a dummy prefix in its normalizer and byte tokens, as Llama 2's; it has no padding token."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TURKISH.split("\n"), trainers.BpeTrainer(vocab_size=160, show_progress=False))
    tokens = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    merges = []
    known = set(tokens)
    for token in tokens:  # SentencePiece's way: every split into two known parts is a merge
        merges += [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in known and token[i:] in known]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def wordpiece_tokenizer(tiny_bert: str) -> PreTrainedTokenizerFast:
    """Return the WordPiece of the tiny BERT: English words and the letters a to z."""
    return AutoTokenizer.from_pretrained(tiny_bert)
