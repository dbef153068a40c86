// Products with int4 and int8 weights in tile16 layout.
//
// A tile's 16 rows are the lanes of a vector: 64 bytes of weights hold 4 (int8) or 2 x 4 (int4) columns of each row, and
// are multiplied by 4 activations broadcast to every lane. Sums within a group of columns are exact integers; per group
// they are scaled and added to a float32 sum, groups in ascending order. So an output's bits do not depend on how many
// tokens or tiles are computed together.

// Bytes that a stream of weights is fetched ahead of its use when every weight is used once.
constexpr int kPrefetchBytes = 4096;

template <bool kInt4>
struct Tile16 {
    static constexpr int kStepColumns = kInt4 ? 8 : 4;  // columns in 64 bytes of a tile
    static constexpr int kOffset = kInt4 ? 8 : kInt8Offset;
};

// sums[token][tile] += one step; activations [quarter][kTokens][4].
template <int kTokens, int kTiles, bool kInt4>
CELLMD_INLINE void tile_step(Vi (&sums)[kTokens][kTiles], const uint8_t* const (&weights)[kTiles], size_t at,
                             const int8_t* activations) {
    Codes low[kTiles], high[kTiles];
    CELLMD_UNROLL
    for (int i = 0; i < kTiles; i++) {
        if constexpr (kInt4)
            codes_of_int4(weights[i] + at, low[i], high[i]);
        else
            low[i] = codes_of_int8(weights[i] + at);
    }
    CELLMD_UNROLL
    for (int t = 0; t < kTokens; t++) {
        CELLMD_UNROLL
        for (int i = 0; i < kTiles; i++) {
            if constexpr (kInt4)
                sums[t][i] = dot8_int4(sums[t][i], low[i], high[i], activations + 4 * t, activations + 4 * (kTokens + t));
            else
                sums[t][i] = dot4(sums[t][i], low[i], activations + 4 * t);
        }
    }
}

// out[token][tile][16] of kTokens tokens and kTiles tiles. scales [tile][groups][16].
template <int kTokens, int kTiles, bool kInt4>
static void tile_product(const uint8_t* const (&weights)[kTiles], const float* scales, int k, int group,
                         const int8_t* activations, const float* token_scales, const int32_t* token_sums, float* out) {
    using Tile = Tile16<kInt4>;
    const int steps = ceil_div(k, Tile::kStepColumns), group_steps = group / Tile::kStepColumns;
    const int groups = ceil_div(k, group);
    CELLMD_UNROLL
    for (int i = 0; i < kTokens * kTiles; i++) vstore(out + 16 * i, vzero());
    for (int g = 0; g < groups; g++) {
        Vi sums[kTokens][kTiles];
        CELLMD_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const Vi start = viset(-Tile::kOffset * token_sums[g * kTokens + t]);
            CELLMD_UNROLL
            for (int i = 0; i < kTiles; i++) sums[t][i] = start;
        }
        const int end = lesser(steps, (g + 1) * group_steps);
        int step = g * group_steps;
        if constexpr (kTokens * kTiles == 1) {
            // One sum would be a chain of dependent additions: two take turns.
            Vi odd[1][1] = {{vizero()}};
            for (; step + 1 < end; step += 2) {
                const int8_t* x = activations + step * Tile::kStepColumns;
                prefetch(weights[0] + 64 * step + kPrefetchBytes);
                prefetch(weights[0] + 64 * step + kPrefetchBytes + 64);
                tile_step<1, 1, kInt4>(sums, weights, 64 * static_cast<size_t>(step), x);
                tile_step<1, 1, kInt4>(odd, weights, 64 * static_cast<size_t>(step + 1), x + Tile::kStepColumns);
            }
            sums[0][0] = sums[0][0] + odd[0][0];
        }
        for (; step < end; step++) {
            const int8_t* x = activations + step * Tile::kStepColumns * kTokens;
            if constexpr (kTokens <= 2) {
                CELLMD_UNROLL
                for (int i = 0; i < kTiles; i++) prefetch(weights[i] + 64 * step + kPrefetchBytes);
            }
            tile_step<kTokens, kTiles, kInt4>(sums, weights, 64 * static_cast<size_t>(step), x);
        }
        Vf row_scales[kTiles];
        CELLMD_UNROLL
        for (int i = 0; i < kTiles; i++) row_scales[i] = vload(scales + (i * groups + g) * 16);
        CELLMD_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const Vf token_scale = vset(token_scales[g * kTokens + t]);
            CELLMD_UNROLL
            for (int i = 0; i < kTiles; i++) {
                float* sum = out + (t * kTiles + i) * 16;
                vstore(sum, vfma(vfloat(sums[t][i]), token_scale * row_scales[i], vload(sum)));
            }
        }
    }
}

