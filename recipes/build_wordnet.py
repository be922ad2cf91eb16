"""Remake the packaged WordNet file, byte for byte, from an unpacked WordNet 3.0 database folder.

    python recipes/build_wordnet.py FOLDER [--output FILE]      # FOLDER holds data.noun, data.verb, data.adj, data.adv

The result is one xz-compressed UTF-8 table of tab-separated columns, a synset a line, in the order of the database
(nouns, verbs, adjectives, adverbs):

    lexname    lemmas joined by "|"    parent    definition    examples joined by "|"

`parent` says how many lines back (or, negative, ahead) the parent stands, 0 for none: the first hypernym of a noun or
verb, the head of a satellite adjective, the adjective that an adverb derives from. Whoever has the WordNet 3.0 files
(Debian: `apt-get download wordnet-base`) can check that the shipped file is exactly this and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
from pathlib import Path

from hf_distill.data.wordnet import WORDNET_FILE

# The lexicographer files of lexnames(5WN), in the order of their numbers.
LEXNAMES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute noun.body noun.cognition "
    "noun.communication noun.event noun.feeling noun.food noun.group noun.location noun.motive noun.object "
    "noun.person noun.phenomenon noun.plant noun.possession noun.process noun.quantity noun.relation noun.shape "
    "noun.state noun.substance noun.time verb.body verb.change verb.cognition verb.communication verb.competition "
    "verb.consumption verb.contact verb.creation verb.emotion verb.motion verb.perception verb.possession "
    "verb.social verb.stative verb.weather adj.ppl"
).split()
# Pointer symbols (wninput(5WN)) that lead to the parent, and the letter of the part of speech they must lead to.
PARENT_POINTERS = {"noun": ("@ @i", "n"), "verb": ("@", "v"), "adj": ("&", "a"), "adv": ("\\", "a")}
# A full filter chain, so that the bytes do not depend on what a preset means in some other version of liblzma.
FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 25,
        "lc": 4,
        "lp": 0,
        "pb": 0,
        "mode": lzma.MODE_NORMAL,
        "nice_len": 273,
        "mf": lzma.MF_BT4,
        "depth": 1000,
    }
]


def split_gloss(gloss: str) -> tuple[str, list[str]]:
    """Split a gloss into its definition and its quoted examples."""
    definition, quote, quoted = gloss.partition('"')
    definition = " ".join(definition.split()).strip(" ;:,")
    definition = re.sub(r"[;,] e\.g\.$", "", definition)
    if quoted.count('"') % 2:  # with the opening quote cut off: balanced
        examples = re.findall(r'"([^"]+)"', quote + quoted)
    else:  # twenty glosses have a quote too few
        examples = [part.replace('"', "") for part in quoted.split(";")]
    return definition, [clean for clean in (" ".join(e.split()).strip(" ;,`'") for e in examples) if clean]


def parse_line(line: str, part_of_speech: str) -> tuple[str, str, list[str], tuple[str, str] | None, str]:
    """Read a line of a data file (wndb(5WN)): offset, lexname, lemmas, the parent's (letter, offset), gloss."""
    fields, gloss = line.rstrip().split(" | ", 1)
    parts = fields.split()
    num_words = int(parts[3], 16)
    words = parts[4 : 4 + 2 * num_words : 2]
    lemmas = [re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in words]
    pointers = parts[5 + 2 * num_words :]
    symbols, letter = PARENT_POINTERS[part_of_speech]
    parent = None
    if part_of_speech != "adj" or parts[2] == "s":
        for i in range(0, 4 * int(parts[4 + 2 * num_words]), 4):
            if pointers[i] in symbols.split() and pointers[i + 2] == letter:
                parent = (letter, pointers[i + 1])
                break
    return parts[0], LEXNAMES[int(parts[1])], lemmas, parent, gloss


def build_table(folder: Path) -> str:
    """Read the four data files of `folder` into the table, in the order of the database."""
    synsets, index = [], {}
    for part_of_speech, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        path = folder / f"data.{part_of_speech}"
        if not path.is_file():
            raise SystemExit(f"{path} is missing: give the folder that holds WordNet 3.0's data.* files.")
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence, which every data file opens with
                continue
            synset = parse_line(line, part_of_speech)
            index[letter, synset[0]] = len(synsets)
            synsets.append(synset)
    rows = []
    for number, (_, lexname, lemmas, parent, gloss) in enumerate(synsets):
        back = number - index[parent] if parent else 0
        definition, examples = split_gloss(gloss)
        rows.append("\t".join([lexname, "|".join(lemmas), str(back), definition, "|".join(examples)]))
    return "\n".join(rows) + "\n"


def main(folder: Path, output: Path) -> str:
    """Write the compressed table and return its SHA-256."""
    data = lzma.compress(build_table(folder).encode("utf-8"), check=lzma.CHECK_CRC64, filters=FILTERS)
    output.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with WordNet's data.noun, data.verb, data.adj, data.adv")
    parser.add_argument("--output", type=Path, default=WORDNET_FILE, help="the file to write")
    arguments = parser.parse_args()
    print(main(arguments.folder, arguments.output), arguments.output)
