// Products with int4 and int8 weights in tile16 layout.
//
// A tile's 16 rows are the lanes of a vector: 64 bytes of weights hold 4 (int8) or 2 x 4 (int4) columns of each row, and
// are multiplied by 4 activations broadcast to every lane. Sums within a group of columns are exact integers; per group
// they are scaled and added to a float32 sum, groups in ascending order. So an output's bits do not depend on how many
// tokens or tiles are computed together.

// Bytes that a stream of weights is fetched ahead of its use when every weight is used once. Measured: with more, several
// threads get in each other's way; with less, a single one waits.
constexpr int kPrefetchBytes = 5120;

template <bool kInt4>
struct Tile16 {
    static constexpr int kStepColumns = kInt4 ? 8 : 4;  // columns in 64 bytes of a tile
    static constexpr int kOffset = kInt4 ? 8 : kInt8Offset;
};

// One step of one tile: the codes of 64 bytes, and their sum with the activations of `kTokens` tokens.
template <bool kInt4>
struct StepCodes {
    Codes low, high;
    CELLMD_INLINE explicit StepCodes(const uint8_t* from) {
        if constexpr (kInt4)
            codes_of_int4(from, low, high);
        else
            low = codes_of_int8(from);
    }
    template <int kTokens>
    CELLMD_INLINE Vi dot(Vi sum, const int8_t* activations, int token) const {
        const int8_t* first = activations + 4 * token;
        if constexpr (kInt4)
            return dot8_int4(sum, low, high, first, first + 4 * kTokens);
        else
            return dot4(sum, low, first);
    }
};

