"""hf_distill: distil students from teachers inside the Hugging Face stack.

The public names below are imported on first use (PEP 562), so `import hf_distill` costs milliseconds: torch,
transformers, sentence-transformers and the rest of the stack are loaded by the first name that needs them.

Example:
    ```python
    from hf_distill import EmbeddingDistillConfig, EmbeddingDistillTrainer, TeacherCache
    ```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_distill.models.deltanet.configuration_deltanet import HfdDeltaNetConfig
    from hf_distill.models.deltanet.modeling_deltanet import HfdDeltaNetModel
    from hf_distill.teachers.cached import TeacherCache
    from hf_distill.teachers.ensemble import TeacherEnsemble
    from hf_distill.teachers.live import LiveTeacher
    from hf_distill.teachers.writer import write_cache
    from hf_distill.trainers.alignment import MixerAlignmentTrainer
    from hf_distill.trainers.embedding import EmbeddingDistillTrainer
    from hf_distill.trainers.embedding_config import EmbeddingDistillConfig
    from hf_distill.trainers.objective import DistillObjective

# public name -> the module that defines it; tests/test_imports.py keeps it equal to the block above
_MODULE_OF = {
    "DistillObjective": "hf_distill.trainers.objective",
    "EmbeddingDistillConfig": "hf_distill.trainers.embedding_config",
    "EmbeddingDistillTrainer": "hf_distill.trainers.embedding",
    "HfdDeltaNetConfig": "hf_distill.models.deltanet.configuration_deltanet",
    "HfdDeltaNetModel": "hf_distill.models.deltanet.modeling_deltanet",
    "LiveTeacher": "hf_distill.teachers.live",
    "MixerAlignmentTrainer": "hf_distill.trainers.alignment",
    "TeacherCache": "hf_distill.teachers.cached",
    "TeacherEnsemble": "hf_distill.teachers.ensemble",
    "write_cache": "hf_distill.teachers.writer",
}

__all__ = [
    "DistillObjective",
    "EmbeddingDistillConfig",
    "EmbeddingDistillTrainer",
    "HfdDeltaNetConfig",
    "HfdDeltaNetModel",
    "LiveTeacher",
    "MixerAlignmentTrainer",
    "TeacherCache",
    "TeacherEnsemble",
    "__version__",
    "write_cache",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines public name `name` and return the name."""
    if name not in _MODULE_OF:
        raise AttributeError(
            f"module 'hf_distill' has no attribute {name!r}; it offers {', '.join(sorted(_MODULE_OF))}"
        )
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy public names too, for tab completion."""
    return sorted({*globals(), *__all__})
