"""What this machine can do, and what a training run would need: `hf-distill env` prints both.

Three parts: `detect_hardware` (requirement 2's list: GPU name, memory, compute capability, multiprocessors, CUDA, cuDNN,
TF32 and bf16 support; on CPU the model, cores, AVX512-BF16 and AMX), `estimate_memory` (an arithmetic estimate of the
memory of a training step, by part) and `use_all_cores` (undoes a surprise of `accelerate launch` on CPU). torch is
imported inside the functions, so that the command line can import this module for nothing.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

GIB = 1024**3
CORE_PACKAGES = (
    "transformers",
    "sentence-transformers",
    "datasets",
    "accelerate",
    "trl",
    "peft",
    "evaluate",
    "mteb",
    "safetensors",
    "huggingface-hub",
)
"""The ten packages of the Hugging Face stack that hf_distill extends."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# float32 states that an optimiser keeps per parameter
_OPTIMIZER_STATES = {"adamw": 2, "adam": 2, "adafactor": 0.01, "sgd": 0, "sgd_momentum": 1}
# What autograd keeps per token and layer of a post-LN encoder block, measured with
# torch.autograd.graph.saved_tensors_hooks: so many tensors of width D that stay float32 (residual stream, norms, queries,
# keys, values, read-outs), twice as many in a memory of two states, and two of the FFN's width in the autocast type.
_SAVED_WIDTHS = {"ridge": 10, "attention": 8, "delta_causal": 19, "delta_split": 19, "delta_flip": 29}
_SAVED_FFN_WIDTHS = 2
# Float32 matrices of D x head_size per text and layer: the memory's sums, their factor and their solution.
_STATE_MATRICES = 4


@dataclass(frozen=True)
class Gpu:
    """One CUDA device.

    Args:
        name: Name as the driver tells it.
        memory_gib: Memory in GiB.
        compute_capability: Such as `"8.9"`.
        multiprocessors: Streaming multiprocessors.
    """

    name: str
    memory_gib: float
    compute_capability: str
    multiprocessors: int


@dataclass(frozen=True)
class Hardware:
    """What the machine has and which number formats it is fast in.

    Args:
        device: `"cuda"`, `"mps"` or `"cpu"`: where training runs.
        platform: Operating system, release and architecture.
        python: Python version.
        torch: torch version.
        cpu_model: Name of the processor.
        cpu_cores: Cores this process may use.
        cpu_physical_cores: Physical cores of the machine.
        memory_gib: Main memory in GiB.
        avx512_bf16: The CPU has AVX512-BF16, and torch uses it.
        amx: The CPU has AMX tiles, and torch uses them.
        gpus: The CUDA devices.
        cuda: CUDA version torch was built for, `None` for a CPU build.
        cudnn: cuDNN version, `None` without.
        tf32: TF32 matrix products (compute capability 8.0 and later).
        bf16: Fast bf16 on `device`: then bf16 autocast pays.
    """

    device: str
    platform: str
    python: str
    torch: str
    cpu_model: str
    cpu_cores: int
    cpu_physical_cores: int
    memory_gib: float
    avx512_bf16: bool
    amx: bool
    gpus: tuple[Gpu, ...]
    cuda: str | None
    cudnn: str | None
    tf32: bool
    bf16: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON-able values."""
        return asdict(self)

    @property
    def training_memory_gib(self) -> float:
        """Memory one training process can use: the smallest GPU's, else the main memory, in GiB."""
        return min((gpu.memory_gib for gpu in self.gpus), default=self.memory_gib)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one process needs for a training step, by part.

    Args:
        parameters: Student weights.
        gradients: One float32 gradient per parameter.
        optimizer: Optimiser states.
        activations: What autograd keeps for the backward pass.
        teacher: Weights of a live teacher (0 with a teacher cache).
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    teacher: int

    @property
    def total(self) -> int:
        """Sum of the parts in bytes."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.teacher

    def to_dict(self) -> dict[str, int]:
        """Return the parts and the total in bytes."""
        return {**asdict(self), "total": self.total}


def _cpu_model() -> str:
    """Return the processor's marketing name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the cores this process may run on (its affinity mask where the system has one)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cudnn_version(number: int | None) -> str | None:
    """Return cuDNN's version from its integer, such as `"9.10.2"` from 91002, `None` from `None`."""
    if number is None:
        return None
    major = 10_000 if number >= 90_000 else 1_000  # cuDNN 9 moved to two digits for the minor version
    return f"{number // major}.{number % major // 100}.{number % 100}"