// out[token][tile][16] of kTokens tokens and kTiles tiles. scales [tile][groups][16].
template <int kTokens, int kTiles, bool kInt4>
static void tile_product(const uint8_t* const (&weights)[kTiles], const float* scales, int k, int group,
                         const int8_t* activations, const float* token_scales, const int32_t* token_sums, float* out) {
    using Tile = Tile16<kInt4>;
    const int steps = ceil_div(k, Tile::kStepColumns), group_steps = group / Tile::kStepColumns;
    const int groups = ceil_div(k, group);
    const uint8_t* from[kTiles];
    repeat<kTiles>([&](auto i) CELLMD_ALWAYS { from[i] = weights[i]; });
    repeat<kTokens * kTiles>([&](auto i) CELLMD_ALWAYS { vstore(out + 16 * i, vzero()); });
    for (int g = 0; g < groups; g++) {
        Vi sums[kTokens][kTiles];
        repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
            const Vi start = viset(-Tile::kOffset * token_sums[g * kTokens + t]);
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
            if constexpr (kTokens <= 2) repeat<kTiles>([&](auto i) CELLMD_ALWAYS { prefetch(from[i] + kPrefetchBytes); });
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
                float* to = out + (t * kTiles + i) * 16;
                vstore(to, vfma(vfloat(sums[t][i]), token_scale * row_scales[i], vload(to)));
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

// body(load), where load(i) gives 16 stored scales as float32, beginning at the i-th. Factored scales are given without
// the factors of their rows.
template <typename Body>
CELLMD_INLINE void with_scales(const IntMatrix& m, const Body& body) {
    const auto* halves = static_cast<const uint16_t*>(m.scales);
    const auto* floats = static_cast<const float*>(m.scales);
    const auto* codes = static_cast<const int8_t*>(m.scales);
    switch (m.scale_type) {
        case ScaleType::Half: return body([=](size_t i) CELLMD_ALWAYS { return vload_f16(halves + i); });
        case ScaleType::BFloat: return body([=](size_t i) CELLMD_ALWAYS { return vload_bf16(halves + i); });
        case ScaleType::Float: return body([=](size_t i) CELLMD_ALWAYS { return vload(floats + i); });
        default: return body([=](size_t i) CELLMD_ALWAYS { return vload_i8(codes + i); });
    }
}

// Scales of one tile as [groups][16] float32; a single scale a row is repeated for every group of activations.
static void expand_scales(const IntMatrix& m, int tile, float* out) {
    const size_t at = static_cast<size_t>(tile) * m.scale_groups * 16, step = m.scale_groups == 1 ? 0 : 16;
    const Vf factors = m.row_factors ? vload(m.row_factors + 16 * tile) : vset(1.0f);
    with_scales(m, [&](const auto& load) CELLMD_ALWAYS {
        for (int g = 0; g < m.groups; g++) vstore(out + 16 * g, load(at + step * g) * factors);
    });
}

CELLMD_INLINE Vf finished(Vf y, const IntMatrix& m, int first_row, int n) {
    if (m.bias) y = y + (n < 16 ? vload_first(m.bias + first_row, n) : vload(m.bias + first_row));
    return vmax(vset(m.low), vmin(vset(m.high), y));
}
CELLMD_INLINE void store_lanes(float* out, Vf y, int n) { n < 16 ? vstore_first(out, y, n) : vstore(out, y); }

// Tiles begin..end-1 for a single token: weights are used once, so what counts is that they never stop coming.
// store(tile, y) takes the outputs of a tile.
template <bool kInt4, typename Store>
CELLMD_INLINE void vector_product(const IntMatrix& m, const IntProduct& p, int begin, int end, const Store& store) {
    using Tile = Tile16<kInt4>;
    const int steps = ceil_div(m.k, Tile::kStepColumns), group_steps = m.group / Tile::kStepColumns;
    const size_t scale_step = m.scale_groups == 1 ? 0 : 16;
    with_scales(m, [&](const auto& load) CELLMD_ALWAYS {
        for (int tile = begin; tile < end; tile++) {
            const uint8_t* from = m.codes + static_cast<size_t>(tile) * 64 * steps;
            const int8_t* x = p.codes;
            size_t scales = static_cast<size_t>(tile) * m.scale_groups * 16;
            const Vf factors = m.row_factors ? vload(m.row_factors + 16 * tile) : vset(1.0f);
            Vf y = vzero();
            for (int g = 0; g < m.groups; g++, scales += scale_step) {
                // One sum would be a chain of dependent additions: two take turns.
                Vi even = viset(-Tile::kOffset * p.sums[g]), odd = vizero();
                const int n = lesser(steps - g * group_steps, group_steps);
                for (int step = 0; step + 1 < n; step += 2, from += 128, x += 2 * Tile::kStepColumns) {
                    prefetch(from + kPrefetchBytes);
                    prefetch(from + kPrefetchBytes + 64);
                    even = StepCodes<kInt4>(from).template dot<1>(even, x, 0);
                    odd = StepCodes<kInt4>(from + 64).template dot<1>(odd, x + Tile::kStepColumns, 0);
                }
                if (n % 2) {
                    even = StepCodes<kInt4>(from).template dot<1>(even, x, 0);
                    from += 64;
                    x += Tile::kStepColumns;
                }
                y = vfma(vfloat(even + odd), vset(p.scales[g]) * (load(scales) * factors), y);
            }
            store(tile, y);
        }
    });
}

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
    if (p.rows == 1) {
        vector_product<kInt4>(m, p, begin, end, [&](int tile, Vf y) CELLMD_ALWAYS {
            const int row = tile * 16, n = m.n - row;
            store_lanes(p.out + row, finished(y, m, row, n), n);
        });
        return;
    }
    const size_t tile_bytes = static_cast<size_t>(64) * ceil_div(m.k, Tile16<kInt4>::kStepColumns);
    const int at_once = tiles_at_once(m, p.rows, tile_bytes), tile_scales = 16 * m.groups;
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
    if (p.rows == 1) {
        // One matrix after the other: two streams in turns would each run dry. The second begins before the first ends.
        const uint8_t* const second = up.codes + static_cast<size_t>(begin) * 64 * ceil_div(up.k, 8);
        for (int at = 0; at < kPrefetchBytes; at += 64) prefetch(second + at);
        gemm_tile16<true>(gate, p, begin, end, scratch);
        vector_product<true>(up, p, begin, end, [&](int tile, Vf y) CELLMD_ALWAYS {
            const int row = tile * 16, n = up.n - row;
            const Vf gated = vgelu(n < 16 ? vload_first(p.out + row, n) : vload(p.out + row));
            store_lanes(p.out + row, gated * finished(y, up, row, n), n);
        });
        return;
    }
    const size_t pair_bytes = static_cast<size_t>(16) * 8 * ceil_div(gate.k, 8);
    const int at_once = greater(1, tiles_at_once(gate, p.rows, pair_bytes) / 2), pair_scales = 32 * gate.groups;
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
