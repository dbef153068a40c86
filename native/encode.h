// Weights to int4 and int8 with the scales of their groups, a block of rows at a time.
#pragma once

#include "kernels.h"

namespace cellmd {

constexpr int64_t kMaxEncodedColumns = int64_t{1} << 24;

// Rows x columns of weights, and where what is stored of them goes (docs/format.md); the buffers are checked.
struct EncodeArgs {
    const void* rows;
    bool bfloat;  // else float32
    int64_t n, k;
    bool int4, tiled;
    int group;  // columns that share a scale; k for a whole row
    ScaleType scale_type;
    const float* shrinks;  // parts of the widest scale that are tried, see EncodeRowArgs
    int n_shrinks;
    uint8_t* data;
    void* scales;
    float* row_factors;  // ScaleType::Factored
};

struct EncodedSizes {
    int64_t data, scales, row_factors;  // bytes
};
EncodedSizes encoded_sizes(const EncodeArgs&);

// Encodes the block on the calling thread. Stops at the first row that is not finite.
EncodeSums encode_rows(const KernelTable&, const EncodeArgs&);

}  // namespace cellmd
