// Products with int4 and int8 weights in tile16 layout.
//
// Sums within a group of columns are exact integers; per group they are scaled and added to a float32 sum, groups in
// ascending order. So an output's bits do not depend on how many tokens or tiles are computed together, nor on what
// multiplies them, vectors or a processor's own tiles.

// Stored scales: 16 as float32, beginning at the i-th, and where that lies. Factored ones come without the factors of
// their rows.
template <ScaleType kType>
struct Scales {
    const void* stored;
    CELLMD_INLINE const auto* at(size_t i) const {
        if constexpr (kType == ScaleType::Float)
            return static_cast<const float*>(stored) + i;
        else if constexpr (kType == ScaleType::Factored)
            return static_cast<const int8_t*>(stored) + i;
        else
            return static_cast<const uint16_t*>(stored) + i;
    }
    CELLMD_INLINE Vf operator()(size_t i) const {
        if constexpr (kType == ScaleType::Half) return vload_f16(at(i));
        if constexpr (kType == ScaleType::BFloat) return vload_bf16(at(i));
        if constexpr (kType == ScaleType::Float) return vload(at(i));
        if constexpr (kType == ScaleType::Factored) return vload_i8(at(i));
    }
};

template <typename Body>
CELLMD_INLINE void with_scales(const IntMatrix& m, const Body& body) {
    switch (m.scale_type) {
        case ScaleType::Half: return body(Scales<ScaleType::Half>{m.scales});
        case ScaleType::BFloat: return body(Scales<ScaleType::BFloat>{m.scales});
        case ScaleType::Float: return body(Scales<ScaleType::Float>{m.scales});
        default: return body(Scales<ScaleType::Factored>{m.scales});
    }
}

// Scales of one tile as [groups][16] float32; a single scale a row is repeated for every group of activations.
static void expand_scales(const IntMatrix& m, int tile, float* out) {
    const size_t at = static_cast<size_t>(tile) * m.scale_groups * 16, step = m.scale_groups == 1 ? 0 : 16;
    const Vf factors = m.row_factors ? vload(m.row_factors + 16 * tile) : vset(1.0f);
    with_scales(m, [&](const auto& scales) CELLMD_ALWAYS {
        for (int g = 0; g < m.groups; g++) vstore(out + 16 * g, scales(at + step * g) * factors);
    });
}

CELLMD_INLINE Vf finished(Vf y, const IntMatrix& m, int first_row, int n) {
    if (m.bias) y = y + (n < 16 ? vload_first(m.bias + first_row, n) : vload(m.bias + first_row));
    return vmax(vset(m.low), vmin(vset(m.high), y));
}
// Whether `finished` changes nothing.
CELLMD_INLINE bool is_plain(const IntMatrix& m) { return !m.bias && m.low == -infinity() && m.high == infinity(); }
CELLMD_INLINE void store_lanes(float* out, Vf y, int n) { n < 16 ? vstore_first(out, y, n) : vstore(out, y); }

// Activations of all tokens that fit the second-level cache stay there while tiles come and go. Beyond that it is the
// tiles that stay, some of them, while the activations pass.
constexpr size_t kActivationBytes = 768 << 10, kWeightBytes = 384 << 10;
CELLMD_INLINE int most_tiles(size_t tile_bytes) {
    return clip(static_cast<int>(kWeightBytes / tile_bytes) / kTileBlock * kTileBlock, kTileBlock, kTilesOfScratch);
}
CELLMD_INLINE int tiles_at_once(const IntMatrix& m, int rows, size_t tile_bytes) {
    return static_cast<size_t>(rows) * m.k <= kActivationBytes ? kTileBlock : most_tiles(tile_bytes);
}

// Tiles while tokens pass: weights as tile_product_of takes them, scales expanded.
class AtWork {
   public:
    AtWork(const IntMatrix& m, float* scratch) : scales_size_(16 * m.groups), scales_(scratch) {}
    template <bool kInt4>
    void take(int i, const IntMatrix& m, int tile) {
        auto* const room = reinterpret_cast<uint8_t*>(scales_ + kTilesOfScratch * scales_size_);
        weights_[i] = weights_of<kInt4>(m, tile, room + i * weight_bytes<kInt4>(m.k));
        expand_scales(m, tile, scales_ + i * scales_size_);
    }
    const uint8_t* const* weights(int i) const { return weights_ + i; }
    const float* scales(int i) const { return scales_ + i * scales_size_; }

