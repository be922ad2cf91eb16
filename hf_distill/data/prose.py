"""Longer prose that every installation has: docstrings, read as text and cleaned to sentences.

* `installed_docstrings`, for TRAINING: the docstrings of the scientific packages that this one depends on.
* `stdlib_passages`, for EVALUATION ONLY: Python's own help topics and the standard library's docstrings.

Packages copy code from the standard library now and then, so whatever overlaps with an evaluation passage is dropped
from the training prose (`hf_distill.data.overlap`). Files are parsed, never imported.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from transformers.utils import logging

from hf_distill.data.length import estimate_tokens
from hf_distill.data.overlap import SPLITS, OverlapIndex, normalize_text, split_by_hash

logger = logging.get_logger(__name__)

# What pip installs with us, the best prose first.
PACKAGES = (
    "scipy numpy sklearn pandas networkx sympy matplotlib torch transformers datasets accelerate sentence_transformers "
    "huggingface_hub peft trl joblib pyarrow fsspec pydantic rich jinja2 aiohttp polars safetensors tokenizers"
).split()
_SKIPPED_FOLDERS = frozenset(
    "test tests testing _testing idlelib lib2to3 turtledemo encodings pydoc_data ensurepip site-packages dist-packages "
    "__pycache__ _vendor vendor vendored externals extern _external _examples".split()
)
_MIN_TOKENS, _MAX_TOKENS = 20, 250
_DOCUMENTED = 0.25  # share of a file that must be docstrings
# Share of 20-32, 33-128 and 129-250 tokens among the lengths that chunks aim at.
_TARGETS = ((20, 32, 0.2), (33, 128, 0.4), (129, _MAX_TOKENS, 0.4))

_SKIPPED_SECTIONS = frozenset(
    "references|examples|example|see also|attributes|methods|usage|usage example|copyright|citation|bibliography|"
    "doctest|doctests|implementation notes|external links".split("|")
)
_TITLE = r"([A-Z][A-Za-z]+(?: [A-Za-z]+){0,2})(?:\*\*)?"
_SECTION = re.compile(rf"^(?:#+ |\*\*)?{_TITLE}::?$|^(?:\.\. rubric:: |#+ |\*\*){_TITLE}$")
_UNDERLINE = re.compile(r"^[=\-~^\"'*+#]{3,}$")
_ITEM_HEAD = re.compile(r"^\*{0,2}[`\w][\w.`]*(?:, ?\*{0,2}[\w.`]+)* ?:(?: [^.]*)?$")  # numpy: "name : type"
_ITEM_START = re.compile(
    r"^(?:[-*+] |\d+[.)] )?\*{0,2}`?[\w.]+`?\*{0,2} ?(?:\([^()]*(?:\([^()]*\)[^()]*)*\))?: (?=\S)"
)
_BULLET = re.compile(r"^(?:[-*+•] |\(?\d+[.)] |[a-z]\) )")
_FIELD = re.compile(r"^[:@][a-z]+[^:]*:\s*")
_NOTE = re.compile(r"\.\. (?:note|warning|important|tip|seealso|caution)::")
_SOLID = re.compile(r"^(?:>>>|\.\.\.|\$ |In \[)|^[|+].*[|+]$|^[=\-]+(?: +[=\-]+)+$")
_INLINE = (
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](link)
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}"), r"\1"),  # `text <link>`_
    (re.compile(r":[a-zA-Z:+-]+:`~?(?:[^`]*\.)?([^`.]+)`"), r"\1"),  # :role:`~module.name`
    (re.compile(r"\s*\[#?\w{1,12}\]_"), ""),  # citations
    (re.compile(r"(?<!\w)\[`?~?([^\]`]+)`?\](?!\w)"), r"\1"),
    (re.compile(r"<[^<>]{1,80}>"), ""),
    (re.compile(r"https?://\S+"), ""),
    (re.compile(r"``?|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|`_{0,2}"), ""),
    (re.compile(r"(?<=\w)_(?=\s|$)"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r" ([.,;:)])"), r"\1"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"'])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|resp|Fig|Eq|Sec|Ref|approx|al|etc)|\b[A-Z])\.$")
_LETTERS = re.compile(r"[^\W\d_]+|\s+")
_COMMON = frozenset("the a an of to is are in and for be that with as by it this or not on if from can which".split())


class Passage(NamedTuple):
    """A piece of reference prose with what is needed to make tasks of it.

    Args:
        label (`str`): the standard library's module (`"asyncio"`) or the help topic (`"topic:assignment"`).
        title (`str`): qualified name of what is described, or the topic.
        summary (`str`): the first sentence.
        body (`str`): the sentences after it, 20 to 250 tokens.
    """

    label: str
    title: str
    summary: str
    body: str


def _without_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Blank the lines of code fences, doctests, literal blocks, tables and directives (notes keep their text)."""
    fenced = solid = False  # solid: in a doctest or a table, to the next blank line
    deeper = -1  # inside a block whose lines are indented deeper than this
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        fence = text.startswith(("```", "~~~"))
        fenced = fenced != fence
        if text and indent <= deeper:
            deeper = -1
        solid = bool(text) and (solid or bool(_SOLID.match(text)))
        if fence or fenced or solid or deeper >= 0:
            yield ""
        elif text.startswith(".. ") and not text.startswith(".. rubric::"):
            deeper = -1 if _NOTE.match(text) else indent
            yield ""
        elif text.endswith("::"):
            deeper = indent
            yield line[:-1]
        else:
            yield line


