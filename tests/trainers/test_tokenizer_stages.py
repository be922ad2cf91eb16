"""The tokenizer experiment's stages: which runs there are, who teaches, what a student starts with, what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoTokenizer

from hf_distill.data.bpe import train_bpe
from hf_distill.data.encoded_corpus import load_encoded_corpus
from hf_distill.data.overlap import OverlapReport
from hf_distill.evaluation.results import Results
from hf_distill.evaluation.training_summary import Origin
from hf_distill.trainers import tokenizer_stages, tokenizer_teacher
from hf_distill.trainers.callbacks import GainSummary, NoGainError
from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
from hf_distill.trainers.students import wrap_encoder
from hf_distill.trainers.tokenizer_jobs import describe_job, is_finished
from hf_distill.trainers.tokenizer_materials import Materials, prepare_corpus, prepare_tokenizers, speed_texts
from hf_distill.trainers.tokenizer_recipe import TokenizerRecipe
from hf_distill.trainers.tokenizer_stages import (
    as_many_tokens,
    compare_finished,
    finish,
    job_arguments,
    new_student,
    notes,
    open_experiment,
)
from hf_distill.trainers.tokenizer_teacher import open_teacher

TEXTS = ["a small river runs past the old mill", "the train", "two children were playing with a red ball"]


@pytest.fixture
def fields(tiny_sentence_transformer: str, tiny_bert: str, tiny_texts: list[str], tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(tiny_texts) + "\n", encoding="utf-8")
    return {
        "teacher": tiny_sentence_transformer,
        "tokenizers": {"words": tiny_bert, "tabi": "train"},
        "backbones": {
            "whole": tiny_sentence_transformer,
            "half": {"model": tiny_sentence_transformer, "num_layers": 1},
        }
        | {"random-init": None},
        "sources": {str(file): 1},
        "num_texts": 40,
        "vocab_size": 300,
        "tasks": ["stsb_tr"],
    }


@pytest.fixture
def args(tmp_path: Path) -> EmbeddingDistillConfig:
    return EmbeddingDistillConfig(str(tmp_path / "out"), bf16=False, report_to="none", disable_tqdm=True)


@pytest.fixture(scope="module")
def materials(tiny_sentence_transformer: str, tiny_texts: list[str]) -> Materials:
    teacher = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    tokenizers = {"words": teacher.tokenizer, "tabi": train_bpe(tiny_texts, 300, progress=False)}
    models = {tiny_sentence_transformer: teacher}
    return Materials(tokenizers, None, OverlapReport(0, 1), [], models, teacher, Origin("tiny"))


def test_jobs_are_tokenizers_times_backbones_times_seeds(fields: dict[str, Any], args: EmbeddingDistillConfig) -> None:
    only = ["tabi-half", "words-random-init"]
    recipe = TokenizerRecipe(**fields, seeds=[1, 2], only=only, random_learning_rate=1e-4)
    jobs = recipe.jobs(args)
    assert [job.folder.name for job in jobs] == [
        f"{name}-seed{seed}" for seed in (1, 2) for name in ("words-random-init", "tabi-half")
    ]
    control, half = jobs[:2]
    assert (control.random, control.num_layers) == (True, 1)  # the shape of the last backbone
    assert (half.random, half.tokenizer, half.model) == (False, "tabi", fields["teacher"])
    first, second = (describe_job(job, recipe.strategy, args) for job in (jobs[0], jobs[2]))
    first_rate = first["training"]["learning_rate"]
    assert first.pop("training") == second["training"] | {"seed": 1}
    assert first == {name: value for name, value in second.items() if name != "training"}
    mine = job_arguments(half, recipe, args)
    assert (mine.ids_column, mine.teacher_column, mine.seed) == ("tabi_input_ids", "teacher_embedding_final", 1)
    assert (args.ids_column, mine.learning_rate) == (None, args.learning_rate)  # a copy
    assert first_rate == job_arguments(control, recipe, args).learning_rate == 1e-4
    assert not is_finished(half.folder)


def test_what_students_start_with(fields: dict[str, Any], args: EmbeddingDistillConfig, materials: Materials) -> None:
    recipe = TokenizerRecipe(**fields)
    whole, half, control, *_ = recipe.jobs(args)
    same, report = new_student(whole, recipe, materials)  # its own tokenizer: the model itself
    np.testing.assert_allclose(same.encode(TEXTS), materials.teacher.encode(TEXTS), atol=1e-5)
    assert report.rows["exact"] + report.rows["special"] == report.target_rows
    cut, _ = new_student(half, recipe, materials)
    assert len(cut[0].auto_model.encoder.layer) == 1
    first, again = (new_student(control, recipe, materials)[0] for _ in range(2))
    assert np.array_equal(first.encode(TEXTS), again.encode(TEXTS))
    assert not np.allclose(first.encode(TEXTS), cut.encode(TEXTS), atol=0.01)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (first, cut)]
    assert shapes[0] == shapes[1]
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}


def test_a_dense_head_is_kept_and_random_in_the_control(
    fields: dict[str, Any],
    args: EmbeddingDistillConfig,
    materials: Materials,
    tiny_bert: str,
    tiny_sentence_transformer,
) -> None:
    torch.manual_seed(1234)  # another seed than that of the runs
    model = SentenceTransformer(
        modules=[Transformer(tiny_bert, max_seq_length=64), Pooling(32, "mean"), Dense(32, 16), Normalize()],
        device="cpu",
    )
    own = replace(materials, models={tiny_sentence_transformer: model}, teacher=model)
    recipe = TokenizerRecipe(**fields)
    whole, _, control, *_ = recipe.jobs(args)
    clone, random = (new_student(job, recipe, own)[0] for job in (whole, control))
    assert torch.equal(clone[2].linear.weight, model[2].linear.weight)
    assert clone[2] is not model[2]
    assert not torch.equal(random[2].linear.weight, model[2].linear.weight)
    assert random.get_embedding_dimension() == 16


def test_the_mft_tokenizer_in_a_student(materials: Materials, tmp_path: Path) -> None:
    pytest.importorskip("turkish_tokenizer", reason="pip install turkish-tokenizer==0.2.26")
    from hf_distill.data.tokenizers import swap_tokenizer
    from hf_distill.models.mft import HfdMftTokenizer

    tokenizer = HfdMftTokenizer()
    encoder, _ = swap_tokenizer(materials.teacher[0].auto_model, materials.teacher.tokenizer, tokenizer, init="random")
    student = wrap_encoder(encoder, tokenizer, 64)
    text = "Kitapları okudum."
    assert student.preprocess([text])["input_ids"][0].tolist() == tokenizer(text)["input_ids"]
    student.save(str(tmp_path / "student"))
    loaded = SentenceTransformer(str(tmp_path / "student"), trust_remote_code=True, device="cpu")
    assert np.array_equal(loaded.encode([text, "su"]), student.encode([text, "su"]))
    assert (tmp_path / "student" / "tokenization_mft.py").is_file()


@pytest.mark.parametrize("mode", ["mean", "concat", "route"])
def test_several_teachers_with_their_own_prompts(
    mode: str, fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_sentence_transformer: str
) -> None:
    teachers = {
        "plain": {"model": tiny_sentence_transformer, "prompt": ""},
        "long": {"model": tiny_sentence_transformer, "prompt": "the river: ", "min_words": 10},
    }
    recipe = TokenizerRecipe(
        **{
            **fields,
            "teacher": None,
            "teachers": json.dumps(teachers),
            "ensemble": mode,
            "tokenizers": {"tabi": "train"},
        },
        teacher_dim=None if mode == "route" else 32,
    )
    assert recipe.teacher == tiny_sentence_transformer
    tokenizers = prepare_tokenizers(recipe, args, [])
    teacher = open_teacher(recipe)
    dataset, overlap, sources = prepare_corpus(recipe, args, tokenizers, [], teacher)
    assert dataset.column_names == ["text", "tabi_input_ids", "teacher_embedding_final"]
    vectors = np.array(dataset["teacher_embedding_final"][:])
    assert vectors.shape == (len(dataset), 32)
    if mode == "route":
        model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
        asked = [("the river: " if len(text.split()) >= 10 else "") + text for text in dataset["text"]]
        cosines = (vectors * model.encode(asked)).sum(1)
        assert cosines.min() > 0.99
    assert [(source.name, source.rows) for source in sources] == [("texts.txt", 40)]
    found = notes(recipe, Materials(tokenizers, dataset, overlap, sources, {}, teacher.model, Origin("tiny")))
    assert found[0].startswith(f"Taught by several: {mode} of plain, long.")
    # a second time nothing is made: the files are not touched
    files = sorted(path for path in Path(args.output_dir).rglob("*") if path.is_file())
    times = [path.stat().st_mtime_ns for path in files]
    again, *_ = prepare_corpus(recipe, args, prepare_tokenizers(recipe, args, []), [], teacher)
    assert again["text"][:] == dataset["text"][:]
    assert [path.stat().st_mtime_ns for path in files] == times


def test_a_given_corpus(fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_bert: str, tmp_path: Path) -> None:
    fields["tokenizers"] = {"words": tiny_bert}
    made = TokenizerRecipe(**fields)
    teacher = open_teacher(made)
    dataset, _, _ = prepare_corpus(made, args, prepare_tokenizers(made, args, []), [], teacher)
    place = str(Path(args.output_dir) / "corpus")
    assert load_encoded_corpus(place)["text"][:] == dataset["text"][:]
    given = TokenizerRecipe(**{**fields, "corpus": place, "num_texts": 10})
    tokenizers = prepare_tokenizers(given, args, [])
    part, overlap, sources = prepare_corpus(given, args, tokenizers, [dataset["text"][2]], teacher)
    assert overlap.removed >= 1
    assert len(part) + overlap.removed == 10
    assert [(source.name, source.rows, source.hub_id) for source in sources] == [("corpus", len(part), None)]
    with pytest.raises(ValueError, match="no column 'tabi_input_ids'"):
        prepare_corpus(given, args, {"tabi": tokenizers["words"]}, [], teacher)


def test_routes_and_texts_for_speed() -> None:
    assert [tokenizer_teacher._route(words, [0, 20, 5]) for words in (1, 5, 19, 20)] == [0, 2, 2, 1]
    assert tokenizer_teacher._route(1, [3, 20]) == 0
    texts = ["x" * length for length in range(1, 400)]
    chosen = speed_texts(texts)
    assert len(chosen) <= 120
    assert (len(chosen[0]), len(chosen[-1]) > 380) == (1, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "Give --teacher"),
        ({"tokenizers": None}, "Give --tokenizers"),
        ({"backbones": {"a": {"layers": 3}}}, "needs a model and may have num_layers, hidden_size, intermediate"),
        ({"teacher_dim": 0}, "teacher_dim is 0: give the width of the students"),
        ({"tokenizers": {"a": "org/x or train"}, "sources": None, "corpus": "x"}, "give --sources"),
        ({"random_learning_rate": 0.0}, "random_learning_rate is 0.0: give a rate above 0"),
        ({"random_shape": "gpt"}, "random_shape must be one of the backbones"),
        ({"tokenizers": {"corpus": "train"}}, "cannot be called 'corpus'"),
        ({"num_texts": None}, "--num_texts to encode one"),
        ({"sources": None, "corpus": "x"}, "give --sources"),
        ({"strategy": "sum"}, "strategy must be one of"),
        ({"teachers": {"a": {"prompt": "x"}}}, "needs a model"),
        ({"teachers": {"a": {"model": "x"}}, "prompt": "query: "}, "drop --prompt"),
    ],
)
def test_bad_requests(change: dict[str, Any], message: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerRecipe(**{**fields, **change})


def test_a_folder_of_another_experiment_is_refused(
    fields: dict[str, Any], args: EmbeddingDistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_stages, "check_evaluation", lambda recipe: None)
    recipe = TokenizerRecipe(**fields)
    job = open_experiment(recipe, args)[0]
    job_arguments(job, recipe, args)
    assert len(open_experiment(TokenizerRecipe(**{**fields, "seeds": [7], "tasks": ["bitext"]}), args)) == 6
    with pytest.raises(ValueError, match="num_texts=40, but now num_texts=41"):
        open_experiment(TokenizerRecipe(**{**fields, "num_texts": 41}), args)
    args.learning_rate = 0.1
    with pytest.raises(ValueError, match="give --fresh to train this student anew"):
        open_experiment(recipe, args)
    open_experiment(TokenizerRecipe(**fields, fresh=True), args)
    assert not job.folder.exists()
    args.push_to_hub = True
    with pytest.raises(ValueError, match="push_student"):
        open_experiment(recipe, args)


@pytest.mark.parametrize("steps", [-1, 30])
def test_as_many_tokens_for_every_tokenizer(
    steps: int, fields: dict[str, Any], args: EmbeddingDistillConfig, materials: Materials
) -> None:
    rows = {"words_input_ids": [[1] * 10] * 16, "tabi_input_ids": [[1] * 4] * 16}
    corpus = replace(materials, dataset=Dataset.from_dict(rows))
    args.warmup_phase_steps, args.max_steps, args.num_train_epochs = 6, steps, 2
    step, recipe = args.train_batch_size, TokenizerRecipe(**fields, equal_tokens=True)
    seen = {}
    for job in recipe.jobs(args):
        mine = as_many_tokens(copy.copy(args), job, corpus)
        texts = (mine.max_steps * step if steps > 0 else mine.num_train_epochs * 16) + mine.warmup_phase_steps * step
        seen[job.tokenizer] = texts * (10 if job.tokenizer == "words" else 4)
    assert seen["words"] == (steps * step if steps > 0 else 32) * 10 + 60 * step
    assert seen["tabi"] == pytest.approx(seen["words"])
    job = TokenizerRecipe(**fields).jobs(args)[0]
    assert as_many_tokens(copy.copy(args), job, corpus) == args  # only where it is asked for


def test_a_part_of_a_backbone_is_written_down(
    fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_sentence_transformer: str
) -> None:
    part = {"model": tiny_sentence_transformer, "hidden_size": 16, "intermediate_size": 24}
    recipe = TokenizerRecipe(**{**fields, "backbones": {"part": part}})
    job = recipe.jobs(args)[0]
    assert (job.num_layers, job.hidden_size, job.intermediate_size) == (None, 16, 24)
    job_arguments(job, recipe, args)
    written = json.loads((job.folder / "recipe.json").read_text(encoding="utf-8"))
    assert (written["hidden_size"], written["intermediate_size"]) == (16, 24)


def test_the_first_process_alone_writes_and_deletes(
    fields: dict[str, Any], args: EmbeddingDistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    class State:
        def wait_for_everyone(self) -> None:
            waited.append(sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None)

    folder = Path(args.output_dir)
    monkeypatch.setattr(tokenizer_stages, "check_evaluation", lambda recipe: None)
    monkeypatch.setattr(tokenizer_stages, "process_state", State)
    recipe = TokenizerRecipe(**fields)
    job = recipe.jobs(args)[0]
    with monkeypatch.context() as context:  # the second process, which is faster
        context.setattr(EmbeddingDistillConfig, "process_index", 1)
        open_experiment(recipe, args)
        job_arguments(job, recipe, args)
        assert compare_finished(recipe, args) == {}
    assert waited == [None, None]
    open_experiment(recipe, args)
    job_arguments(job, recipe, args)
    assert waited[2:] == [["recipe.json"], ["recipe.json", job.folder.name]]
    fresh = TokenizerRecipe(**fields, fresh=True)
    with monkeypatch.context() as context:
        context.setattr(EmbeddingDistillConfig, "process_index", 1)
        open_experiment(fresh, args)
    assert waited[-1] == ["recipe.json", job.folder.name]
    open_experiment(fresh, args)
    assert waited[-1] == ["recipe.json"]  # nobody goes on before the old runs are gone


def test_a_student_without_the_required_gain_fails_after_saving(
    fields: dict[str, Any], args: EmbeddingDistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, saved = TokenizerRecipe(**fields), []
    gain = GainSummary("eval_stsb_tr_pearson", 0.5, 0.5, None, True, untrained=0.5)
    monkeypatch.setattr(tokenizer_stages, "judge_gain", lambda *_: gain)
    monkeypatch.setattr(tokenizer_stages, "_save", lambda *values: saved.append(list(values[3].notes)))
    accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
    trainer = SimpleNamespace(args=args, accelerator=accelerator, is_world_process_zero=lambda: True)
    job = recipe.jobs(args)[0]
    finish(job, recipe, trainer, Results("run"), {})
    args.require_gain = True
    with pytest.raises(NoGainError, match=f"NO GAIN: .*untrained 0.5000.* are in .*{job.folder.name}"):
        finish(job, recipe, trainer, Results("run"), {})
    assert saved == [[str(gain)]] * 2


def test_the_tokenizer_of_the_hub_or_one_that_is_trained(
    fields: dict[str, Any], args: EmbeddingDistillConfig, tiny_bert: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = TokenizerRecipe(**{**fields, "tokenizers": {"hub": f"{tiny_bert} or train", "none": "org/none or train"}})
    found = prepare_tokenizers(recipe, args, [])
    assert "in place of org/none a tokenizer is trained here" in caplog.text
    assert found["hub"].get_vocab() == AutoTokenizer.from_pretrained(tiny_bert).get_vocab()
    assert len(found["none"]) == 300
    note = json.loads((Path(args.output_dir) / "none" / "training.json").read_text(encoding="utf-8"))
    assert (note["stand_in_for"], note["sources"]) == ("org/none", {"texts.txt": 64})
    note = json.loads((Path(args.output_dir) / "hub" / "training.json").read_text(encoding="utf-8"))
    assert note["from_hub"] == tiny_bert
    # what was taken once stays, whether the Hub can be reached then or not
    moved = TokenizerRecipe(**{**fields, "tokenizers": {"hub": "org/none or train"}})
    assert prepare_tokenizers(moved, args, [])["hub"].get_vocab() == found["hub"].get_vocab()
