"""Stage 1: teaches each linear mixer to do what the teacher's attention did, on the teacher's own inputs.

For every student layer the mixer gets the hidden state that enters the teacher's layer and must give the output of the
teacher's attention (its output projection included, before residual and LayerNorm). All layers learn in one step, side
by side: nothing is propagated back through the depth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from hf_distill.data.collators import (
    IDS_SUFFIX,
    DistillCollator,
    check_token_ids,
    column_lengths,
    text_columns,
    tokenize_columns,
)
from hf_distill.data.sampling import LengthBucketBatchSampler
from hf_distill.losses.hidden import hidden_state_loss
from hf_distill.teachers.fingerprint import sha256_of_tokenizer
from hf_distill.teachers.live import LiveTeacher
from hf_distill.trainers.alignment_config import MixerAlignmentConfig
from hf_distill.trainers.objective import Objective
from hf_distill.trainers.objective_mixin import ObjectiveTrainerMixin, distill_callbacks
from hf_distill.trainers.run_checkpoints import require_same_student

_BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


class _Enough(Exception):  # noqa: N818 (control flow, not an error)
    """Ends the teacher's forward after the last attention that is needed."""


def attention_output(encoder: PreTrainedModel, layer: int) -> nn.Module:
    """The module whose output is a teacher layer's attention, output projection included.

    Args:
        encoder: A BERT-, RoBERTa- or MPNet-like encoder.
        layer: Its layer, from 0.

    Returns:
        `attention.output.dense`, or `attention.attn.o` in MPNet.

    Raises:
        ValueError: If the architecture is not known.
    """
    if encoder.config.model_type in _BERT_LIKE:
        return encoder.encoder.layer[layer].attention.output.dense
    if encoder.config.model_type == "mpnet":
        return encoder.encoder.layer[layer].attention.attn.o
    raise ValueError(
        f"Mixers cannot be aligned to a {encoder.config.model_type!r} teacher; known are {[*_BERT_LIKE, 'mpnet']}. Skip "
        "stage 1, or choose another teacher."
    )