def _without_sections(lines: list[str]) -> Iterator[str]:
    """Blank headings, and with them the sections that hold no prose, such as Examples and References."""
    skipped = False
    for line, following in zip(lines, [*lines, ""][1:], strict=True):
        text = line.strip()
        heading = _SECTION.match(text)
        title = text if text and _UNDERLINE.match(following.strip()) else None
        if heading:
            title = heading[1] or heading[2]
        if title is not None:
            skipped = title.strip(" :").lower() in _SKIPPED_SECTIONS
        yield "" if skipped or title is not None or _UNDERLINE.match(text) else line


def _paragraphs(doc: str) -> Iterator[str]:
    """Cut a docstring into paragraphs of running text; every item of a list and every argument is one."""
    lines = list(_without_sections(list(_without_blocks(doc.expandtabs().splitlines()))))
    indents = [len(line) - len(line.lstrip()) for line in lines]
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""]):
        text = line.strip()
        starts = any(pattern.match(text) for pattern in (_BULLET, _ITEM_START, _FIELD))
        if paragraph and (not text or starts or abs(indents[number] - indents[number - 1]) > 1):
            yield " ".join(paragraph)
            paragraph = []
        if not text:
            continue
        if not paragraph:
            if _ITEM_HEAD.match(text) and indents[number] < max(indents[number + 1 : number + 2], default=0):
                continue
            for pattern in (_FIELD, _ITEM_START, _BULLET):
                text = pattern.sub("", text, count=1)
        paragraph.append(text)


