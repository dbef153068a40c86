"""What a quantised tensor is, how a float tensor becomes one, and back. `docs/format.md` is normative for the bytes.

`encode` and `decode` take whole tensors; `encode_block` and `decode_rows` some rows, for tensors larger than memory.
"""

from cellmd.quant.compare import compare
from cellmd.quant.decode import codes_of, decode, decode_rows, scales_of
from cellmd.quant.encode import EncodedBlock, encode, encode_block
from cellmd.quant.error import ErrorStats
from cellmd.quant.schemes import Sizes, coding_problem, groups_of, sizes
from cellmd.quant.tensor import Coding, PackedTensor

__all__ = [
    "Coding",
    "EncodedBlock",
    "ErrorStats",
    "PackedTensor",
    "Sizes",
    "codes_of",
    "coding_problem",
    "compare",
    "decode",
    "decode_rows",
    "encode",
    "encode_block",
    "groups_of",
    "scales_of",
    "sizes",
]
