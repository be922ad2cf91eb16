"""The papers behind the loss terms and the mixers, so that every card cites what it used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_distill.evaluation.training_summary import TrainingSummary


@dataclass(frozen=True)
class Paper:
    """A publication.

    Args:
        key (`str`): its key in BibTeX.
        title (`str`): its title.
        authors (`str`): `"Last, First and Last, First"`, as BibTeX has it.
        year (`int`): its year.
        arxiv (`str`, *optional*): its number on arXiv.
        url (`str`, *optional*): where it is, if not on arXiv.
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str = ""
    url: str = ""

    @property
    def link(self) -> str:
        """Where to read it; a paper of arXiv on the Hub, which then lists the model beside it."""
        return f"https://huggingface.co/papers/{self.arxiv}" if self.arxiv else self.url

    @property
    def short(self) -> str:
        """First author and year."""
        people = self.authors.split(" and ")
        names = [person.partition(",")[0] for person in people]
        who = names[0] if len(names) == 1 else " & ".join(names) if len(names) == 2 else f"{names[0]} et al."
        return f"{who} {self.year}"

    @property
    def bibtex(self) -> str:
        """Its entry for a bibliography."""
        fields = {"title": self.title, "author": self.authors, "year": str(self.year)}
        fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"} if self.arxiv else {"url": self.url}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@misc{{{self.key},\n{lines}\n}}"


_DISTILLATION = Paper(
    "hinton2015distilling",
    "Distilling the Knowledge in a Neural Network",
    "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
    2015,
    "1503.02531",
)
_EMBEDDINGS = Paper(
    "reimers2020making",
    "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation",
    "Reimers, Nils and Gurevych, Iryna",
    2020,
    "2004.09813",
)
_RKD = Paper(
    "park2019relational",
    "Relational Knowledge Distillation",
    "Park, Wonpyo and Kim, Dongju and Lu, Yan and Cho, Minsu",
    2019,
    "1904.05068",
)
_TERMS = {
    "contrastive": Paper(
        "henderson2017efficient",
        "Efficient Natural Language Response Suggestion for Smart Reply",
        "Henderson, Matthew and Al-Rfou, Rami and Strope, Brian and others",
        2017,
        "1705.00652",
    ),
    "cosine": _EMBEDDINGS,
    "l2": Paper(
        "kim2023embeddistill",
        "EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval",
        "Kim, Seungyeon and Rawat, Ankit Singh and Zaheer, Manzil and others",
        2023,
        "2301.12005",
    ),
    "hidden": Paper(
        "jiao2020tinybert",
        "TinyBERT: Distilling BERT for Natural Language Understanding",
        "Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and others",
        2020,
        "1909.10351",
    ),
    "gram": Paper(
        "tung2019similarity",
        "Similarity-Preserving Knowledge Distillation",
        "Tung, Frederick and Mori, Greg",
        2019,
        "1907.09682",
    ),
    "rkd_distance": _RKD,
    "rkd_angle": _RKD,
    "spearman": Paper(
        "blondel2020fast",
        "Fast Differentiable Sorting and Ranking",
        "Blondel, Mathieu and Teboul, Olivier and Berthet, Quentin and Djolonga, Josip",
        2020,
        "2002.08871",
    ),
    "ranking": Paper(
        "burges2005learning",
        "Learning to Rank using Gradient Descent",
        "Burges, Chris and Shaked, Tal and Renshaw, Erin and others",
        2005,
        url="https://doi.org/10.1145/1102351.1102363",
    ),
    "orthogonality": Paper(
        "bansal2018gain",
        "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?",
        "Bansal, Nitin and Chen, Xiaohan and Wang, Zhangyang",
        2018,
        "1810.09102",
    ),
}
_DELTA = Paper(
    "yang2024parallelizing",
    "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
    "Yang, Songlin and Wang, Bailin and Zhang, Yu and Shen, Yikang and Kim, Yoon",
    2024,
    "2406.06484",
)
_MESA = Paper(
    "vonoswald2025mesanet",
    "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training",
    "von Oswald, Johannes and Scherrer, Nino and Kobayashi, Seijin and others",
    2025,
    "2506.05233",
)
_LOCAL = Paper(
    "wu2019pay",
    "Pay Less Attention with Lightweight and Dynamic Convolutions",
    "Wu, Felix and Fan, Angela and Baevski, Alexei and Dauphin, Yann and Auli, Michael",
    2019,
    "1901.10430",
)
_LAYERS = Paper(
    "sajjad2020effect",
    "On the Effect of Dropping Layers of Pre-trained Transformer Models",
    "Sajjad, Hassan and Dalvi, Fahim and Durrani, Nadir and Nakov, Preslav",
    2020,
    "2004.03844",
)
_STATIC = Paper(
    "minishlab2024model2vec",
    "Model2Vec: Fast State-of-the-Art Static Embeddings",
    "Tulkens, Stephan and van Dongen, Thomas",
    2024,
    url="https://github.com/MinishLab/model2vec",
)
_SBERT = Paper(
    "reimers2019sentence",
    "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
    "Reimers, Nils and Gurevych, Iryna",
    2019,
    "1908.10084",
)


def paper_of_term(term: str) -> Paper | None:
    """Find the paper of a loss term.

    Args:
        term (`str`): `"cosine"` for instance.

    Returns:
        `Paper` or `None`: None for a term of this project's own.
    """
    return _TERMS.get(term)


def papers_of(training: TrainingSummary | None) -> list[Paper]:
    """List what a student must cite: distillation, its own architecture, its loss terms.

    Args:
        training (`TrainingSummary`, *optional*): what was used.

    Returns:
        `list[Paper]`: each once.
    """
    if training is None:
        return [_DISTILLATION, _SBERT]
    papers = [_DISTILLATION, _SBERT, *_architecture(training.student, training.settings)]
    papers += [paper for term in training.losses if (paper := paper_of_term(term))]
    return list(dict.fromkeys(papers))


def _architecture(student: str, settings: dict[str, Any]) -> list[Paper]:
    """List the papers behind a kind of student."""
    if student != "deltanet":
        return [{"layers": _LAYERS, "static": _STATIC}[student]] if student in ("layers", "static") else []
    mixer = [_MESA] if settings.get("mixer") == "ridge" else [_DELTA]
    return mixer + ([_LOCAL] if settings.get("local_size") else [])


__all__ = ["Paper", "paper_of_term", "papers_of"]
