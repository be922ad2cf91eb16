"""The Turkish evaluation: metrics by name, validation in the training loop, and a list of all text that is held out."""

from __future__ import annotations

import pytest
from datasets import Dataset

from hf_distill.data import turkish as sources
from hf_distill.evaluation import bitext
from hf_distill.evaluation.splits import refuse_test_split
from hf_distill.evaluation.turkish import held_out_turkish, tokenizer_texts, turkish_evaluators

SIZES = {"dev.tsv": 1500, "test.tsv": 1379}


@pytest.fixture
def folder(tmp_path, tiny_texts):
    """Write files of STSb-TR's format and size, over few sentences, so that they are encoded in no time."""
    for name, rows in SIZES.items():
        texts = tiny_texts[:30] if name == "dev.tsv" else tiny_texts[30:60]
        lines = ["genre\tdataset\tyear\tsid\tscore\tsentence1\tsentence2"]
        for row in range(rows):
            first, second = row % 30, (row * 7 + row // 30) % 30
            shared = len(set(texts[first].split()) & set(texts[second].split()))
            lines.append(f"main\tx\t2012\t{row:04d}\t{min(shared, 5)}.000\t{texts[first]}\t{texts[second]}")
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def glosses(monkeypatch, tiny_texts):
    pairs = {
        "validation": {"tr": ["bir nehir akar", "iki kuş uçar"], "en": ["a river runs", "two birds fly"]},
        "test": {"tr": ["üç ev yanar", "dört yol var"], "en": ["three houses burn", "there are four roads"]},
    }
    monkeypatch.setattr(bitext, "CANDIDATES", {"validation": 2, "test": 2})
    monkeypatch.setattr(sources, "aligned_glosses", lambda split: Dataset.from_dict(pairs[split]))
    monkeypatch.setattr(
        sources, "held_out_glosses", lambda: [t for split in pairs.values() for side in split.values() for t in side]
    )
    monkeypatch.setattr(sources, "treebank_texts", lambda split: [f"ağaç {split}"])
    monkeypatch.setattr(sources, "speech_texts", lambda split: [f"söz {split}"])


def test_names_of_the_metrics(folder, glosses, tiny_model):
    evaluators = turkish_evaluators(folder=folder, teacher=tiny_model)
    assert set(evaluators) == {"stsb_tr", "bitext"}
    assert set(evaluators["stsb_tr"](tiny_model)) == {"stsb_tr_spearman", "stsb_tr_pearson"}
    assert "bitext_recall_at_1" in evaluators["bitext"](tiny_model)
    assert len(evaluators["stsb_tr"].scores) == 1500
    assert evaluators["stsb_tr"].scores.max() <= 1.0


@pytest.mark.parametrize("task", ["stsb_tr", "bitext"])
def test_the_training_loop_refuses_the_test_split(folder, glosses, task):
    refuse_test_split(list(turkish_evaluators([task], "validation", folder=folder).values()))
    with pytest.raises(ValueError, match=f"'{task}' reads the test split"):
        refuse_test_split(list(turkish_evaluators([task], "test", folder=folder).values()))


def test_all_that_is_held_out(folder, glosses, tiny_texts):
    texts = held_out_turkish(folder)
    assert len(texts) == len(set(texts))
    assert set(texts) >= {*tiny_texts[:60], "iki kuş uçar", "there are four roads"}
    measured = tokenizer_texts(folder)
    assert set(measured) == {*tiny_texts[:30], "bir nehir akar", "iki kuş uçar", "ağaç validation", "söz validation"}


def test_bad_input(folder, tmp_path):
    with pytest.raises(ValueError, match="no Turkish task 'stsb': choose among stsb_tr, bitext"):
        turkish_evaluators(["stsb"])
    with pytest.raises(ValueError, match="no split 'train'"):
        turkish_evaluators(["stsb_tr"], "train", folder=folder)
    with pytest.raises(FileNotFoundError, match="dev.tsv"):
        turkish_evaluators(["stsb_tr"], folder=tmp_path / "nothing")
    assert turkish_evaluators([]) == {}