   private:
    int scales_size_;
    float* scales_;  // [tile][groups][16] for kTilesOfScratch tiles; then room for unpacked weights
    const uint8_t* weights_[kTilesOfScratch];
};

static size_t gemm_scratch(const IntMatrix& m) {
    const size_t scales = static_cast<size_t>(kTilesOfScratch * 16) * m.groups, bytes = weight_bytes<true>(m.k);
    return scales + (kUnpacksWeights ? kTilesOfScratch * bytes / sizeof(float) : 0);  // unpacked int4 is as large as int8
}

// Sums [token][tile][16], tokens `stride` floats apart, of the block of tokens that begins at `first`, for kTiles tiles
// beginning with the i-th at work.
template <int kTiles, bool kInt4>
CELLMD_INLINE int block_sums(const IntMatrix& m, const IntProduct& p, const AtWork& tiles, int i, int first, float* sums,
                             size_t stride) {
    const int tokens = lesser(kTokenBlock, p.rows - first);
    tile_product_of<kTiles, kInt4>(tokens, tiles.weights(i), tiles.scales(i), m.k, m.group,
                                   p.codes + static_cast<size_t>(first) * padded_columns(m.k), p.scales + first * m.groups,
                                   p.sums + first * m.groups, sums, stride);
    return tokens;
}

template <int kTiles, bool kInt4>
CELLMD_INLINE void block_product(const IntMatrix& m, const IntProduct& p, const AtWork& tiles, int i, int tile, int first) {
    float* const out = p.out + first * p.out_stride + tile * 16;
    const int block = lesser(kTokenBlock, p.rows - first);
    for (int t = 0; t < block; t++)
        for (int j = 0; j < kTiles; j++) prefetch_to_write(out + t * p.out_stride + 16 * j);
    if (is_plain(m) && (tile + kTiles) * 16 <= m.n) {
        block_sums<kTiles, kInt4>(m, p, tiles, i, first, out, p.out_stride);
        return;
    }
    alignas(64) float sums[kTokenBlock * kTiles * 16];
    const int tokens = block_sums<kTiles, kInt4>(m, p, tiles, i, first, sums, kTiles * 16);
    for (int t = 0; t < tokens; t++)
        for (int j = 0; j < kTiles; j++) {
            const int row = (tile + j) * 16, n = m.n - row;
            const Vf y = finished(vload(sums + (t * kTiles + j) * 16), m, row, n);
            store_lanes(p.out + (first + t) * p.out_stride + row, y, n);
        }
}

// While blocks of tokens pass, the tiles begin..end-1 that come next, perhaps with another call, are fetched from memory, a
// part with each block.
struct NextTiles {
    const uint8_t* begin;
    size_t part;  // bytes
    template <bool kInt4>
    CELLMD_INLINE static NextTiles of(const IntMatrix& m, int begin, int end, int rows) {
        const auto blocks = static_cast<size_t>(ceil_div(rows, kTokenBlock));
        end = lesser(end, ceil_div(m.n, 16));
        return {tile_of<kInt4>(m, begin), (end - begin) * tile_bytes<kInt4>(m.k) / blocks};
    }
    CELLMD_INLINE void fetch() {
        for (size_t at = 0; at < part; at += 64) prefetch_later(begin + at);
        begin += part;
    }
};

template <bool kInt4>
static void gemm_tile16(const IntMatrix& m, const IntProduct& p, int begin, int end, float* scratch) {
    AtWork tiles(m, scratch);
    BlockUnit unit(m.group);
    const int at_once = tiles_at_once(m, p.rows, weight_bytes<kInt4>(m.k));
    for (int from = begin; from < end; from += at_once) {
        const int to = lesser(end, from + at_once);
        for (int tile = from; tile < to; tile++) tiles.take<kInt4>(tile - from, m, tile);
        NextTiles next = NextTiles::of<kInt4>(m, to, to + at_once, p.rows);
        for (int first = 0; first < p.rows; first += kTokenBlock) {
            next.fetch();
            unit.expect(lesser(kTokenBlock, p.rows - first));
            int tile = from;
            if constexpr (kTileBlock == 2)
                for (; tile + 1 < to; tile += 2) block_product<2, kInt4>(m, p, tiles, tile - from, tile, first);
            for (; tile < to; tile++) block_product<1, kInt4>(m, p, tiles, tile - from, tile, first);
        }
    }
}

