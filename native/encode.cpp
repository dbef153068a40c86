#include "encode.h"

#include <cstring>
#include <vector>

#include "matrix.h"

namespace cellmd {
namespace {

int64_t padded(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t groups_of(const EncodeArgs& a) { return (a.k + a.group - 1) / a.group; }
int64_t row_bytes(const EncodeArgs& a) {
    if (a.tiled) return padded(a.k, a.int4 ? 8 : 4) / (a.int4 ? 8 : 4) * 4;
    return a.int4 ? (a.k + 1) / 2 : a.k;
}

// Eight codes of -8..7 as nibbles, each value + 8, in bytes of their own.
uint64_t nibbles_of(const int8_t* codes) {
    uint64_t eight;
    std::memcpy(&eight, codes, 8);
    return (eight & 0x0F0F0F0F0F0F0F0Full) ^ 0x0808080808080808ull;
}
// Column j in the low nibble of byte j, column j + 4 in its high one.
uint32_t tile_word(const int8_t* codes) {
    const uint64_t eight = nibbles_of(codes);
    return static_cast<uint32_t>(eight | (eight >> 28));
}
// Columns 2j and 2j + 1 in byte j.
uint32_t row_word(const int8_t* codes) {
    uint64_t pairs = nibbles_of(codes);
    pairs = (pairs | (pairs >> 4)) & 0x00FF00FF00FF00FFull;
    pairs = (pairs | (pairs >> 8)) & 0x0000FFFF0000FFFFull;
    return static_cast<uint32_t>(pairs | (pairs >> 16));
}

// codes: as many as rows have here, zeros beyond k. The words of a row in a tile lie 16 words apart.
void pack_tiled(const EncodeArgs& a, const int8_t* codes, uint8_t* out) {
    const int64_t words = row_bytes(a) / 4;
    for (int64_t i = 0; i < words; i++) {
        uint32_t word;
        if (a.int4)
            word = tile_word(codes + 8 * i);
        else
            std::memcpy(&word, codes + 4 * i, 4);
        std::memcpy(out + i * 4 * kTileRows, &word, 4);
    }
}
void pack_row(const EncodeArgs& a, const int8_t* codes, uint8_t* out) {
    const int64_t bytes = row_bytes(a);
    if (!a.int4) {
        std::memcpy(out, codes, static_cast<size_t>(bytes));
        return;
    }
    for (int64_t i = 0; i < bytes; i += 4) {
        const uint32_t word = row_word(codes + 2 * i);
        std::memcpy(out + i, &word, static_cast<size_t>(bytes - i < 4 ? bytes - i : 4));
    }
}

// Rows that fill up the last tile: weights of 0, scales of 0.
void pad_tile(const EncodeArgs& a, int64_t first, int64_t groups) {
    const int64_t width = scale_bytes(a.scale_type), words = row_bytes(a) / 4;
    for (int64_t row = first; row < padded(first, kTileRows); row++) {
        const int64_t tile = row / kTileRows, within = row % kTileRows;
        uint8_t* data = a.data + (tile * words * kTileRows + within) * 4;
        uint8_t* scales = static_cast<uint8_t*>(a.scales) + (tile * groups * kTileRows + within) * width;
        for (int64_t i = 0; i < words; i++) std::memset(data + i * 4 * kTileRows, a.int4 ? 0x88 : 0, 4);
        for (int64_t g = 0; g < groups; g++) std::memset(scales + g * kTileRows * width, 0, static_cast<size_t>(width));
        if (a.row_factors) a.row_factors[row] = 0.0f;
    }
}

}  // namespace

EncodedSizes encoded_sizes(const EncodeArgs& a) {
    const int64_t rows = a.tiled ? padded(a.n, kTileRows) : a.n;
    return {.data = rows * row_bytes(a),
            .scales = rows * groups_of(a) * scale_bytes(a.scale_type),
            .row_factors = a.scale_type == ScaleType::Factored ? rows * 4 : 0};
}

EncodeSums encode_rows(const KernelTable& kernels, const EncodeArgs& a) {
    const int64_t groups = groups_of(a), width = scale_bytes(a.scale_type), bytes = row_bytes(a);
    const size_t columns = static_cast<size_t>(groups * padded(a.group, 16));
    std::vector<float> weights(columns), scales(static_cast<size_t>(groups));
    std::vector<EncodeExtremes> extremes(static_cast<size_t>(groups));
    std::vector<int8_t> codes(columns);
    EncodeSums sums;
    for (int64_t row = 0; row < a.n; row++) {
        const int64_t tile = row / kTileRows, within = row % kTileRows;
        const int64_t scale_place = a.tiled ? tile * groups * kTileRows + within : row * groups;
        kernels.encode_row({.row = static_cast<const uint8_t*>(a.rows) + row * a.k * (a.bfloat ? 2 : 4),
                            .bfloat = a.bfloat,
                            .k = static_cast<int>(a.k),
                            .group = a.group,
                            .groups = static_cast<int>(groups),
                            .int4 = a.int4,
                            .shrinks = a.shrinks,
                            .n_shrinks = a.n_shrinks,
                            .scale_type = a.scale_type,
                            .weights = weights.data(),
                            .extremes = extremes.data(),
                            .scales = scales.data(),
                            .codes = codes.data(),
                            .stored = static_cast<uint8_t*>(a.scales) + scale_place * width,
                            .stored_stride = static_cast<size_t>(a.tiled ? kTileRows : 1),
                            .row_factor = a.row_factors ? a.row_factors + row : nullptr},
                           sums);
        if (!sums.finite) return sums;
        if (a.tiled)
            pack_tiled(a, codes.data(), a.data + (tile * bytes / 4 * kTileRows + within) * 4);
        else
            pack_row(a, codes.data(), a.data + row * bytes);
    }
    if (a.tiled) pad_tile(a, a.n, groups);
    return sums;
}

}  // namespace cellmd
