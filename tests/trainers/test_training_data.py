"""Pre-tokenised training with any tokenizer: padding never matters, and bad data is refused before the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoTokenizer,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.data.collators import DistillCollator
from hf_distill.data.tokenizers import swap_tokenizer
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig

PAD = 5


class WordTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python, as the Turkish one: id 0 is a word, padding is id 5, and nothing opens or closes a text."""

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, words: list[str], **kwargs) -> None:
        self._words = [*words[:PAD], "<pad>", "<unk>", *words[PAD:]]
        self._ids = {word: index for index, word in enumerate(self._words)}
        kwargs.update(special_tokens_pattern="none", pad_token="<pad>", unk_token="<unk>")
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index: int) -> str:
        return self._words[index]


@pytest.fixture(scope="module")
def tokenizer(tiny_texts: list[str]) -> WordTokenizer:
    words = [word for text in tiny_texts for word in text.split()]
    return WordTokenizer(list(dict.fromkeys(words))[:250], model_max_length=64)


@pytest.fixture
def swapped(tiny_sentence_transformer: str, tokenizer: WordTokenizer) -> SentenceTransformer:
    """A student with the Python tokenizer, whose table still takes id 0 for padding."""
    model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    model[0].processor = tokenizer
    return model


@pytest.fixture(scope="module")
def encoded(tiny_texts, tokenizer, cache) -> Dataset:
    """The shape of the published corpora: a text, ids of two tokenizers, and the teacher's vector."""
    ids = tokenizer(tiny_texts)["input_ids"]
    vectors = cache.embeddings(cache.rows_for(tiny_texts)).astype(np.float32)
    data = {"text": tiny_texts, "mft_input_ids": ids, "tabi_input_ids": [[1, 2]] * len(ids)}
    features = Features(
        {
            "text": Value("string"),
            "mft_input_ids": List(Value("int64")),
            "tabi_input_ids": List(Value("int64")),
            "teacher_embedding_final": List(Value("float32"), length=32),
        }
    )
    return Dataset.from_dict({**data, "teacher_embedding_final": vectors.tolist()}, features=features)


COLUMNS = {"ids_column": "mft_input_ids", "teacher_column": "teacher_embedding_final"}


def losses(trainer, key="loss/cosine"):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_the_tokenizer_is_what_the_issue_speaks_of(tokenizer, encoded):
    assert (tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id) == (PAD, None, None)
    assert not tokenizer.is_fast
    assert sum(row.count(0) for row in encoded["mft_input_ids"][:]) > 5, "id 0 must be a word of the texts"


def test_padding_changes_neither_embeddings_nor_loss(make_trainer, swapped, encoded):
    trainer = make_trainer(student=swapped, data=encoded, teacher=None, **COLUMNS)
    rows = list(trainer.train_dataset.select(range(8)))
    rows.sort(key=lambda row: len(row["mft_input_ids"]))
    trainer.objective.eval()

    def run(examples: list[dict], width: int) -> tuple[torch.Tensor, float]:
        collate = DistillCollator(
            swapped.tokenizer, 64, teacher=trainer.source.cache, pad_to_multiple_of=width, vocab_size=300
        )
        batch = collate(examples)
        assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
        with torch.no_grad():
            output = trainer.model({key: batch[key] for key in ("input_ids", "attention_mask")})
            return output["sentence_embedding"], float(trainer.objective(batch, {"cosine": 1.0})["loss"])

    tight, loss = run(rows, 1)
    wide, same_loss = run(rows, 64)
    alone = torch.cat([run([row], 1)[0] for row in rows])
    assert torch.allclose(tight, wide, atol=1e-6)
    assert torch.allclose(tight, alone, atol=1e-6), "neither does the company of a batch"
    assert loss == pytest.approx(same_loss, abs=1e-6)
    strings = swapped.encode([row["mft"] for row in rows], convert_to_tensor=True)
    assert torch.allclose(tight, strings, atol=1e-6), "ids and strings are the same to the student"
    mask = torch.ones_like(batch := torch.tensor([rows[0]["mft_input_ids"] + [PAD] * 9]))
    unmasked = swapped({"input_ids": batch, "attention_mask": mask})["sentence_embedding"]
    assert not torch.allclose(unmasked, tight[:1], atol=1e-3), "padding that counts is seen"


