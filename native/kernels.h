// The table of kernels: one function a row, filled once per instruction set (isa/*.cpp) from the sources in kernels/.
//
// Kernels check nothing: shapes and ranges are checked where tensors and matrices are (ops_*.cpp). Unless a row says
// otherwise, pointers need no alignment and outputs do not overlap inputs. Every result depends only on the arguments
// that it is described by: neither on how work is cut into calls nor on the other rows of a call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cellmd {

// What scales are stored as; Factored is a code of one byte, scale = code * row_factor (scale_dtype "i8" of the file).
enum class ScaleType : uint8_t { Half, BFloat, Float, Factored };
enum class FloatType : uint8_t { Half, BFloat, Float };
enum class CacheType : uint8_t { Half, Float, Int8 };

constexpr int kTileRows = 16;
constexpr int kRowChunkBytes = 64;  // a step of a kernel on weights in row layout
constexpr int kKeyBlock = 64;       // keys of a block of attention; blocks begin at multiples of it in a sequence
constexpr int kTilesOfScratch = 16; // tiles that a product may have at work at a time
constexpr int kGatedTiles = kTilesOfScratch / 2;  // and of each of two matrices
constexpr int kMaxQueryRows = 8;
constexpr int kMaxMerged = 64;
constexpr int kMaxCandidates = 16;  // scales that are tried for a group
constexpr int kLargestBlock = 64;   // numbers of which the largest is looked for at a time

// Activations as int8: x ~ code * scale with one scale for each row and each group of columns, codes in -127..127.
// Rows come in blocks of KernelTable::token_block (the last one may be smaller), each block apart:
//   codes  [ceil(k / 4)][rows][4]   or [ceil(k / 64)][rows][64], as the table's products want them; zeros beyond k, up to a
//                                   multiple of KernelTable::code_columns
//   scales [groups][rows]
//   sums   [groups][rows]           kSumFactor times the sums of the codes: what products begin with whose weights are 8 too large
constexpr int kSumFactor = -8;
struct QuantisedRows {
    int rows, k, group;
    float low, high;  // numbers are clipped to these first
    int8_t* codes;
    float* scales;
    int32_t* sums;
};

// One row of activations for weights in row layout, in chunks of 64 bytes of weights: 128 columns at int4, the 64 even
// ones first, or 64 columns at int8; a lane is 4 bytes of weights, 8 or 4 columns.
//   codes  [chunks][128 or 64]      zeros beyond k
//   scales [chunks][16]             of the group that the lane lies in
//   sums   [chunks][16]             of the lane's codes
struct QuantiseLanesArgs {
    const float* x;
    int k, group;
    bool int4;
    float low, high;
    int8_t* codes;
    float* scales;
    int32_t* sums;
};

// A matrix of n x k weights in int4 or int8. Scales: `scale_groups` a row, either one for each group of activations or
// one in all; in tile16 layout [tile][scale_groups][16], in row layout [n][scale_groups].
struct IntMatrix {
    const uint8_t* codes;
    const void* scales;
    const float* row_factors;
    ScaleType scale_type;
    int n, k, group, groups, scale_groups;
    const float* bias;  // or null
    float low, high;    // outputs are clipped to these
};

// out[token][n] for `rows` quantised rows.
struct IntProduct {
    const int8_t* codes;
    const float* scales;
    const int32_t* sums;
    int rows;
    float* out;
    size_t out_stride;
};

struct FloatMatrix {
    const void* data;
    FloatType type;
    int n, k;
    const float* bias;
    float low, high;
};

struct FloatProduct {
    const float* x;  // rows begin x_stride apart; k values each
    size_t x_stride;
    int rows;
    float* out;
    size_t out_stride;
};

// Rows of a table that is only looked up.
struct Lookup {
    const uint8_t* data;  // from row `first` on; of a tiled table from row 0
    int64_t first;
    const void* scales;
    const float* row_factors;
    ScaleType scale_type;
    int bits;         // 4, 8; 16 and 32: floats of `float_type`
    FloatType float_type;
    bool tiled;
    int k, group, scale_groups;
};

