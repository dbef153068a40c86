// The inner loop of products with tiles of weights, on a processor that multiplies whole tiles: 16 tokens x 64 columns by
// 64 columns x 16 rows of weights at a time. What comes of it is what blocks_vector.inl computes, to the bit: sums within
// a group are exact, and their scales are put on in the same order.
//
// Tiles 0..3: sums of two halves of the tokens with two tiles of weights; 4, 5: the tokens' codes; 6, 7: weights.
// isa/tiles_plain.inl says what each tile instruction means.
#include "tile16.inl"

constexpr int kTileTokens = 16, kTileColumns = 64;
constexpr int kTokenBlock = 2 * kTileTokens, kTileBlock = 2;
constexpr int kColumnsTogether = kTileColumns;  // of a token, in the codes of its block (QuantiseArgs)
CELLMD_INLINE constexpr int padded_columns(int k) { return (k + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Weights as int8, [column / 4][row][4], zeros beyond k.
constexpr bool kUnpacksWeights = true;
template <bool kInt4>
CELLMD_INLINE size_t weight_bytes(int k) {
    return static_cast<size_t>(16) * padded_columns(k);
}
template <bool kInt4>
static const uint8_t* weights_of(const IntMatrix& m, int tile, uint8_t* room) {
    const uint8_t* from = tile_of<kInt4>(m, tile);
    const size_t bytes = tile_bytes<kInt4>(m.k), unpacked = kInt4 ? 2 * bytes : bytes;
    if constexpr (kInt4)
        for (size_t i = 0; i < bytes; i += 64) signed_codes_of_int4(from + i, room + 2 * i);
    else
        __builtin_memcpy(room, from, bytes);
    __builtin_memset(room + unpacked, 0, weight_bytes<kInt4>(m.k) - unpacked);
    return room;
}

// The columns that are multiplied at a time: as many as a tile has, unless a group ends within them.
CELLMD_INLINE int step_of_group(int group) {
    int step = kTileColumns;
    while (group % step) step /= 2;
    return step;
}

// A thread's tiles have the shapes that blocks need, until it ends.
class BlockUnit {
   public:
    CELLMD_INLINE explicit BlockUnit(int group) : step_(step_of_group(group)) {}
    // The blocks that follow have so many tokens.
    CELLMD_INLINE void expect(int tokens) {
        if (tokens == tokens_) return;
        tokens_ = tokens;
        const int first = lesser(tokens, kTileTokens), second = greater(1, tokens - first);
        TileShapes shapes;
        for (int i = 0; i < 4; i++) shapes.set(i, i < 2 ? first : second, 64);
        shapes.set(4, first, step_);
        shapes.set(5, second, step_);
        for (int i = 6; i < 8; i++) shapes.set(i, step_ / 4, 64);
        configure_tiles(shapes);
    }
    CELLMD_INLINE ~BlockUnit() { release_tiles(); }

   private:
    int step_, tokens_ = 0;
};

// The sums of a group, scaled and added to totals[token][tile][16].
template <int kTiles>
CELLMD_INLINE void add_scaled(int tokens, const int32_t (*sums)[16][16], int first, const float* scales, int tile_stride,
                              const float* token_scales, float* totals) {
    Vf row_scales[kTiles];
    repeat<kTiles>([&](auto i) CELLMD_ALWAYS { row_scales[i] = vload(scales + i * tile_stride); });
    for (int t = 0; t < tokens; t++) {
        const Vf token_scale = vset(token_scales[first + t]);
        repeat<kTiles>([&](auto i) CELLMD_ALWAYS {
            float* to = totals + ((first + t) * kTiles + i) * 16;
            vstore(to, vfma(vfloat(viload(sums[i][t])), token_scale * row_scales[i], vload(to)));
        });
    }
}

// out[token][tile][16] of `tokens` tokens (at most kTileTokens if not kBothHalves), `stride` floats apart, and kTiles tiles.
// scales [tile][groups][16].
template <int kTiles, bool kBothHalves>
static void tile_product(int tokens, const uint8_t* const* weights, const float* scales, int k, int group,
                         const int8_t* codes, const float* token_scales, float* out, size_t stride) {
    const int groups = ceil_div(k, group), step = step_of_group(group);
    const size_t columns_size = static_cast<size_t>(tokens) * kTileColumns;
    alignas(64) int32_t sums[4][16][16];
    alignas(64) float totals[kTokenBlock * kTiles * 16];
    for (int i = 0; i < tokens * kTiles; i++) vstore(totals + 16 * i, vzero());
    for (int g = 0; g < groups; g++) {
        CELLMD_TILE_ZERO(0);
        if constexpr (kTiles == 2) CELLMD_TILE_ZERO(1);
        if constexpr (kBothHalves) CELLMD_TILE_ZERO(2);
        if constexpr (kBothHalves && kTiles == 2) CELLMD_TILE_ZERO(3);
        const int end = lesser(k, (g + 1) * group);
        for (int c = g * group; c < end; c += step) {
            const int8_t* first = codes + c / kTileColumns * columns_size + c % kTileColumns;
            CELLMD_TILE_LOAD(4, first);
            CELLMD_TILE_LOAD(6, weights[0] + static_cast<size_t>(c) * 16);
            CELLMD_TILE_DOT(0, 4, 6);
            if constexpr (kTiles == 2) {
                CELLMD_TILE_LOAD(7, weights[1] + static_cast<size_t>(c) * 16);
                CELLMD_TILE_DOT(1, 4, 7);
            }
            if constexpr (kBothHalves) {
                CELLMD_TILE_LOAD(5, first + kTileTokens * kTileColumns);
                CELLMD_TILE_DOT(2, 5, 6);
                if constexpr (kTiles == 2) CELLMD_TILE_DOT(3, 5, 7);
            }
        }
        CELLMD_TILE_STORE(0, sums[0]);
        if constexpr (kTiles == 2) CELLMD_TILE_STORE(1, sums[1]);
        if constexpr (kBothHalves) CELLMD_TILE_STORE(2, sums[2]);
        if constexpr (kBothHalves && kTiles == 2) CELLMD_TILE_STORE(3, sums[3]);
        add_scaled<kTiles>(lesser(tokens, kTileTokens), sums, 0, scales + g * 16, groups * 16, token_scales + g * tokens,
                           totals);
        if constexpr (kBothHalves)
            add_scaled<kTiles>(tokens - kTileTokens, sums + 2, kTileTokens, scales + g * 16, groups * 16,
                               token_scales + g * tokens, totals);
    }
    for (int t = 0; t < tokens; t++)
        repeat<kTiles>([&](auto i) CELLMD_ALWAYS { vstore(out + t * stride + 16 * i, vload(totals + (t * kTiles + i) * 16)); });
}

template <int kTiles, bool kInt4>
static void tile_product_of(int tokens, const uint8_t* const* weights, const float* scales, int k, int group,
                            const int8_t* codes, const float* token_scales, const int32_t*, float* out, size_t stride) {
    if (tokens > kTileTokens)
        tile_product<kTiles, true>(tokens, weights, scales, k, group, codes, token_scales, out, stride);
    else
        tile_product<kTiles, false>(tokens, weights, scales, k, group, codes, token_scales, out, stride);
}

// As a product's inner loop, but with everything in tiles already.
static int64_t multiply(int64_t repetitions, int32_t* out) {
    alignas(64) static constexpr int8_t bytes[16][64] = {{1, 2, 3}};
    alignas(64) int32_t sums[16][16] = {};
    BlockUnit unit(kTileColumns);
    unit.expect(kTokenBlock);
    CELLMD_TILE_ZERO(0);
    CELLMD_TILE_ZERO(1);
    CELLMD_TILE_ZERO(2);
    CELLMD_TILE_ZERO(3);
    CELLMD_TILE_LOAD(4, bytes);
    CELLMD_TILE_LOAD(5, bytes);
    CELLMD_TILE_LOAD(6, bytes);
    CELLMD_TILE_LOAD(7, bytes);
    for (int64_t n = 0; n < repetitions; n++) {
        CELLMD_TILE_DOT(0, 4, 6);
        CELLMD_TILE_DOT(1, 4, 7);
        CELLMD_TILE_DOT(2, 5, 6);
        CELLMD_TILE_DOT(3, 5, 7);
    }
    CELLMD_TILE_STORE(0, sums);
    *out = sums[0][0];
    return repetitions * 4 * kTileTokens * 16 * kTileColumns;
}