@pytest.mark.parametrize("kind", ["roberta", "gemma"])
def test_padding_on_either_side_changes_nothing(kind, tokenizer, encoded, tiny_bert):
    """Where positions count from the first token or are relative. BERT counts columns: batches are padded on the right."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"vocab_size": 264, "pad_token_id": 1}  # the padding of the source is a word of the target
    if kind == "roberta":
        source = XLMRobertaModel(XLMRobertaConfig(**sizes, max_position_embeddings=80))
    else:
        heads = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16, "use_bidirectional_attention": True}
        source = Gemma3TextModel(Gemma3TextConfig(**sizes, **heads))
    encoder, _ = swap_tokenizer(source.eval(), AutoTokenizer.from_pretrained(tiny_bert), tokenizer, init="random")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(10.0)  # so that positions and attention count
    rows = encoded["mft_input_ids"][:12]
    pooling = Pooling(16, "mean")

    @torch.no_grad()
    def run(rows: list[list[int]], width: int, left: bool = False, mask_padding: bool = True) -> torch.Tensor:
        gaps = [[PAD] * (width - len(row)) for row in rows]
        ids = torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, gaps, strict=True)])
        mask = torch.tensor([[0] * len(gap) + [1] * len(row) for row, gap in zip(rows, gaps, strict=True)])
        mask = (mask if left else mask.flip(1)) if mask_padding else torch.ones_like(mask)
        hidden = encoder(input_ids=ids, attention_mask=mask)[0]
        return pooling({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]

    longest = max(map(len, rows))
    alone = torch.cat([run([row], len(row)) for row in rows])
    for width in (longest, longest + 9):
        assert torch.allclose(run(rows, width), alone, atol=1e-5)
        assert torch.allclose(run(rows, width, left=True), alone, atol=1e-5)
    assert not torch.allclose(run(rows, longest, left=True, mask_padding=False), alone, atol=1e-2)


def test_every_real_token_trains_and_padding_does_not(make_trainer, swapped, encoded):
    """The table came from a model that padded with id 0; here that is a word."""
    table = swapped[0].auto_model.get_input_embeddings()
    assert table.padding_idx == 0
    trainer = make_trainer(student=swapped, data=encoded, teacher=None, **COLUMNS, max_steps=8)
    before = table.weight.detach().clone()
    trainer.train()
    moved = (table.weight != before).any(dim=1)
    assert moved[0]
    assert not moved[PAD]
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_column_cache_and_stream_are_one_teacher(make_trainer, tiny_sentence_transformer, tokenizer, encoded, cache):
    def student() -> SentenceTransformer:
        model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
        model[0].processor = tokenizer
        return model

    with_rows = encoded.remove_columns("text").add_column("row", cache.rows_for(encoded["text"][:]))
    shuffled = encoded.select(list(range(32, 64)) + list(range(32)))
    unshuffled = shuffled.select(list(range(32, 64)) + list(range(32)))
    fields = {"max_steps": 3, "ids_column": "mft_input_ids"}
    runs = [
        make_trainer(student=student(), data=encoded, teacher=None, **COLUMNS, max_steps=3, eval_dataset=encoded),
        make_trainer(student=student(), data=unshuffled, teacher=None, **COLUMNS, max_steps=3),
        make_trainer(student=student(), data=with_rows, **fields),
        make_trainer(student=student(), data=encoded, **fields),
    ]
    for trainer in runs:
        trainer.train()
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2]) == losses(runs[3])
    assert len(losses(runs[0])) == 3
    assert runs[0].evaluate()["eval_loss"] < losses(runs[0])[0]
    assert set(runs[0].train_dataset.column_names) == {"mft", "mft_input_ids", "mft_row"}
    streamed = make_trainer(student=student(), data=encoded.to_iterable_dataset(), teacher=None, **COLUMNS)
    plain = make_trainer(student=student(), data=encoded, teacher=None, **COLUMNS, bucket_by_length=False)
    ordered = plain.data_collator(list(plain.train_dataset.select_columns(["mft_input_ids", "mft_row"]))[:8])
    first = next(iter(streamed.get_train_dataloader()))
    assert torch.equal(first["input_ids"], ordered["input_ids"])
    assert torch.equal(first["teacher_embedding"], ordered["teacher_embedding"])
    streamed.train()
    assert len(losses(streamed)) == 3


def test_rows_that_are_too_long_are_dropped_with_their_vectors(make_trainer, swapped, encoded, caplog):
    trainer = make_trainer(student=swapped, data=encoded, teacher=None, **COLUMNS, max_length=20, too_long="drop")
    kept = [row for row in encoded if len(row["mft_input_ids"]) <= 20]
    assert 0 < len(kept) < len(encoded)
    assert trainer.train_dataset["mft_input_ids"][:] == [row["mft_input_ids"] for row in kept]
    vectors = trainer.source.cache.embeddings(trainer.train_dataset["mft_row"][:])
    assert np.array_equal(vectors, np.float32([row["teacher_embedding_final"] for row in kept]))
    with pytest.raises(ValueError, match=r"\['mft_input_ids'\] has \d+ tokens, more than max_length=20"):
        make_trainer(student=swapped, data=encoded, teacher=None, **COLUMNS, max_length=20, too_long="error")
    texts = make_trainer(data=encoded.select_columns("text"), max_length=20, too_long="drop")
    assert 0 < len(texts.train_dataset) < len(encoded)


def test_the_turkish_tokenizer_trains(make_trainer, tiny_sentence_transformer):
    """The published corpora's ids: padding is id 5, and id 0 marks a capital letter in almost every row."""
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    from hf_distill.models.mft.tokenization_mft import HfdMftTokenizer

    model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    model[0].auto_model.resize_token_embeddings(32_768)
    model[0].processor = tokenizer = HfdMftTokenizer(model_max_length=64)
    texts = ["Kitapları okudum.", "Evler yeni.", "Bugün hava çok güzel, denize gidelim.", "Kalem masada."]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    data = Dataset.from_dict({"text": texts, "mft_input_ids": ids, "v": np.eye(4, 32).tolist()})
    fields = {"ids_column": "mft_input_ids", "teacher_column": "v", "teacher": None, "max_steps": 2}
    trainer = make_trainer(student=model, data=data, **fields)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {PAD}
    assert all(row[0] == 0 for row in ids)
    trainer.train()
    assert losses(trainer)[1] < losses(trainer)[0]
    assert model.encode(texts).shape == (4, 32)