// Scores and weighted values of `rows` queries (a power of two, at most query_rows) over one block of keys.
// keys [width][kKeyBlock], values [kKeyBlock][width], of `type`, where width is head_dim rounded up to 16, with zeros; for
// Int8 scales of every key and value, else null.
// Row r sees the keys from[r]..to[r]-1 of the block; keys outside of first..last-1 are seen by no row.
// Out: largest[r] the largest score (-inf if none is seen), total[r] the sum of e^(score - largest) and
// weighted[r][width] the sum of e^(score - largest) * value.
struct AttendArgs {
    const float* queries[kMaxQueryRows];  // head_dim numbers each
    int rows, head_dim, width;
    bool from_memory;  // keys and values are in no cache yet, and in memory are followed by the next block
    CacheType type;
    const void *keys, *values;
    const float *key_scales, *value_scales;
    int first, last;
    int from[kMaxQueryRows], to[kMaxQueryRows];
    float largest[kMaxQueryRows], total[kMaxQueryRows];
    float* weighted;
};

// Results of some rows: largest[row], total[row], weighted[row][width].
struct AttendSums {
    float *largest, *total, *weighted;
};

struct RelativeArgs {
    const float *q, *k, *v, *relative_keys;  // (n, heads, hd); relative_keys (n_relative, heads, hd)
    int n, heads, head_dim, n_relative, past, future;
    float cap;
};

// The least and the largest weight of a group.
struct EncodeExtremes {
    float low, high;
    bool finite;
};

// One row of weights to be encoded (kernels/encode.inl).
struct EncodeRowArgs {
    const void* row;  // k weights, bfloat16 or float32
    bool bfloat;
    int k, group, groups;  // columns that share a scale: 32, 64, 128, 256, or k
    bool int4;
    // int4: each of these times the widest scale is tried, and a symmetric one; none: the widest is taken.
    const float* shrinks;
    int n_shrinks;  // less than kMaxCandidates
    ScaleType scale_type;
    // Scratch: weights and codes hold groups * group numbers, a group of k rounded up to 16.
    float* weights;
    EncodeExtremes* extremes;
    float* scales;
    // Out: the codes, zeros beyond k; the scale of group g at stored[g * stored_stride]; the factor if there is one.
    int8_t* codes;
    void* stored;
    size_t stored_stride;
    float* row_factor;
};

// Sums over rows that are encoded one after another, and what was found in them.
struct EncodeSums {
    float largest = 0.0f, max_abs = 0.0f;  // magnitudes of weights and of errors
    double error = 0.0, signal = 0.0;      // squares
    bool finite = true;                    // else nothing else holds
    bool in_range = true;                  // every scale is finite
};

struct KernelTable {
    const char* name;
    int token_block;   // rows of a block of quantised activations
    int code_columns;  // their codes are padded to a multiple of so many columns
    int query_rows;

    // ---- products (kernels/quantise.inl, gemm_tile16.inl, gemv_tile16.inl, gemm_row.inl, gemm_float.inl) ----
    void (*quantise)(const float* x, size_t row_stride, const QuantisedRows& block);
    void (*quantise_lanes)(const QuantiseLanesArgs&);
    // Floats of scratch that products with a matrix, or two of its shape, need; 64-byte aligned.
    size_t (*gemm_scratch)(const IntMatrix&);
    // Tiles begin..end-1 of 16 rows.
    void (*gemm_int4)(const IntMatrix&, const IntProduct&, int begin, int end, float* scratch);
    void (*gemm_int8)(const IntMatrix&, const IntProduct&, int begin, int end, float* scratch);
    // gelu(gate) * up of two matrices of one shape; out as `gemm_int4` for n columns.
    void (*gemm_int4_geglu)(const IntMatrix& gate, const IntMatrix& up, const IntProduct&, int begin, int end,
                            float* scratch);
    // The same of a single token. Pairs begin..end-1 of tiles: the i-th of the first half of a matrix, which has the odd one,
    // and the i-th of the second half.
    void (*gemv_int4)(const IntMatrix&, const IntProduct&, int begin, int end);
    void (*gemv_int8)(const IntMatrix&, const IntProduct&, int begin, int end);
    // Tiles begin..end-1 of both matrices, whose scales are of one type.
    void (*gemv_int4_geglu)(const IntMatrix& gate, const IntMatrix& up, const IntProduct&, int begin, int end);
    // The same as the activations of another product, in the places of n columns: `to` has product's rows, its group divides
    // kGatedTiles tiles, and begin is a multiple of those.
    void (*gemm_int4_geglu_codes)(const IntMatrix& gate, const IntMatrix& up, const IntProduct&, const QuantisedRows& to,
                                  int begin, int end, float* scratch);
    // Rows begin..end-1 of weights in row layout; codes, scales and sums of `product` as quantise_lanes leaves them.
    void (*gemm_row_int4)(const IntMatrix&, const IntProduct&, int begin, int end);
    void (*gemm_row_int8)(const IntMatrix&, const IntProduct&, int begin, int end);
    void (*gemm_float)(const FloatMatrix&, const FloatProduct&, int begin, int end);
    // Columns start..stop-1 of a row, times factor. start is a multiple of 16.
    void (*lookup)(const Lookup&, int64_t row, int start, int stop, float factor, float* out);