template <int kTiles, bool kInt4>
static void tile_product_of(int tokens, const uint8_t* const (&weights)[kTiles], const float* scales, int k, int group,
                            const int8_t* codes, const float* token_scales, const int32_t* token_sums, float* out) {
#define CELLMD_CASE(n)                                                                                              \
    case n:                                                                                                         \
        if constexpr (n <= kTokenBlock)                                                                             \
            tile_product<n, kTiles, kInt4>(weights, scales, k, group, codes, token_scales, token_sums, out);        \
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

// Scales of one tile as [groups][16] float32; a single scale a row is repeated for every group of activations.
static void expand_scales(const IntMatrix& m, int tile, float* out) {
    const size_t at = static_cast<size_t>(tile) * m.scale_groups * 16;
    for (int g = 0; g < m.groups; g++) {
        const size_t from = at + (m.scale_groups == 1 ? 0 : 16 * static_cast<size_t>(g));
        Vf scale;
        switch (m.scale_type) {
            case ScaleType::Half: scale = vload_f16(static_cast<const uint16_t*>(m.scales) + from); break;
            case ScaleType::BFloat: scale = vload_bf16(static_cast<const uint16_t*>(m.scales) + from); break;
            case ScaleType::Float: scale = vload(static_cast<const float*>(m.scales) + from); break;
            default: scale = vload_u8(static_cast<const uint8_t*>(m.scales) + from) * vload(m.row_factors + 16 * tile);
        }
        vstore(out + 16 * g, scale);
    }
}

CELLMD_INLINE Vf finished(Vf y, const IntMatrix& m, int first_row, int n) {
    if (m.bias) y = y + (n < 16 ? vload_first(m.bias + first_row, n) : vload(m.bias + first_row));
    return vmax(vset(m.low), vmin(vset(m.high), y));
}
CELLMD_INLINE void store_lanes(float* out, Vf y, int n) { n < 16 ? vstore_first(out, y, n) : vstore(out, y); }

template <int kTiles, bool kInt4>
static void gemm_tiles(const IntMatrix& m, const IntProduct& p, int tile, float* scratch) {
    const int padded_k = 8 * ceil_div(m.k, 8);
    const size_t tile_bytes = static_cast<size_t>(64) * ceil_div(m.k, Tile16<kInt4>::kStepColumns);
    const uint8_t* weights[kTiles];
    for (int i = 0; i < kTiles; i++) {
        weights[i] = m.codes + (tile + i) * tile_bytes;
        expand_scales(m, tile + i, scratch + i * m.groups * 16);
    }
    for (int first = 0; first < p.rows; first += kTokenBlock) {
        const int tokens = lesser(kTokenBlock, p.rows - first);
        alignas(64) float sums[kTokenBlock * kTiles * 16];
        tile_product_of<kTiles, kInt4>(tokens, weights, scratch, m.k, m.group, p.codes + static_cast<size_t>(first) * padded_k,
                                       p.scales + first * m.groups, p.sums + first * m.groups, sums);
        for (int t = 0; t < tokens; t++)
            for (int i = 0; i < kTiles; i++) {
                const int row = (tile + i) * 16, n = m.n - row;
                const Vf y = finished(vload(sums + (t * kTiles + i) * 16), m, row, n);
                store_lanes(p.out + (first + t) * p.out_stride + row, y, n);
            }
    }
}

template <bool kInt4>
static void gemm_tile16(const IntMatrix& m, const IntProduct& p, int begin, int end, float* scratch) {
    int tile = begin;
    if constexpr (kTileBlock == 2) {
        if (p.rows > 1)
            for (; tile + 1 < end; tile += 2) gemm_tiles<2, kInt4>(m, p, tile, scratch);
    }
    for (; tile < end; tile++) gemm_tiles<1, kInt4>(m, p, tile, scratch);
}

static void gemm_int4_geglu(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, int begin, int end,
                            float* scratch) {
    const int padded_k = 8 * ceil_div(gate.k, 8);
    const size_t tile_bytes = static_cast<size_t>(8) * padded_k;
    const IntMatrix* const both[2] = {&gate, &up};
    for (int tile = begin; tile < end; tile++) {
        const uint8_t* const weights[2] = {gate.codes + tile * tile_bytes, up.codes + tile * tile_bytes};
        const int row = tile * 16, n = gate.n - row;
        for (int i = 0; i < 2; i++) expand_scales(*both[i], tile, scratch + i * gate.groups * 16);
        for (int first = 0; first < p.rows; first += kTokenBlock) {
            const int tokens = lesser(kTokenBlock, p.rows - first);
            const int8_t* codes = p.codes + static_cast<size_t>(first) * padded_k;
            const float* scales = p.scales + first * gate.groups;
            const int32_t* token_sums = p.sums + first * gate.groups;
            alignas(64) float sums[kTokenBlock * 2 * 16];
            if (kTileBlock == 2 && tokens > 1) {
                tile_product_of<2, true>(tokens, weights, scratch, gate.k, gate.group, codes, scales, token_sums, sums);
            } else {
                for (int i = 0; i < 2; i++) {
                    alignas(64) float some[kTokenBlock * 16];
                    const uint8_t* const one[1] = {weights[i]};
                    tile_product_of<1, true>(tokens, one, scratch + i * gate.groups * 16, gate.k, gate.group, codes,
                                             scales, token_sums, some);
                    for (int t = 0; t < tokens; t++) vstore(sums + (2 * t + i) * 16, vload(some + t * 16));
                }
            }
            for (int t = 0; t < tokens; t++) {
                const Vf y = finished(vload(sums + 2 * t * 16), gate, row, n);
                const Vf z = finished(vload(sums + (2 * t + 1) * 16), up, row, n);
                store_lanes(p.out + (first + t) * p.out_stride + row, vgelu(y) * z, n);
            }
        }
    }
}
