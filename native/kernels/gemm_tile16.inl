// Products with int4 and int8 weights in tile16 layout.
//
// A tile's 16 rows are the lanes of a vector: 64 bytes of weights hold 4 (int8) or 2 x 4 (int4) columns of each row, and
// are multiplied by 4 activations broadcast to every lane. Sums within a group of columns are exact integers; per group
// they are scaled and added to a float32 sum, groups in ascending order. So an output's bits do not depend on how many
// tokens or tiles are computed together.

// Bytes that a stream of weights is fetched ahead of its use when every weight is used once.
constexpr int kPrefetchBytes = 6144;

template <bool kInt4>
struct Tile16 {
    static constexpr int kStepColumns = kInt4 ? 8 : 4;  // columns in 64 bytes of a tile
    static constexpr int kOffset = kInt4 ? 8 : kInt8Offset;
};

// out[token][tile][16] of kTokens tokens and kTiles tiles. scales [tile][groups][16].
template <int kTokens, int kTiles, bool kInt4>
static void tile_product(const uint8_t* const (&weights)[kTiles], const float* scales, int k, int group,
                         const int8_t* activations, const float* token_scales, const int32_t* token_sums, float* out) {
    using Tile = Tile16<kInt4>;
    // One sum for a tile and a token would be a chain of dependent additions: where there are few, several take turns.
    constexpr int kTurns = kTokens * kTiles == 1 ? 2 : 1;
    const int steps = ceil_div(k, Tile::kStepColumns), group_steps = group / Tile::kStepColumns;
    const int groups = ceil_div(k, group);
    const uint8_t* from[kTiles];
    repeat<kTiles>([&](auto i) CELLMD_ALWAYS { from[i] = weights[i]; });
    repeat<kTokens * kTiles>([&](auto i) CELLMD_ALWAYS { vstore(out + 16 * i, vzero()); });
    for (int g = 0; g < groups; g++) {
        Vi sums[kTurns][kTokens][kTiles];
        repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
            const Vi start = viset(-Tile::kOffset * token_sums[g * kTokens + t]);
            repeat<kTiles>([&](auto i) CELLMD_ALWAYS {
                sums[0][t][i] = start;
                if constexpr (kTurns == 2) sums[1][t][i] = vizero();
            });
        });
        const auto take_step = [&](auto turn) CELLMD_ALWAYS {
            Codes low[kTiles], high[kTiles];
            repeat<kTiles>([&](auto i) CELLMD_ALWAYS {
                if constexpr (kTokens <= 2) prefetch(from[i] + kPrefetchBytes);
                if constexpr (kInt4)
                    codes_of_int4(from[i], low[i], high[i]);
                else
                    low[i] = codes_of_int8(from[i]);
                from[i] += 64;
            });
            repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
                repeat<kTiles>([&](auto i) CELLMD_ALWAYS {
                    if constexpr (kInt4)
                        sums[turn][t][i] = dot8_int4(sums[turn][t][i], low[i], high[i], activations + 4 * t,
                                                     activations + 4 * (kTokens + t));
                    else
                        sums[turn][t][i] = dot4(sums[turn][t][i], low[i], activations + 4 * t);
                });
            });
            activations += Tile::kStepColumns * kTokens;
        };
        const int end = lesser(steps, (g + 1) * group_steps);
        int step = g * group_steps;
        for (; step + kTurns <= end; step += kTurns) repeat<kTurns>(take_step);
        if constexpr (kTurns > 1) {
            if (step < end) take_step(Index<0>());
        }
        Vf row_scales[kTiles];
        repeat<kTiles>([&](auto i) CELLMD_ALWAYS { row_scales[i] = vload(scales + (i * groups + g) * 16); });
        repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
            const Vf token_scale = vset(token_scales[g * kTokens + t]);
            repeat<kTiles>([&](auto i) CELLMD_ALWAYS {
                float* to = out + (t * kTiles + i) * 16;
                Vi sum = sums[0][t][i];
                if constexpr (kTurns == 2) sum = sum + sums[1][t][i];
                vstore(to, vfma(vfloat(sum), token_scale * row_scales[i], vload(to)));
            });
        });
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

