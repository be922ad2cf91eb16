"""Whose licence binds a student: its weights come from one model, what it learned from another."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_distill.evaluation.training_summary import Origin, TrainingSummary

# Licences that ask for a notice at most, by their names on the Hub.
PERMISSIVE = frozenset(
    """
    afl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 ecl-2.0 etalab-2.0 isc mit ms-pl ncsa odc-by
    openmdw-1.0 pddl postgresql unlicense wtfpl zlib
    """.split()
)
# The others that the Hub knows; anything else must be called "other" there.
RESTRICTED = frozenset(
    """
    agpl-3.0 apple-amlr apple-ascl bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m c-uda cc
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-sharing-1.0 creativeml-openrail-m
    deepfloyd-if-license epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0
    gpl-3.0 grok2-community h-research intel-research lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 lppl-1.3c mpl-2.0 odbl ofl-1.1 openrail openrail++ osl-3.0
    """.split()
)
UNDECIDED = frozenset({"other", "unknown"})


@dataclass
class Licence:
    """What the card says about the licence.

    Args:
        id (`str`): its name on the Hub; `"other"` for one that the Hub does not know, `"unknown"` where it is open.
        name (`str`, *optional*): the name of an `"other"` licence.
        warnings (`list[str]`): what a reader must clear before using or publishing the student.
    """

    id: str
    name: str | None = None
    warnings: list[str] = field(default_factory=list)


def inherit_licence(training: TrainingSummary | None) -> Licence:
    """Decide the licence of a student.

    The weights' licence comes first: a student that starts from a model is a derivative of it. The teacher's answers
    are what it learned, and some licences bind those too; the strictest of the two is taken.

    Args:
        training (`TrainingSummary`, *optional*): where weights and teaching came from.

    Returns:
        `Licence`: `"unknown"` as soon as one of the two is not known.
    """
    if training is None:
        return Licence("unknown", None, ["Where the weights come from was not recorded, so their licence is unknown."])
    origins = [(training.init_from, "its weights started from"), (training.teacher, "it learned from")]
    known = [(origin, how) for origin, how in origins if origin is not None]
    if len(known) == 2 and known[0][0].name == known[1][0].name:
        known = [(known[0][0], "its weights started from, and it learned from,")]
    warnings = [warning for origin, how in known if (warning := _warning(origin, how))]
    chosen = max((origin for origin, _ in known), key=_strictness).license  # of equally strict ones the weights'
    if chosen is None or chosen in UNDECIDED:
        return Licence("unknown", None, warnings)
    if chosen not in PERMISSIVE | RESTRICTED:
        return Licence("other", chosen, warnings)
    return Licence(chosen, None, warnings)


def _strictness(origin: Origin) -> int:
    """Order licences: permissive, restricted, not known."""
    if origin.license is None or origin.license in UNDECIDED:
        return 2
    return 0 if origin.license in PERMISSIVE else 1


def _warning(origin: Origin, how: str) -> str:
    """Say what a licence asks for; empty where it asks for a notice at most."""
    strictness = _strictness(origin)
    if strictness == 2:
        return (
            f"The licence of `{origin.name}`, which {how}, is not known. Find it out before you use or publish this "
            "model."
        )
    if strictness == 0:
        return ""
    parts = (origin.license or "").split("-")
    binds = "forbids commercial use" if {"nc", "noncommercial"} & set(parts) else "sets conditions"
    return (
        f"`{origin.name}`, which {how}, is licensed under `{origin.license}`, which {binds}: it binds this model too."
    )


__all__ = ["PERMISSIVE", "RESTRICTED", "UNDECIDED", "Licence", "inherit_licence"]