def _is_prose(sentence: str) -> bool:
    """Tell whether a sentence reads as English: enough words, mostly letters, some common words, a proper end."""
    words = sentence.split()
    if len(words) < 5 or len(words) > 120 or sentence[-1] not in ".!?:":
        return False
    letters = sum(map(len, _LETTERS.findall(sentence)))
    plain = sum(word.lower() in _COMMON for word in words)
    return (
        letters > 0.86 * len(sentence) and plain >= max(1, len(words) // 9) and not re.search(r"[\\{}=]{2}", sentence)
    )


def clean_docstring(doc: str) -> list[str]:
    """Reduce a docstring to its sentences of prose.

    Args:
        doc (`str`): a docstring in reStructuredText (numpy's or Google's layout) or Markdown.

    Returns:
        `list[str]`: the sentences in their order, without markup, code, doctests, tables, headings and references.
    """
    sentences = []
    for paragraph in _paragraphs(doc):
        for pattern, replacement in _INLINE:
            paragraph = pattern.sub(replacement, paragraph)
        start = ""
        for part in _SENTENCE_END.split(paragraph.strip()):
            part = f"{start} {part}".strip()
            start = part if _ABBREVIATION.search(part) else ""
            if not start and _is_prose(part):
                sentences.append(part[:1].upper() + part[1:])
    return sentences


def _read_source(path: Path) -> str:
    """Read a Python file; nothing where it is not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        logger.debug("%s is left out: %s", path, error)
        return ""


def _docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name inside the module, docstring) of a file's source; nothing where it does not parse."""
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's strings are not our user's business
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # templates, and files for other versions of Python
        logger.debug("A file is left out: %s", error)
        return
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        doc = ast.get_docstring(node)
        if doc:
            yield name, doc
        for child in reversed(node.body):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                stack.append((f"{name}.{child.name}".lstrip("."), child))


def _python_files(folder: Path) -> list[Path]:
    """List the Python files below a folder in a fixed order, without tests and vendored code."""
    files = [(path.relative_to(folder).parts, path) for path in folder.rglob("*.py")]
    return [path for parts, path in sorted(files) if not _SKIPPED_FOLDERS.intersection(parts)]


def _chunks(sentences: Iterable[str], rng: random.Random) -> Iterator[str]:
    """Join consecutive sentences to chunks of 20 to 250 tokens, each aiming at a length of its own."""
    chunk: list[str] = []
    length, target = 0, 0
    for sentence in sentences:
        cost = estimate_tokens(sentence)
        if chunk and (length >= target or length + cost > _MAX_TOKENS):
            if length >= _MIN_TOKENS:
                yield " ".join(chunk)
            chunk, length = [], 0
        if not chunk:
            low, high, _ = rng.choices(_TARGETS, weights=[share for *_, share in _TARGETS])[0]
            target = rng.randint(low, high)
        if cost <= _MAX_TOKENS:
            chunk.append(sentence)
            length += cost
    if length >= _MIN_TOKENS:
        yield " ".join(chunk)


@lru_cache(maxsize=2)  # one reading serves the training and the held-out split
def _read_packages(names: tuple[str, ...], seed: int, megabytes: float) -> list[tuple[str, str]]:
    """Read the packages' docstrings into (split, text), shuffled."""
    rng = random.Random(f"installed_docstrings {seed}")
    seen: set[str] = set()
    texts: list[tuple[str, str]] = []
    found = False
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            logger.debug("Package %s is not installed: its docstrings are passed over.", name)
            continue
        found = True
        folder = Path(next(iter(spec.submodule_search_locations)))
        files = _python_files(folder)
        rng.shuffle(files)
        budget = megabytes * 1e6
        for path in files:
            source = _read_source(path)
            documented = sum(map(len, source.split('"""')[1::2]))
            if documented < _DOCUMENTED * len(source):  # parsing it would cost more than it gives
                continue
            budget -= len(source)
            if budget < 0:
                break
            split = split_by_hash(f"{name} {path.relative_to(folder).as_posix()}")
            texts.extend((split, text) for text in _chunks(_new_sentences(source, seen), rng))
    if not found:
        raise ValueError(
            f"None of these packages is installed: {', '.join(names)}. Name installed ones in `packages`."
        )
    index = OverlapIndex(f"{passage.summary} {passage.body}" for passage in stdlib_passages())
    texts = [(split, text) for split, text in texts if index.find(text) is None]
    rng.shuffle(texts)
    return texts


def installed_docstrings(
    packages: Iterable[str] = PACKAGES,
    split: str = "train",
    limit: int | None = None,
    seed: int = 42,
    megabytes: float = 5.0,
) -> list[str]:
    """Make training prose of 20 to 256 tokens from the docstrings of installed packages.

    The same installation gives the same texts; other versions of the packages give others. Nothing of it overlaps
    with `stdlib_passages`. Takes some 15 seconds of one core.

    Args:
        packages (`Iterable[str]`, *optional*): import names; those that are not installed are passed over.
        split (`str`, *optional*, defaults to `"train"`): `"train"`, or the held-out `"validation"` or `"test"`: 1.5 %
            of the files each, by a hash of the path. No sentence stands in two splits.
        limit (`int`, *optional*): at most so many texts; all if not given.
        seed (`int`, *optional*, defaults to 42): of the files read, of the lengths and of the order.
        megabytes (`float`, *optional*, defaults to 5): source text read from each package, so that a big package
            neither takes minutes nor drowns the others.

    Returns:
        `list[str]`: distinct texts, shuffled; each is consecutive sentences of one file, none used twice.

    Raises:
        ValueError: an unknown split, or none of the packages is installed.
    """
    if split not in SPLITS:
        raise ValueError(f"Docstrings have no split {split!r}: choose one of {', '.join(SPLITS)}.")
    texts = [text for home, text in _read_packages(tuple(packages), seed, megabytes) if home == split]
    return texts[:limit]


def _new_sentences(source: str, seen: set[str]) -> Iterator[str]:
    """Yield the sentences of a file's docstrings that have not been seen before, and note them in `seen`."""
    for _, doc in _docstrings(source):
        for sentence in clean_docstring(doc):
            key = normalize_text(sentence)
            if key not in seen:
                seen.add(key)
                yield sentence


def _passage(label: str, title: str, sentences: list[str], seen: set[str]) -> Passage | None:
    """Make a passage of the sentences, cut at 250 tokens; None where it is too short or nothing new."""
    if len(sentences) < 2:
        return None
    summary, body, length = sentences[0], [], 0
    for sentence in sentences[1:]:
        cost = estimate_tokens(sentence)
        if length + cost > _MAX_TOKENS:
            break
        body.append(sentence)
        length += cost
    text = " ".join(body)
    query, answer = normalize_text(summary), normalize_text(text)
    if length < _MIN_TOKENS or query in answer or {query, answer} & seen:
        return None
    seen |= {query, answer}
    return Passage(label, title, summary, text)


@lru_cache(maxsize=1)
def stdlib_passages() -> list[Passage]:
    """Collect reference prose from Python itself, for EVALUATION ONLY: nothing of it may be trained on.

    Sources are `pydoc_data.topics` (the language reference, several passages a topic) and the docstrings of the
    standard library's modules, classes and functions. The set depends on the version of Python.

    Returns:
        `list[Passage]`: passages in a fixed order (kept and shared: do not change it), no two with the same summary or the same body.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    passages: list[Passage | None] = []
    for topic in sorted(topics):
        sentences = clean_docstring(topics[topic])
        while sentences:
            length = count = 0
            while count < len(sentences) and length < 160:
                length += estimate_tokens(sentences[count])
                count += 1
            passages.append(_passage(f"topic:{topic}", topic, sentences[:count], seen))
            sentences = sentences[count:]
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in _python_files(folder):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name, doc in _docstrings(_read_source(path)):
            title = f"{module}.{name}".rstrip(".")
            passages.append(_passage(parts[0], title, clean_docstring(doc), seen))
    return [passage for passage in passages if passage is not None]
