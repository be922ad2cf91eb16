"""What a teacher can and cannot answer is known before the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, models
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import BertTokenizer

from hf_distill.teachers.live import LiveTeacher
from hf_distill.teachers.manifest import TeacherSpec
from hf_distill.teachers.writer import write_cache
from hf_distill.trainers.teacher_source import TeacherSource, training_length


@pytest.fixture(scope="module")
def stranger(tiny_sentence_transformer):
    """A live teacher whose tokenizer numbers its words the other way round."""
    model = SentenceTransformer(tiny_sentence_transformer, device="cpu")
    words = sorted(model.tokenizer.get_vocab(), key=model.tokenizer.get_vocab().get)
    turned = {word: index for index, word in enumerate(words[:5] + words[:4:-1])}
    model[0].processor = BertTokenizer(vocab=turned)
    assert model.tokenizer.get_vocab() == turned
    return LiveTeacher(model, dtype="float32")


@pytest.fixture(scope="module")
def hidden_cache(live, tiny_texts, tmp_path_factory):
    spec = TeacherSpec.of(live.model, teacher="tiny", dtype="float32", signals=("embedding", "hidden_1", "hidden_2"))
    return write_cache(tiny_texts, live.model, tmp_path_factory.mktemp("hidden"), spec=spec, progress=False)


def test_missing_teacher(student, config):
    with pytest.raises(ValueError, match=r"\['cosine', 'gram'\].*teacher=None"):
        TeacherSource(None, student, config(gram_weight=1.0))
    source = TeacherSource(None, student, config(cosine_weight=0, contrastive_weight=1))
    assert source.embedding_width is None


def test_hidden_terms_need_hidden_states(student, config, cache, stranger):
    with pytest.raises(ValueError, match=r"only embeddings.*LiveTeacher"):
        TeacherSource(cache, student, config(hidden_weight=1.0))
    with pytest.raises(ValueError, match=r"different tokenizers.*hidden_weight=0"):
        TeacherSource(stranger, student, config(hidden_weight=1.0))


def test_layer_maps(student, config, live, hidden_cache):
    assert TeacherSource(live, student, config(hidden_weight=1.0)).hidden_layers == [0, 1]
    source = TeacherSource(hidden_cache, student, config(hidden_weight=1.0, hidden_layer_map=[1, 1]))
    assert (source.hidden_layers, source.hidden_width) == ([1, 1], 32)
    with pytest.raises(ValueError, match="layer"):
        TeacherSource(live, student, config(hidden_weight=1.0, hidden_layer_map=[0, 7]))


def test_cached_hidden_states_equal_live_ones(make_trainer, live, hidden_cache, texts):
    fields = {"hidden_weight": 1.0, "max_steps": 4, "max_length": 64}
    histories = []
    for teacher in (live, hidden_cache):
        trainer = make_trainer(teacher=teacher, **fields)
        trainer.train()
        histories.append([entry["loss/hidden"] for entry in trainer.state.log_history if "loss/hidden" in entry])
    assert len(histories[0]) == 4
    assert histories[0] == pytest.approx(histories[1], rel=5e-3)


def test_live_teacher_with_another_tokenizer_reads_the_texts(make_trainer, stranger, texts):
    trainer = make_trainer(teacher=stranger)
    assert trainer.source.needs_texts
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    answer = trainer.source.answer(inputs, False, torch.device("cpu"))
    assert torch.allclose(answer["teacher_embedding"], torch.from_numpy(stranger.embed(inputs["texts"])), atol=1e-6)
    trainer.train()
    ids = trainer.train_dataset.remove_columns("text")
    with pytest.raises(ValueError, match="needs the text column"):
        make_trainer(teacher=stranger, data=ids)


def broken(folder, word="the"):
    """A live teacher whose vector of one word holds a NaN."""
    model = SentenceTransformer(folder, device="cpu")
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight[model.tokenizer.vocab[word], 0] = float("nan")
    return LiveTeacher(model, dtype="float32")


@pytest.mark.parametrize("case", ["embedding", "hidden states", "other tokenizer"])
def test_nan_of_a_live_teacher_is_found_before_the_first_step(
    make_trainer, tiny_sentence_transformer, stranger, case, monkeypatch
):
    teacher = broken(tiny_sentence_transformer)
    if case == "hidden states":  # finite embeddings, and hidden states that no term needs before step 10
        teacher.model[1].forward = lambda features: {**features, "sentence_embedding": torch.ones(8, 32)}
    if case == "other tokenizer":
        monkeypatch.setattr(stranger, "embed", lambda texts: np.full((len(texts), 32), np.inf, np.float32))
        teacher = stranger
    schedule = {"hidden_weight": {0: 0.0, 10: 0.0, 11: 1.0}} if case == "hidden states" else {}
    trainer = make_trainer(teacher=teacher, logging_steps=50, bucket_by_length=False, **schedule)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    part = "hidden_1" if case == "hidden states" else "embedding"
    with pytest.raises(ValueError, match=f"The teacher '.*' gives NaN or infinity in {part}.*Check its weights"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_nan_that_a_later_batch_brings_is_found_on_the_cpu(student, config, tiny_sentence_transformer):
    source = TeacherSource(broken(tiny_sentence_transformer, "violin"), student, config())
    batches = [student.tokenizer([text], return_tensors="pt") for text in ("a red ball", "the violin")]
    assert source.answer(dict(batches[0]), False, torch.device("cpu"))["teacher_embedding"].isfinite().all()
    with pytest.raises(ValueError, match="gives NaN or infinity in embedding"):
        source.answer(dict(batches[1]), False, torch.device("cpu"))


def test_terms_this_student_has_nothing_for(student, config, live, tiny_sentence_transformer):
    with pytest.raises(ValueError, match="hfd_deltanet student"):
        TeacherSource(live, student, config(orthogonality_weight=1.0))
    table = StaticEmbedding(live.model.tokenizer.backend_tokenizer, embedding_dim=32)
    with pytest.raises(ValueError, match="static table"):
        TeacherSource(live, SentenceTransformer(modules=[table], device="cpu"), config(hidden_weight=1.0))


def test_training_length(student, config):
    assert training_length(student, config()) == 64
    assert training_length(student, config(max_length=16)) == 16
    with pytest.raises(ValueError, match="exceeds the student's max_seq_length=64"):
        training_length(student, config(max_length=100))


def test_static_student_learns(make_trainer, live, cache):
    torch.manual_seed(0)
    table = StaticEmbedding(live.model.tokenizer.backend_tokenizer, embedding_dim=32)
    student = SentenceTransformer(modules=[table, models.Normalize()], device="cpu")
    trainer = make_trainer(student=student, max_steps=40, learning_rate=0.05, logging_steps=8)
    trainer.train()
    losses = [entry["loss/cosine"] for entry in trainer.state.log_history if "loss/cosine" in entry]
    assert losses[-1] < 0.6 * losses[0]
    trainer.save_model(trainer.args.output_dir)
    again = SentenceTransformer(trainer.args.output_dir, device="cpu")
    assert torch.allclose(
        again.encode("a red ball", convert_to_tensor=True), student.encode("a red ball", convert_to_tensor=True)
    )
