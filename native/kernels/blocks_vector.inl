// The inner loop of products with tiles of weights, in vectors. What takes its place where a processor multiplies whole tiles:
// blocks_tiles.inl. Both give the same bits.
#include "tile16.inl"

// A block of tokens and of tiles is multiplied at a time, as many as registers hold.
constexpr int kTokenBlock = kRegisterTokens, kTileBlock = kRegisterTiles;
constexpr int kColumnsTogether = 4;  // of a token, in the codes of its block (QuantiseArgs)
CELLMD_INLINE constexpr int padded_columns(int k) { return (k + 7) / 8 * 8; }

// out[token][tile][16] of kTokens tokens, `stride` floats apart, and kTiles tiles. scales [tile][groups][16].
template <int kTokens, int kTiles, bool kInt4>
static void tile_product(const uint8_t* const* weights, const float* scales, int k, int group, const int8_t* activations,
                         const float* token_scales, const int32_t* token_sums, float* out, size_t stride) {
    using Tile = Tile16<kInt4>;
    const int steps = ceil_div(k, Tile::kStepColumns), group_steps = group / Tile::kStepColumns;
    const int groups = ceil_div(k, group);
    const uint8_t* from[kTiles];
    repeat<kTiles>([&](auto i) CELLMD_ALWAYS { from[i] = weights[i]; });
    Vf totals[kTokens][kTiles];
    repeat<kTokens>([&](auto t) CELLMD_ALWAYS { repeat<kTiles>([&](auto i) CELLMD_ALWAYS { totals[t][i] = vzero(); }); });
    for (int g = 0; g < groups; g++) {
        Vi sums[kTokens][kTiles];
        repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
            const Vi start = viset(Tile::kStart * token_sums[g * kTokens + t]);
            repeat<kTiles>([&](auto i) CELLMD_ALWAYS { sums[t][i] = start; });
        });
        const int end = lesser(steps, (g + 1) * group_steps);
        for (int step = g * group_steps; step < end; step++) {
            const auto multiply = [&](const auto&... codes) CELLMD_ALWAYS {
                repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
                    int i = 0;
                    ((sums[t][i] = codes.template dot<kTokens>(sums[t][i], activations, t), i++), ...);
                });
            };
            if constexpr (kTokens <= 2)
                repeat<kTiles>([&](auto i) CELLMD_ALWAYS { prefetch(from[i] + kPrefetchBytes); });
            else
                prefetch(activations + kActivationsAhead);
            if constexpr (kTiles == 2)
                multiply(StepCodes<kInt4>(from[0]), StepCodes<kInt4>(from[1]));
            else
                multiply(StepCodes<kInt4>(from[0]));
            repeat<kTiles>([&](auto i) CELLMD_ALWAYS { from[i] += 64; });
            activations += Tile::kStepColumns * kTokens;
        }
        Vf row_scales[kTiles];
        repeat<kTiles>([&](auto i) CELLMD_ALWAYS { row_scales[i] = vload(scales + (i * groups + g) * 16); });
        repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
            const Vf token_scale = vset(token_scales[g * kTokens + t]);
            repeat<kTiles>([&](auto i) CELLMD_ALWAYS {
                totals[t][i] = vfma(vfloat(sums[t][i]), token_scale * row_scales[i], totals[t][i]);
            });
        });
    }
    repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
        repeat<kTiles>([&](auto i) CELLMD_ALWAYS { vstore(out + t * stride + 16 * i, totals[t][i]); });
    });
}

template <int kTiles, bool kInt4>
static void tile_product_of(int tokens, const uint8_t* const* weights, const float* scales, int k, int group,
                            const int8_t* codes, const float* token_scales, const int32_t* token_sums, float* out,
                            size_t stride) {
#define CELLMD_CASE(n)                                                                                               \
    case n:                                                                                                          \
        if constexpr (n <= kTokenBlock)                                                                              \
            tile_product<n, kTiles, kInt4>(weights, scales, k, group, codes, token_scales, token_sums, out, stride); \
        break
    switch (tokens) {
        CELLMD_CASE(1);
        CELLMD_CASE(2);
        CELLMD_CASE(3);
        CELLMD_CASE(4);
        CELLMD_CASE(5);
        CELLMD_CASE(6);
        CELLMD_CASE(7);
        CELLMD_CASE(8);
    }
#undef CELLMD_CASE
}

// Weights are taken as they lie in the file.
constexpr bool kUnpacksWeights = false;
template <bool kInt4>
CELLMD_INLINE size_t weight_bytes(int k) {
    return tile_bytes<kInt4>(k);
}
template <bool kInt4>
CELLMD_INLINE const uint8_t* weights_of(const IntMatrix& m, int tile, uint8_t*) {
    return tile_of<kInt4>(m, tile);
}

// What a thread does to its processor around the blocks of a product: nothing.
struct BlockUnit {
    CELLMD_INLINE explicit BlockUnit(int) {}
    CELLMD_INLINE void expect(int) {}
};

// As a product's inner loop, but with everything in registers.
static int64_t multiply(int64_t repetitions, int32_t* out) {
    constexpr int kSums = kTokenBlock * kTileBlock;
    alignas(64) uint8_t bytes[64] = {1, 2, 3};
    alignas(16) int8_t activations[8] = {1, -1, 1, -1, 1, -1, 1, -1};
    Codes low, high;
    codes_of_int4(bytes, low, high);
    Vi sums[kSums];
    repeat<kSums>([&](auto i) CELLMD_ALWAYS { sums[i] = viset(i); });
    for (int64_t n = 0; n < repetitions; n++)
        repeat<kSums>([&](auto i) CELLMD_ALWAYS {
            opaque(low);  // else products that are the same for every sum would be made once
            opaque(high);
            sums[i] = dot8_int4(sums[i], low, high, activations, activations + 4);
        });
    Vi total = vizero();
    repeat<kSums>([&](auto i) CELLMD_ALWAYS { total = total + sums[i]; });
    *out = visum(total);
    return repetitions * kSums * 128;
}