// Scales of one tile as [groups][16] float32; a single scale a row is repeated for every group of activations. Those of
// the next tile are fetched: they are a stream of their own beside the weights.
template <typename Load>
CELLMD_INLINE void expand_with(const IntMatrix& m, int tile, size_t element, float* out, const Load& load) {
    const size_t tile_scales = static_cast<size_t>(m.scale_groups) * 16, at = tile * tile_scales;
    for (int g = 0; g < m.groups; g++) {
        const size_t from = at + (m.scale_groups == 1 ? 0 : 16 * static_cast<size_t>(g));
        prefetch(static_cast<const char*>(m.scales) + (from + 2 * tile_scales) * element);
        vstore(out + 16 * g, load(from));
    }
}
static void expand_scales(const IntMatrix& m, int tile, float* out) {
    const auto* halves = static_cast<const uint16_t*>(m.scales);
    switch (m.scale_type) {
        case ScaleType::Half: return expand_with(m, tile, 2, out, [&](size_t i) { return vload_f16(halves + i); });
        case ScaleType::BFloat: return expand_with(m, tile, 2, out, [&](size_t i) { return vload_bf16(halves + i); });
        case ScaleType::Float:
            return expand_with(m, tile, 4, out, [&](size_t i) { return vload(static_cast<const float*>(m.scales) + i); });
        default: {
            const Vf factors = vload(m.row_factors + 16 * tile);
            prefetch(m.row_factors + 16 * (tile + 4));
            return expand_with(m, tile, 1, out,
                               [&](size_t i) { return vload_u8(static_cast<const uint8_t*>(m.scales) + i) * factors; });
        }
    }
}

CELLMD_INLINE Vf finished(Vf y, const IntMatrix& m, int first_row, int n) {
    if (m.bias) y = y + (n < 16 ? vload_first(m.bias + first_row, n) : vload(m.bias + first_row));
    return vmax(vset(m.low), vmin(vset(m.high), y));
}
CELLMD_INLINE void store_lanes(float* out, Vf y, int n) { n < 16 ? vstore_first(out, y, n) : vstore(out, y); }

// Activations of all tokens that fit the second-level cache stay there while tiles come and go. Beyond that it is the
// tiles that stay, some of them, while the activations pass.
constexpr size_t kActivationBytes = 768 << 10, kWeightBytes = 384 << 10;
CELLMD_INLINE int tiles_at_once(const IntMatrix& m, int rows, size_t tile_bytes) {
    if (static_cast<size_t>(rows) * m.k <= kActivationBytes) return kTileBlock;
    return clip(static_cast<int>(kWeightBytes / tile_bytes) / kTileBlock * kTileBlock, kTileBlock, kTilesOfScratch);
}

// kTiles tiles beginning at `tile`, whose scales are expanded, for the block of tokens that begins at `first`.
template <int kTiles, bool kInt4>
CELLMD_INLINE void block_product(const IntMatrix& m, const IntProduct& p, int tile, size_t tile_bytes, const float* scales,
                                 int first) {
    const int tokens = lesser(kTokenBlock, p.rows - first), padded_k = 8 * ceil_div(m.k, 8);
    const uint8_t* weights[kTiles];
    for (int i = 0; i < kTiles; i++) weights[i] = m.codes + (tile + i) * tile_bytes;
    alignas(64) float sums[kTokenBlock * kTiles * 16];
    tile_product_of<kTiles, kInt4>(tokens, weights, scales, m.k, m.group, p.codes + static_cast<size_t>(first) * padded_k,
                                   p.scales + first * m.groups, p.sums + first * m.groups, sums);
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < kTiles; i++) {
            const int row = (tile + i) * 16, n = m.n - row;
            const Vf y = finished(vload(sums + (t * kTiles + i) * 16), m, row, n);
            store_lanes(p.out + (first + t) * p.out_stride + row, y, n);
        }
}

