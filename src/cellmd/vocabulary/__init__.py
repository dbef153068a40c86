"""The compiled tokenizer: `compile_vocabulary` makes a table from a tokenizer.json, `Vocabulary` reads it in place.

pipeline.py    what surrounds the merges: read, and refused by name where it is not reproduced
layout.py      the bytes of the table
compile.py     tokenizer.json -> table
table.py       the table, checked and looked things up in
added.py       special tokens found in text
bpe.py         the merges
vocabulary.py  encode, decode
"""

from cellmd.vocabulary.compile import compile_vocabulary
from cellmd.vocabulary.vocabulary import Vocabulary

VOCABULARY_ASSET = "vocabulary.bin"
"""Under which name a .cellmd file holds the table, in place of tokenizer.json."""

__all__ = ["VOCABULARY_ASSET", "Vocabulary", "compile_vocabulary"]