def changed(dataset: Dataset, column: str, row: int, value) -> Dataset:
    """The data set with one cell replaced."""
    values = dataset[column][:]
    values[row] = value
    rest = dataset.remove_columns([column]).to_dict()
    return Dataset.from_dict({**rest, column: values})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("mft_input_ids", [1, 9999], r"Row 3 of column 'mft_input_ids' holds the token id 9999, outside .* \d+"),
        ("mft_input_ids", [], r"Row 3 of column 'mft_input_ids' holds no token ids"),
        ("teacher_embedding_final", [1.0] * 31, r"Row 3 of column 'teacher_embedding_final' holds 31 numbers"),
        ("teacher_embedding_final", [float("nan")] * 32, r"Row 3 of column 'teacher_embedding_final' holds NaN"),
        ("teacher_embedding_final", None, r"Row 3 of column 'teacher_embedding_final' holds no vector"),
    ],
)
def test_a_bad_cell_is_named(make_trainer, swapped, encoded, column, value, message):
    bad = changed(encoded, column, 3, value)
    with pytest.raises(ValueError, match=message):
        make_trainer(student=swapped, data=bad, teacher=None, **COLUMNS)
    with pytest.raises(ValueError, match=message):
        make_trainer(student=swapped, data=encoded, eval_dataset=bad, teacher=None, **COLUMNS)