// gelu(gate) * up for one tile, the i-th of `tiles` of the gate and the one after it, and the block of tokens that begins at
// `first`: out[token][16], `stride` floats apart.
static void geglu_block(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, const AtWork& tiles, int i, int tile,
                        int first, float* out, size_t stride) {
    alignas(64) float sums[kTokenBlock * 2 * 16];
    int token_stride = 2, up_at = 1;  // in vectors: between tokens, from gate to up
    int tokens;
    if (kTileBlock == 2 && p.rows - first > 1) {
        tokens = block_sums<2, true>(gate, p, tiles, i, first, sums, 32);
    } else {
        token_stride = 1;
        up_at = kTokenBlock;
        block_sums<1, true>(gate, p, tiles, i, first, sums, 16);
        tokens = block_sums<1, true>(up, p, tiles, i + 1, first, sums + up_at * 16, 16);
    }
    const int row = tile * 16, n = gate.n - row;
    const bool plain = is_plain(gate) && is_plain(up);
    for (int t = 0; t < tokens; t++) {
        Vf y = vload(sums + t * token_stride * 16), z = vload(sums + (t * token_stride + up_at) * 16);
        if (!plain) {
            y = finished(y, gate, row, n);
            z = finished(z, up, row, n);
        }
        store_lanes(out + t * stride, vgelu(y) * z, n);
    }
}

// body(tiles at work, from, to, first) for `pairs` tiles of both matrices at a time and every block of tokens.
template <typename Body>
CELLMD_INLINE void geglu_tiles(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, int begin, int end, int pairs,
                               float* scratch, const Body& body) {
    AtWork tiles(gate, scratch);
    BlockUnit unit(gate.group);
    for (int from = begin; from < end; from += pairs) {
        const int to = lesser(end, from + pairs);
        for (int tile = from; tile < to; tile++) {
            tiles.take<true>(2 * (tile - from), gate, tile);
            tiles.take<true>(2 * (tile - from) + 1, up, tile);
        }
        NextTiles next_gate = NextTiles::of<true>(gate, to, to + pairs, p.rows);
        NextTiles next_up = NextTiles::of<true>(up, to, to + pairs, p.rows);
        for (int first = 0; first < p.rows; first += kTokenBlock) {
            next_gate.fetch();
            next_up.fetch();
            unit.expect(lesser(kTokenBlock, p.rows - first));
            body(tiles, from, to, first);
        }
    }
}

static void gemm_int4_geglu(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, int begin, int end,
                            float* scratch) {
    const int pairs = greater(1, tiles_at_once(gate, p.rows, 2 * weight_bytes<true>(gate.k)) / 2);
    geglu_tiles(gate, up, p, begin, end, pairs, scratch, [&](const AtWork& tiles, int from, int to, int first) CELLMD_ALWAYS {
        for (int tile = from; tile < to; tile++)
            geglu_block(gate, up, p, tiles, 2 * (tile - from), tile, first, p.out + first * p.out_stride + tile * 16, p.out_stride);
    });
}

static void gemm_int4_geglu_codes(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, const QuantisedRows& to,
                                  int begin, int end, float* scratch) {
    alignas(64) float gated[kTokenBlock * kGatedTiles * 16];
    constexpr size_t kStride = kGatedTiles * 16;
    const int groups = ceil_div(to.k, to.group);
    geglu_tiles(gate, up, p, begin, end, kGatedTiles, scratch, [&](const AtWork& tiles, int from, int last, int first) CELLMD_ALWAYS {
        for (int tile = from; tile < last; tile++)
            geglu_block(gate, up, p, tiles, 2 * (tile - from), tile, first, gated + (tile - from) * 16, kStride);
        const QuantisedRows block{.rows = lesser(kTokenBlock, p.rows - first), .k = to.k, .group = to.group, .low = to.low,
                                  .high = to.high, .codes = to.codes + static_cast<size_t>(first) * padded_columns(to.k),
                                  .scales = to.scales + first * groups, .sums = to.sums + first * groups};
        quantise_block(gated, kStride, block, from * 16 / to.group, lesser(groups, last * 16 / to.group + (last * 16 % to.group > 0)));
    });
}
