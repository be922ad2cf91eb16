"""lm-eval on a local YAML task: the accuracy is the one by hand, the model is left as it was, errors name what is there."""

from __future__ import annotations

import importlib
import json
import random
import sys

import pytest
import torch

EXAMPLES = [
    {"country": "France", "cities": ["Paris", "Rome"], "answer": 0},
    {"country": "Italy", "cities": ["Paris", "Rome"], "answer": 1},
    {"country": "Spain", "cities": ["Madrid", "Rome"], "answer": 0},
    {"country": "Norway", "cities": ["Madrid", "Oslo"], "answer": 1},
]
TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{{{country}}}} is"
doc_to_choice: "{{{{cities}}}}"
doc_to_target: "{{{{answer}}}}"
metadata: {{version: 1}}
"""


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "hf_distill.evaluation.lm_harness", raising=False)
    with pytest.raises(ImportError, match=r"need lm-eval.*pip install 'hf_distill\[eval\]'"):
        importlib.import_module("hf_distill.evaluation.lm_harness")


@pytest.fixture
def harness():
    pytest.importorskip("lm_eval", reason="pip install 'hf_distill[eval]'")
    return importlib.import_module("hf_distill.evaluation.lm_harness")


@pytest.fixture
def tasks(tmp_path):
    """A folder with one YAML task and its data."""
    file = tmp_path / "capitals.jsonl"
    file.write_text("\n".join(map(json.dumps, EXAMPLES)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.yaml").write_text(TASK.format(file=file))
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def causal():
    """A tiny Llama whose tokenizer knows the words of the task."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["The", "capital", "of", "is"] + sorted({word for e in EXAMPLES for word in [e["country"], *e["cities"]]})
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "<eos>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="<eos>", pad_token="<eos>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model, tokenizer


def accuracy_by_hand(model, tokenizer):
    right = 0
    for example in EXAMPLES:
        ids = tokenizer(f"The capital of {example['country']} is", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model.eval()(ids).logits[0, -1]
        cities = tokenizer.convert_tokens_to_ids(example["cities"])
        right += int(logits[cities].argmax()) == example["answer"]
    return right / len(EXAMPLES)


def test_accuracy_is_the_one_by_hand_and_nothing_else_changes(harness, causal, tasks):
    model, tokenizer = causal
    expected = accuracy_by_hand(model, tokenizer)
    model.train()
    random.seed(3), torch.manual_seed(3)
    before = random.random(), torch.rand(1)
    random.seed(3), torch.manual_seed(3)
    metrics = harness.run_lm_tasks(model, tokenizer, ["capitals"], tasks)
    assert (random.random(), torch.rand(1)) == before
    assert model.training
    assert metrics["capitals_acc"] == expected
    assert set(metrics) >= {"capitals_acc", "capitals_acc_stderr", "capitals_acc_norm"}
    assert all(isinstance(value, float) for value in metrics.values())
    one = harness.run_lm_tasks(model, tokenizer, ["capitals"], tasks, limit=1)
    assert one["capitals_acc"] in (0.0, 1.0)


def test_bad_input(harness, causal, tasks, tmp_path):
    model, tokenizer = causal
    with pytest.raises(ValueError, match="No task is given"):
        harness.run_lm_tasks(model, tokenizer, [], tasks)
    with pytest.raises(ValueError, match="has no task 'rivers'; it has capitals"):
        harness.run_lm_tasks(model, tokenizer, ["rivers"], tasks)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        harness.run_lm_tasks(model, tokenizer, ["capitals"], tmp_path / "nothing")
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="Set tokenizer.eos_token"):
        harness.run_lm_tasks(model, bare, ["capitals"], tasks)