def test_columns_that_do_not_fit_the_student(make_trainer, swapped, encoded, cache):
    narrow = changed(encoded, "teacher_embedding_final", 0, None).remove_columns("teacher_embedding_final")
    narrow = narrow.add_column("teacher_embedding_final", np.ones((64, 16)).tolist())
    with pytest.raises(ValueError, match=r"'teacher_embedding_final' holds 16 numbers, .* have 32.*'pca'"):
        make_trainer(student=swapped, data=narrow, teacher=None, **COLUMNS)
    assert make_trainer(
        student=swapped, data=narrow, teacher=None, **COLUMNS, embedding_projection="learned"
    ).objective.embedding_head.weight.shape == (16, 32)
    with pytest.raises(ValueError, match=r"no column 'mfx_input_ids'; .*\['mft_input_ids', 'tabi_input_ids'\]"):
        make_trainer(student=swapped, data=encoded, **{**COLUMNS, "ids_column": "mfx_input_ids"}, teacher=None)
    with pytest.raises(ValueError, match="two teachers: teacher=TeacherCache and teacher_column="):
        make_trainer(student=swapped, data=encoded, **COLUMNS)
    with pytest.raises(ValueError, match="holds only embeddings"):
        make_trainer(student=swapped, data=encoded, teacher=None, **COLUMNS, hidden_weight=1.0)
    pairs = Dataset.from_dict({"anchor": ["one"], "positive": ["two"], "v": [[1.0] * 32]})
    with pytest.raises(ValueError, match="one vector a row, but the data set has pairs"):
        make_trainer(student=swapped, data=pairs, teacher=None, teacher_column="v")


def test_ids_and_cache_of_different_size(make_trainer, swapped, encoded, cache):
    data = encoded.remove_columns("text").select(range(10))
    with pytest.raises(ValueError, match=rf"neither 'mft_row'.*data set has 10 rows, the cache {len(cache)}"):
        make_trainer(student=swapped, data=data, ids_column="mft_input_ids")
    for wrong in (len(cache), -1):
        rows = data.add_column("row", [*range(9), wrong])
        with pytest.raises(ValueError, match=rf"Row 9 of 'mft_row' points to row {wrong}, but .* {len(cache)} rows"):
            make_trainer(student=swapped, data=rows, ids_column="mft_input_ids")
    with pytest.raises(ValueError, match="expected length 2 but got length 1"):  # arrow itself
        Dataset.from_dict({"mft_input_ids": [[1], [2]], "teacher_embedding_final": [[0.0]]})


def test_ids_without_their_tokenizer(make_trainer, swapped, encoded, tiny_sentence_transformer):
    other = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    with pytest.raises(ValueError, match="'mft_input_ids' comes from another tokenizer than the student's"):
        make_trainer(student=other, data=encoded, teacher=None, **COLUMNS)
    none = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    none[0].processor = None
    with pytest.raises(ValueError, match="student has no tokenizer"):
        make_trainer(student=none, data=encoded, teacher=None, **COLUMNS)
    other.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no padding token"):
        make_trainer(student=other, data=encoded.remove_columns("text"), teacher=None, **COLUMNS)


def test_config_names_the_fix(tmp_path):
    with pytest.raises(ValueError, match="must end in '_input_ids'"):
        EmbeddingDistillConfig(str(tmp_path), ids_column="ids")
    with pytest.raises(ValueError, match="too_long must be one of"):
        EmbeddingDistillConfig(str(tmp_path), too_long="cut")