template <bool kInt4>
static void gemm_tile16(const IntMatrix& m, const IntProduct& p, int begin, int end, float* scratch) {
    const size_t tile_bytes = static_cast<size_t>(64) * ceil_div(m.k, Tile16<kInt4>::kStepColumns);
    const int at_once = p.rows == 1 ? 1 : tiles_at_once(m, p.rows, tile_bytes), tile_scales = 16 * m.groups;
    for (int from = begin; from < end; from += at_once) {
        const int to = lesser(end, from + at_once);
        for (int tile = from; tile < to; tile++) expand_scales(m, tile, scratch + (tile - from) * tile_scales);
        for (int first = 0; first < p.rows; first += kTokenBlock) {
            int tile = from;
            if constexpr (kTileBlock == 2)
                for (; tile + 1 < to; tile += 2)
                    block_product<2, kInt4>(m, p, tile, tile_bytes, scratch + (tile - from) * tile_scales, first);
            for (; tile < to; tile++)
                block_product<1, kInt4>(m, p, tile, tile_bytes, scratch + (tile - from) * tile_scales, first);
        }
    }
}

// The product of both matrices for one tile and one block of tokens.
static void geglu_block(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, int tile, const float* scales,
                        int first) {
    const int tokens = lesser(kTokenBlock, p.rows - first), padded_k = 8 * ceil_div(gate.k, 8);
    const size_t at = static_cast<size_t>(8) * padded_k * tile;
    const uint8_t* const weights[2] = {gate.codes + at, up.codes + at};
    const int8_t* codes = p.codes + static_cast<size_t>(first) * padded_k;
    const float* token_scales = p.scales + first * gate.groups;
    const int32_t* token_sums = p.sums + first * gate.groups;
    alignas(64) float sums[kTokenBlock * 2 * 16];
    int stride = 2, up_at = 1;  // in vectors: between tokens, from gate to up
    if (kTileBlock == 2 && tokens > 1) {
        tile_product_of<2, true>(tokens, weights, scales, gate.k, gate.group, codes, token_scales, token_sums, sums);
    } else {
        stride = 1;
        up_at = kTokenBlock;
        for (int i = 0; i < 2; i++) {
            const uint8_t* const one[1] = {weights[i]};
            tile_product_of<1, true>(tokens, one, scales + i * gate.groups * 16, gate.k, gate.group, codes, token_scales,
                                     token_sums, sums + i * up_at * 16);
        }
    }
    const int row = tile * 16, n = gate.n - row;
    for (int t = 0; t < tokens; t++) {
        const Vf y = finished(vload(sums + t * stride * 16), gate, row, n);
        const Vf z = finished(vload(sums + (t * stride + up_at) * 16), up, row, n);
        store_lanes(p.out + (first + t) * p.out_stride + row, vgelu(y) * z, n);
    }
}

static void gemm_int4_geglu(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, int begin, int end,
                            float* scratch) {
    const size_t pair_bytes = static_cast<size_t>(16) * 8 * ceil_div(gate.k, 8);
    const int at_once = p.rows == 1 ? 1 : greater(1, tiles_at_once(gate, p.rows, pair_bytes) / 2), pair_scales = 32 * gate.groups;
    for (int from = begin; from < end; from += at_once) {
        const int to = lesser(end, from + at_once);
        for (int tile = from; tile < to; tile++) {
            expand_scales(gate, tile, scratch + (tile - from) * pair_scales);
            expand_scales(up, tile, scratch + (tile - from) * pair_scales + pair_scales / 2);
        }
        for (int first = 0; first < p.rows; first += kTokenBlock)
            for (int tile = from; tile < to; tile++)
                geglu_block(gate, up, p, tile, scratch + (tile - from) * pair_scales, first);
    }
}