    // ---- rows of d (kernels/rows.inl) ----
    void (*rms_norm)(const float* x, const float* weight, float eps, int d, float* out);  // weight may be null; out may be x
    void (*layer_norm)(const float* x, const float* weight, float eps, int d, float* out);
    void (*add_norm)(float* x, const float* y, const float* weight, float eps, float scale, int d);

    // ---- n elements (kernels/elementwise.inl); out may be an input ----
    void (*add)(float* x, const float* y, float factor, int n);
    void (*scale)(float* x, float factor, int n);
    // (x + offset) * factor; a null offset or factor stands for the number beside it.
    void (*affine)(const float* x, const float* factor, float factor_value, const float* offset, float offset_value,
                   int n, float* out);
    void (*clamp)(const float* x, float low, float high, int n, float* out);
    void (*geglu)(const float* gate, const float* up, int n, float* out);
    void (*silu)(const float* x, int n, float* out);
    void (*glu)(const float* x, const float* gate, int n, float* out);
    void (*softcap)(float* x, float cap, int n);
    // out += x * y, elementwise
    void (*multiply_add)(const float* x, const float* y, int n, float* out);
    // One head's channels (i, i + half), i < turning, by cos and sin; the others are copied. out may be x.
    void (*rope)(const float* x, const float* cos, const float* sin, int turning, int half, float* out);

    // ---- vocabulary (kernels/vocabulary.inl) ----
    // The largest of each kLargestBlock of n numbers (the last block may be shorter), -inf where there is none; what is not
    // a number is passed over.
    void (*largest)(const float* x, int n, float* out);
    // The sum of e^(x - largest) over n numbers.
    double (*exp_sum)(const float* x, int n, float largest);

    // ---- attention (kernels/attention.inl) ----
    // Into `weighted`, or, unless sums is null, joined with what the rows have in sums so far: as `merge` would do it, to the bit.
    void (*attend)(AttendArgs&, const AttendSums* sums);
    // Blocks' parts (AttendArgs' results) of some rows (at most kMaxQueryRows) into what those rows have so far, in order:
    // `blocks` (at most kMaxMerged) parts, each of whose numbers lie `stride` floats after those of the one before.
    void (*merge)(int rows, int width, const AttendSums& sums, const AttendSums& first, int blocks, size_t stride);
    // n numbers as stored: Half within the largest finite half, Int8 by the scale it returns (else 1).
    float (*narrow)(const float* x, CacheType, int n, void* out);
    void (*relative)(const RelativeArgs&, int row, int head, float* scores, float* out);

    // ---- encoding (kernels/encode.inl) ----
    void (*encode_row)(const EncodeRowArgs&, EncodeSums&);

    // ---- yardsticks (kernels/yardsticks.inl) ----
    int32_t (*read)(const uint8_t* bytes, size_t n);                // reads n bytes, a multiple of 256
    int64_t (*multiply)(int64_t repetitions, int32_t* out);         // returns the int8 multiply-adds done, in registers
};

}  // namespace cellmd
