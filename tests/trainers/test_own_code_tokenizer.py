"""A tokenizer in Python that knows nothing of Hugging Face, behind a file of its own: swapped in, trained, saved, loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizer

from hf_distill.data.encoded_corpus import load_tokenizer
from hf_distill.data.tokenizers import swap_tokenizer
from hf_distill.hub.clean_process import SENTENCES, check_in_clean_process, one_thread, sentence_output
from hf_distill.trainers.students import wrap_encoder

CODE = '''
"""Cuts words after four letters."""

from pathlib import Path

from transformers import PreTrainedTokenizer


def cut(text):
    """What somebody's own tokenizer does."""
    parts = [("_" + word) for word in text.lower().split()]
    return [part[start : start + 5] for part in parts for start in range(0, len(part), 5)]


class FourLettersTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "pieces.txt"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, **kwargs):
        self._pieces = Path(vocab_file).read_text(encoding="utf-8").split("\\n")
        self._ids = {piece: index for index, piece in enumerate(self._pieces)}
        kwargs.update(special_tokens_pattern="none", pad_token="<pad>", unk_token="<unk>")
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self._pieces)

    def get_vocab(self):
        return dict(self._ids)

    def surface_forms(self):
        return [() if p[0] == "<" else (p.replace("_", " "),) for p in self._pieces]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = Path(save_directory) / "pieces.txt"
        path.write_text("\\n".join(self._pieces), encoding="utf-8")
        return (str(path),)

    def _tokenize(self, text, **kwargs):
        return cut(text)

    def _convert_token_to_id(self, token):
        return self._ids.get(token, self._ids["<unk>"])

    def _convert_id_to_token(self, index):
        return self._pieces[index]
'''


@pytest.fixture(scope="module")
def tokenizer(tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizer:
    """Id 0 is a piece of the texts, 4 is padding, and nothing opens or closes a text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenization_four.py").write_text(CODE, encoding="utf-8")
    names: dict = {}
    exec(CODE, names)  # noqa: S102
    pieces = list(dict.fromkeys(piece for text in tiny_texts for piece in names["cut"](text)))
    pieces[4:4] = ["<pad>", "<unk>"]
    (folder / "pieces.txt").write_text("\n".join(pieces), encoding="utf-8")
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_four.FourLettersTokenizer", None]},
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return load_tokenizer(str(folder), trust_remote_code=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_student_with_somebodys_own_tokenizer(
    tokenizer: PreTrainedTokenizer, make_trainer, tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path: Path
) -> None:
    teacher = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    encoder, report = swap_tokenizer(teacher[0].auto_model, teacher.tokenizer, tokenizer)
    assert report.rows["exact"] > 50
    assert report.rows["composed"] > 50
    student = wrap_encoder(encoder, tokenizer, 64)

    # ---- ids and vectors in columns, through the trainer ----
    ids = tokenizer(tiny_texts)["input_ids"]
    assert tokenizer.pad_token_id == 4
    assert sum(row.count(0) for row in ids) > 5
    data = Dataset.from_dict({"text": tiny_texts, "four_input_ids": ids, "v": teacher.encode(tiny_texts).tolist()})
    fields = {"ids_column": "four_input_ids", "teacher_column": "v", "teacher": None, "max_steps": 6}
    trainer = make_trainer(student=student, data=data, **fields)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]

    # ---- saved: strings elsewhere, strings and ids here ----
    student.save_pretrained(str(tmp_path / "student"), create_model_card=False)
    assert {"tokenization_four.py", "pieces.txt"} <= {path.name for path in (tmp_path / "student").iterdir()}
    with one_thread():
        expected = sentence_output(student, tiny_texts[:8])
    check_in_clean_process(tmp_path / "student", tiny_texts[:8], {SENTENCES: expected})
    loaded = SentenceTransformer(str(tmp_path / "student"), trust_remote_code=True, device="cpu")
    assert loaded.tokenizer(tiny_texts)["input_ids"] == ids
    assert (loaded.tokenizer.pad_token_id, loaded[0].auto_model.config.pad_token_id) == (4, 4)
    for row, vector in zip(ids[:8], expected, strict=True):
        features = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        with torch.no_grad():
            np.testing.assert_allclose(loaded(features)["sentence_embedding"][0], vector, atol=1e-6)