def detect_hardware() -> Hardware:
    """Look at this machine.

    Returns:
        The hardware as torch sees it. Nothing is allocated on any device.
    """
    import psutil
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        memory = round(properties.total_memory / GIB, 2)
        gpus.append(Gpu(properties.name, memory, capability, properties.multi_processor_count))
    device = "cuda" if gpus else "mps" if torch.backends.mps.is_available() else "cpu"
    ampere = bool(gpus) and all(int(gpu.compute_capability.split(".")[0]) >= 8 for gpu in gpus)
    avx512_bf16, amx = bool(torch.cpu._is_avx512_bf16_supported()), bool(torch.cpu._is_amx_tile_supported())
    cores = usable_cores()
    return Hardware(
        device=device,
        platform=f"{platform.system()} {platform.release()} ({platform.machine()})",
        python=platform.python_version(),
        torch=torch.__version__,
        cpu_model=_cpu_model(),
        cpu_cores=cores,
        cpu_physical_cores=psutil.cpu_count(logical=False) or cores,
        memory_gib=round(psutil.virtual_memory().total / GIB, 2),
        avx512_bf16=avx512_bf16,
        amx=amx,
        gpus=tuple(gpus),
        cuda=torch.version.cuda,
        cudnn=_cudnn_version(torch.backends.cudnn.version()),
        tf32=ampere,
        bf16=ampere or (device == "cpu" and (avx512_bf16 or amx)),
    )