class AttentionProbe:
    """Runs a teacher and records what enters its layers and what their attentions give.

    Args:
        teacher: The live teacher.
        layers: Teacher layers (from 0) to record.
    """

    def __init__(self, teacher: LiveTeacher, layers: list[int]) -> None:
        self.teacher = teacher
        self.layers = sorted(set(layers))
        self._checked = False
        depth = teacher.encoder.config.num_hidden_layers
        if self.layers[0] < 0 or self.layers[-1] >= depth:
            raise ValueError(
                f"The student's teacher_layers {layers} do not fit a teacher of {depth} layers (0…{depth - 1})."
            )
        for layer in self.layers:
            attention_output(teacher.encoder, layer)

    @torch.no_grad()
    def record(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Records one batch; the teacher stops after the last attention that is asked for.

        Args:
            input_ids: `(R, T)`.
            attention_mask: `(R, T)`.

        Returns:
            Inputs and attention outputs of the layers, layer -> `(R, T, D)`.

        Raises:
            ValueError: If the teacher's first answer holds NaN or infinity.
        """
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        encoder = self.teacher.encoder

        def keep_input(layer: int) -> Any:
            def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
                inputs[layer] = args[0] if args else kwargs["hidden_states"]

            return hook

        def keep_output(layer: int) -> Any:
            def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
                outputs[layer] = output
                if layer == self.layers[-1]:
                    raise _Enough

            return hook

        handles = []
        for layer in self.layers:
            block = encoder.encoder.layer[layer]
            handles.append(block.register_forward_pre_hook(keep_input(layer), with_kwargs=True))
            handles.append(attention_output(encoder, layer).register_forward_hook(keep_output(layer)))
        try:
            self.teacher.forward(input_ids, attention_mask, hidden_states=False)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not self._checked:
            real = attention_mask.bool().to(self.teacher.device)
            self.teacher.check_finite({f"the attention of layer {i}": outputs[i][real] for i in self.layers})
            self._checked = True
        return inputs, outputs


class AlignmentObjective(Objective):
    """The student's mixers, each against its teacher layer.

    Args:
        model: An `HfdDeltaNetModel`.
        teacher_layers: Teacher layer (from 0) of each student layer.
        relative: Divide by the energy of the target.
        reduction: `"sum"` or `"mean"` over layers.
    """

    def __init__(
        self, model: nn.Module, teacher_layers: list[int], relative: bool = True, reduction: str = "sum"
    ) -> None:
        super().__init__(model)
        self.teacher_layers = teacher_layers
        self.relative = relative
        self.reduction = reduction

    def forward(self, inputs: dict[int, Tensor], targets: dict[int, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Runs every mixer once.

        Args:
            inputs: Teacher layer -> `(R, T, D)`, what enters it.
            targets: Teacher layer -> `(R, T, D)`, what its attention gives.
            mask: `(R, T)`, 1 at real tokens.

        Returns:
            `loss` and `layer_<i>`, the unweighted, detached error of every student layer.
        """
        losses = [
            hidden_state_loss(layer.mixer(inputs[source], mask), targets[source], mask, self.relative)
            for layer, source in zip(self.model.layers, self.teacher_layers, strict=True)
        ]
        stacked = torch.stack(losses)
        total = stacked.sum() if self.reduction == "sum" else stacked.mean()
        return {"loss": total, **{f"layer_{i}": loss.detach() for i, loss in enumerate(losses)}}


class MixerAlignmentTrainer(ObjectiveTrainerMixin, Trainer):
    """Aligns the mixers of a student to its teacher's attention. Only mixer parameters train.

    Args:
        model: An `HfdDeltaNetModel` (see its `from_teacher`).
        args: How to train.
        train_dataset: Rows with `text`, or `anchor` and `positive`: strings, or ids as `<column>_input_ids`.
        eval_dataset: The same, for a validation loss.
        teacher: The live teacher, with the student's tokenizer.
        tokenizer: The student's tokenizer; the teacher's by default.
        callbacks: Further callbacks.

    Raises:
        ValueError: Before any step, if student, teacher and data do not fit together; the message names the fix.

    Example:
        >>> student = HfdDeltaNetModel.from_teacher(teacher.encoder)
        >>> MixerAlignmentTrainer(
        ...     student, MixerAlignmentConfig("stage1", max_steps=500), texts, teacher=teacher
        ... ).train()
    """

    _tag_names = ("hf_distill", "knowledge-distillation")
    _name = "Mixer alignment"
    _paper = {
        "title": "Transformers to SSMs: Distilling Quadratic Knowledge to Subquadratic Models",
        "id": "2408.10189",  # its second stage, hidden-state alignment
    }

    def __init__(
        self,
        model: PreTrainedModel,
        args: MixerAlignmentConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        teacher: LiveTeacher | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        args = MixerAlignmentConfig(output_dir="alignment") if args is None else args
        if train_dataset is None or teacher is None:
            raise ValueError("Alignment needs a train_dataset with texts and teacher=LiveTeacher(...).")
        layers = _teacher_layers(model, teacher)
        tokenizer = teacher.model.tokenizer if tokenizer is None else tokenizer
        if sha256_of_tokenizer(tokenizer) != sha256_of_tokenizer(teacher.model.tokenizer):
            raise ValueError("Alignment compares token by token: the student needs the teacher's tokenizer.")
        self.max_length = min(args.max_length or teacher.model.max_seq_length, teacher.model.max_seq_length)
        self.vocab_size = model.get_input_embeddings().num_embeddings
        collator = DistillCollator(tokenizer, self.max_length, vocab_size=self.vocab_size)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._prepared(train_dataset, tokenizer),
            eval_dataset=None if eval_dataset is None else self._prepared(eval_dataset, tokenizer),
            data_collator=collator,
            processing_class=tokenizer,
            callbacks=distill_callbacks(args, callbacks),
        )
        self.probe = AttentionProbe(teacher, layers)
        self._attach_objective(AlignmentObjective(self.model, layers, args.relative, args.layer_reduction))

    def _prepared(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Token ids, checked against the vocabulary."""
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Dataset):
            raise ValueError(
                f"Alignment needs a `datasets.Dataset` in memory or on disk, not {type(dataset).__name__}."
            )
        if not len(dataset):
            raise ValueError("The data set has no rows; check its file, its filters and its limit.")
        columns = text_columns(dataset.column_names)
        dataset = tokenize_columns(dataset, columns, tokenizer, self.max_length)
        check_token_ids(dataset, columns, self.vocab_size)
        return dataset.select_columns([column + IDS_SUFFIX for column in columns])

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains the mixers; everything else is frozen meanwhile. Takes what `Trainer.train` takes."""
        frozen = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        self.model.requires_grad_(False)
        for layer in self.model.layers:
            layer.mixer.requires_grad_(True)
        try:
            return super().train(*args, **kwargs)
        finally:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(frozen[name])
                parameter.grad = None

    def get_train_dataloader(self) -> DataLoader:
        """Batches of similar length."""
        drop_last = self.args.dataloader_drop_last or self.args.world_size > 1
        sampler = self.length_sampler(self.train_dataset, self.args.train_batch_size, self.max_length, drop_last)
        return self._loader(self.train_dataset, sampler, even_batches=False)

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """The evaluation set once, longest texts first."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        lengths = column_lengths(dataset, text_columns(dataset.column_names))
        sampler = LengthBucketBatchSampler(lengths, self.args.eval_batch_size, shuffle=False)
        return self._loader(dataset, sampler, even_batches=True)

    def _loader(self, dataset: Dataset, sampler: LengthBucketBatchSampler, *, even_batches: bool) -> DataLoader:
        """A data loader over given batches, sharded over the processes."""
        self.accelerator.even_batches = even_batches
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """The teacher once up to its last attention, then all mixers.

        Args:
            model: The wrapped objective in training, the student in evaluation.
            inputs: A batch of `DistillCollator`.
            return_outputs: Also return an empty dictionary of outputs.
            num_items_in_batch: Texts of the whole optimiser step.

        Returns:
            The loss, scaled to the whole step.
        """
        mask = inputs["attention_mask"]
        entering, given = self.probe.record(inputs["input_ids"], mask)
        module = model if model is self.model_wrapped and model is not self.model else self.objective
        with self.accelerator.autocast():
            terms = module(entering, given, mask)
        loss = terms.pop("loss")
        rows = self.rows_of(inputs)
        self.record_terms(terms, rows)
        loss = self.scale_loss(loss, rows, num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The validation loss of a batch."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves the student, its tokenizer and readable arguments; no pickle."""
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        self.args.save_json(folder)

    def _load_weights(self, checkpoint: str) -> None:
        """Loads the student's weights.

        Raises:
            ValueError: If the checkpoint holds another student.
        """
        require_same_student(checkpoint, self.model.config)
        try:
            self.model.load_state_dict(load_file(Path(checkpoint) / "model.safetensors"))
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} holds a student of another configuration than this run's. Resume with the config it was "
                f"written with, or choose another output_dir. ({error})"
            ) from error


def _teacher_layers(model: PreTrainedModel, teacher: LiveTeacher) -> list[int]:
    """The student's layer map, checked.

    Raises:
        ValueError: If the student does not say which teacher layers it came from, or the widths differ.
    """
    layers = model.config.to_dict().get("teacher_layers")
    if not layers or len(layers) != model.config.num_hidden_layers:
        raise ValueError(
            f"The student's config.teacher_layers is {layers}, but it must name a teacher layer for each of its "
            f"{model.config.num_hidden_layers} layers. Build the student with HfdDeltaNetModel.from_teacher(...)."
        )
    if model.config.hidden_size != teacher.encoder.config.hidden_size:
        raise ValueError(
            f"The student is {model.config.hidden_size} wide, the teacher {teacher.encoder.config.hidden_size}: mixers "
            "can only be aligned at equal width. Skip stage 1."
        )
    return list(layers)


__all__ = ["AlignmentObjective", "AttentionProbe", "MixerAlignmentTrainer", "attention_output"]
