"""Cards of students with another tokenizer: snippets that run without the library, what they say of start, code, language."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from student_results import TEACHER, make_results, training

from hf_distill.evaluation.results import Results
from hf_distill.evaluation.tokenizer_stats import TokenizerStats
from hf_distill.hub.card_scores import headline, score_table, table_notes
from hf_distill.hub.card_training import architecture, lineage_table
from hf_distill.hub.export import export_student
from hf_distill.hub.own_code import own_code
from hf_distill.hub.short_card import write_short_card

# Runs the snippets of a card one after the other and writes down their vectors.
SNIPPETS = """
import json, numpy as np
for place, block in enumerate(json.load(open("blocks.json"))):
    names = {}
    exec(block, names)
    np.save(f"{place}.npy", np.asarray(names["vectors"]))
"""


def tokenizer_results(fingerprint: str = "f" * 64, **changes) -> Results:
    """Results of an MFT clone, as the tokenizer experiment has them."""
    results = make_results(fingerprint, "tokenizer", training=training("tokenizer", languages=["tr"], **changes))
    for row in results.rows:
        score = {"teacher": 0.8, "student": 0.76}.get(row.role, 0.5)
        name = "unigram" if row.role == "teacher" else "mft"
        row.metrics = {"test": {"stsb_tr_spearman": score}, "validation": {"stsb_tr_spearman": score + 0.01}}
        row.tokenizer = TokenizerStats(name, 100, 900, 32_768, 3.1, 30.0, 26.0, 68.0, 0.0, 0.6, 0.2, 1e6)
        row.speed = dataclasses.replace(row.speed, texts_per_second=300.0 if row.role == "teacher" else 150.0)
    return results


@pytest.fixture(scope="module")
def exported(tiny_sentence_transformer, tmp_path_factory) -> Path:
    """An MFT student of the tiny model, exported with its card, which loads it in a clean process."""
    pytest.importorskip("turkish_tokenizer", reason="pip install --no-deps turkish-tokenizer==0.2.26")
    from sentence_transformers import SentenceTransformer

    from hf_distill.data.tokenizers import swap_tokenizer
    from hf_distill.evaluation.score_cache import model_fingerprint
    from hf_distill.models.mft import HfdMftTokenizer
    from hf_distill.trainers.students import wrap_encoder

    source, tokenizer = SentenceTransformer(tiny_sentence_transformer, device="cpu"), HfdMftTokenizer()
    encoder, _ = swap_tokenizer(source[0].auto_model, source.tokenizer, tokenizer, init="random")
    student = wrap_encoder(encoder, tokenizer, 64)
    folder = tmp_path_factory.mktemp("exported") / "my-mft"
    return export_student(student, folder, results=tokenizer_results(model_fingerprint(student)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_snippet_of_an_mft_student_runs_without_the_library(
    exported: Path, tmp_path: Path, run_elsewhere: Callable[..., str]
) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "blocks.json").write_text(json.dumps(blocks), encoding="utf-8")
    (tmp_path / "my-mft").symlink_to(exported)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    printed = run_elsewhere(SNIPPETS, cwd=tmp_path, env=environment, timeout=600)
    sentences, states = (np.load(tmp_path / f"{place}.npy") for place in range(2))
    np.testing.assert_allclose(sentences[[0, 2]], states, atol=1e-5)  # the first and the last sentence
    assert "tensor(" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_card_of_an_mft_student_says(exported: Path) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    body = " ".join(text.split("---\n", 2)[2].split())
    for said in (
        "turns Turkish text of up to 64 tokens into 32 numbers",
        "with the MFT tokenizer of 32,768 tokens.",
        "```bash pip install --no-deps turkish-tokenizer==0.2.26 ```",
        'SentenceTransformer("my-mft", trust_remote_code=True)',
        'AutoTokenizer.from_pretrained("my-mft", trust_remote_code=True)',
        'AutoModel.from_pretrained("my-mft")',  # a BERT needs no code of ours
        "The tokenizer brings its own code (`tokenization_mft.py` in this repository, transformers and the package above only)",
        "Bir köpek karda koşuyor.",
    ):
        assert said in body, said
    for wrong in ("modeling_*.py", "torch and transformers only", "A dog runs", "  ", " None"):
        assert wrong not in body, wrong
    data = ModelCard.load(exported / "README.md").data
    assert (data.language, data.base_model) == (["tr"], "org/teacher")
    assert "custom_code" in data.tags
    code = own_code(exported)
    assert (code.files, code.model, code.tokenizer) == (["tokenization_mft.py"], False, ["tokenization_mft.py"])


def test_how_a_student_started() -> None:
    teacher = "[org/teacher](https://huggingface.co/org/teacher/tree/0123456789abcdef0123456789abcdef01234567)"
    clone = training("tokenizer")
    assert architecture(clone) == f"It started as {teacher}, with the MFT tokenizer of 32,768 tokens."
    clone.settings |= {"cut": "1 of its 2 layers", "tokenizer": "tabi"}
    half = "(1 of its 2 layers), with the `tabi` tokenizer of 32,768 tokens."
    assert architecture(clone) == f"It started as {teacher} {half}"
    clone.init_from = None
    assert architecture(clone) == f"It started as random weights in the shape of `org/teacher` {half}"


def test_a_part_of_the_teacher_is_a_line_of_its_own() -> None:
    whole = training("tokenizer", teacher=dataclasses.replace(TEACHER, note="dequantised"))
    whole.init_from = whole.teacher
    assert "| teacher, whose weights it started from |" in lineage_table(whole)
    whole.init_from = dataclasses.replace(TEACHER, note="dequantised; 1 of its 2 layers")
    lines = lineage_table(whole).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["teacher", "weights started from"]
    assert "), dequantised; 1 of its 2 layers " in lines[1]
    assert "layers" not in lines[0]


def test_tokens_of_two_tokenizers_are_not_compared() -> None:
    results = tokenizer_results()
    said = headline(results)
    assert said[0] == "**Quality**: 0.7600 Spearman on STSb-TR's test split, 95.0 % of its teacher's 0.8000."
    assert "150.0 texts/s in float32" in said[2]
    assert "slower than its teacher there (300.0 texts/s, 0.50×)" in said[2]
    assert "| texts/s" in score_table(results)
    assert "tokens/s" not in score_table(results)
    assert "Speed was measured on texts that are held out, short and long, the models taking turns." in table_notes(
        results
    )


def test_the_short_card_names_the_package_too(tmp_path: Path) -> None:
    (tmp_path / "tokenization_mft.py").touch()
    text = write_short_card(tmp_path, "Not evaluated.").read_text(encoding="utf-8")
    assert "## Use\n\n```bash\npip install --no-deps turkish-tokenizer==0.2.26\n```\n\n```python\n" in text
    assert "trust_remote_code=True" in text