def package_versions() -> dict[str, str]:
    """Return the installed versions of hf_distill, torch, tokenizers, numpy and the ten core packages."""
    versions = {}
    for name in ("hf_distill", "torch", *CORE_PACKAGES, "tokenizers", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def encoder_parameters(
    hidden_size: int = 384,
    layers: int = 6,
    intermediate_size: int | None = None,
    vocab_size: int = 30522,
    positions: int = 512,
) -> int:
    """Count the weights of a BERT-like encoder without pooler; the defaults are all-MiniLM-L6-v2's.

    Args:
        hidden_size: Width `D`.
        layers: Number of blocks.
        intermediate_size: FFN width; `None` is `4 D`.
        vocab_size: Rows of the word table.
        positions: Rows of the position table.

    Returns:
        The number of parameters: exact for BERT, within 1 % for a DeltaNet student of the same sizes.
    """
    inner = intermediate_size or 4 * hidden_size
    embeddings = (vocab_size + positions + 2) * hidden_size + 2 * hidden_size
    attention = 4 * (hidden_size * hidden_size + hidden_size)
    feed_forward = 2 * hidden_size * inner + inner + hidden_size
    return embeddings + layers * (attention + feed_forward + 4 * hidden_size)


def estimate_memory(
    *,
    batch_size: int,
    sequence_length: int,
    hidden_size: int = 384,
    layers: int = 6,
    intermediate_size: int | None = None,
    mixer: str = "ridge",
    memory: str = "single",
    head_size: int = 32,
    parameters: int | None = None,
    dtype: str = "bfloat16",
    optimizer: str = "adamw",
    activation_checkpointing: bool = False,
    teacher_parameters: int = 0,
    teacher_dtype: str = "bfloat16",
) -> MemoryEstimate:
    r"""Estimate the memory of one training step of an encoder student.

    Weights, gradients and optimiser states are float32 whatever `dtype` is: it is the autocast type. The estimate
    counts what autograd keeps: per token and layer about `10 D` float32 numbers (`29 D` for two delta passes, twice
    that with two states) and `2 D_ffn` autocast numbers, per text and layer the memory's matrices, and the autocast
    copies of the weights. It leaves out the framework itself and short-lived buffers: keep a fifth of the memory free.

    Args:
        batch_size: Texts per device and forward pass; a pair is two.
        sequence_length: Tokens of the longest text, `T`.
        hidden_size: Width `D`.
        layers: Number of blocks.
        intermediate_size: FFN width; `None` is `4 D`.
        mixer: A mixer of `HfdDeltaNetConfig`, or `"attention"` (fused, so that no `T x T` matrix is kept).
        memory: A memory of `HfdDeltaNetConfig`; all but `"single"` have two states.
        head_size: Width of a memory head.
        parameters: Number of student weights; `None` counts a BERT-like encoder of these sizes.
        dtype: Autocast type: `"float32"`, `"bfloat16"` or `"float16"`.
        optimizer: One of `"adamw"`, `"adam"`, `"adafactor"`, `"sgd"`, `"sgd_momentum"`.
        activation_checkpointing: Keep only every block's input, and one block's activations at a time.
        teacher_parameters: Weights of a live teacher; 0 with a teacher cache.
        teacher_dtype: The live teacher's type.

    Returns:
        Bytes by part.

    Raises:
        ValueError: If a size is not positive or a name is unknown.

    Example:
        >>> round(estimate_memory(batch_size=256, sequence_length=128).total / GIB, 1)
        4.6
    """
    sizes = {
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "hidden_size": hidden_size,
        "layers": layers,
    }
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    for name, value, known in (
        ("dtype", dtype, _BYTES),
        ("teacher_dtype", teacher_dtype, _BYTES),
        ("optimizer", optimizer, _OPTIMIZER_STATES),
        ("mixer", mixer, _SAVED_WIDTHS),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, but is {value!r}.")
    inner = intermediate_size or 4 * hidden_size
    if parameters is None:
        parameters = encoder_parameters(hidden_size, layers, inner)
    tokens = batch_size * sequence_length
    widths = _SAVED_WIDTHS[mixer] * (1 if memory == "single" else 2)
    layer = tokens * (4 * widths * hidden_size + _BYTES[dtype] * _SAVED_FFN_WIDTHS * inner)
    layer += batch_size * 4 * _STATE_MATRICES * hidden_size * head_size
    boundary = tokens * hidden_size * 4
    blocks = layers * boundary + layer if activation_checkpointing else layers * layer
    if dtype != "float32":
        blocks += _BYTES[dtype] * layers * (4 * hidden_size**2 + 2 * hidden_size * inner)
    return MemoryEstimate(
        parameters=4 * parameters,
        gradients=4 * parameters,
        optimizer=int(4 * parameters * _OPTIMIZER_STATES[optimizer]),
        activations=blocks + boundary,
        teacher=teacher_parameters * _BYTES[teacher_dtype],
    )


def use_all_cores() -> int:
    """Give torch all cores when `accelerate launch` took all but one away.

    Without a CPU config, `accelerate launch` starts a single process with `OMP_NUM_THREADS=1`: on a laptop the run
    then uses one core of many. Call this first in a recipe. It changes nothing in a run of several processes, with a
    GPU, or where the number of threads was chosen (anything but 1); to stay on one core, use `taskset`.

    Returns:
        The number of threads torch uses now.
    """
    import torch

    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by every `accelerate launch`
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if launched and alone and os.environ.get("OMP_NUM_THREADS") == "1" and not torch.cuda.is_available():
        torch.set_num_threads(usable_cores())
    return torch.get_num_threads()


__all__ = [
    "CORE_PACKAGES",
    "GIB",
    "Gpu",
    "Hardware",
    "MemoryEstimate",
    "detect_hardware",
    "encoder_parameters",
    "estimate_memory",
    "package_versions",
    "usable_cores",
    "use_all_cores",
]
