// Products of a single token with int4 and int8 weights in tile16 layout, to the bits of gemm_tile16.inl.
//
// Every weight is used once, so what counts is that memory never has to wait. Tiles are taken in pairs, side by side, from
// two places that both go on where they are when a call ends: a processor that sees two streams asks for more.

// Bytes that scales are fetched ahead of their use: weights, which there are far more of, outrun them.
constexpr int kScalesAhead = 256;

// A tile and its scales, on the way.
template <bool kInt4, Once kOnce, typename Stored>
struct Stream {
    Stored scales;
    const uint8_t* codes;
    size_t scale;
    Vf factors, y = vzero();
    CELLMD_INLINE Stream(const IntMatrix& m, int tile)
        : scales{m.scales},
          codes(tile_of<kInt4>(m, tile)),
          scale(static_cast<size_t>(tile) * m.scale_groups * 16),
          factors(m.row_factors ? vload(m.row_factors + 16 * tile) : vset(1.0f)) {
        if (m.row_factors) prefetch_once<kOnce>(m.row_factors + 16 * (tile + 1));
    }
};

// Sets y of tiles of matrices that have k, groups and scale_groups of m.
template <bool kInt4, Once kOnce, typename... Streams>
CELLMD_INLINE void multiply_side_by_side(const IntMatrix& m, const IntProduct& p, Streams&... streams) {
    using Tile = Tile16<kInt4>;
    const int steps = ceil_div(m.k, Tile::kStepColumns), group_steps = m.group / Tile::kStepColumns;
    const size_t scale_step = m.scale_groups == 1 ? 0 : 16;
    const int8_t* x = p.codes;
    for (int g = 0; g < m.groups; g++) {
        const Vi start = viset(Tile::kStart * p.sums[g]);
        const Vf token_scale = vset(p.scales[g]);
        StreamSums<kInt4> sums[sizeof...(streams)];
        const auto advance = [&](auto) CELLMD_ALWAYS {
            int i = 0;
            ((prefetch_once<kOnce>(streams.codes + kPrefetchBytes), sums[i++].add(streams.codes, x), streams.codes += 64), ...);
            x += Tile::kStepColumns;
        };
        int left = lesser(steps - g * group_steps, group_steps);
        for (; left >= 4; left -= 4) repeat<4>(advance);
        for (; left > 0; left--) advance(0);
        int i = 0;
        const auto close = [&](auto& stream) CELLMD_ALWAYS {
            prefetch_once<kOnce>(reinterpret_cast<const char*>(stream.scales.at(stream.scale)) + kScalesAhead);
            const Vf row_scales = stream.scales(stream.scale) * stream.factors;
            stream.y = vfma(vfloat(start + sums[i++].total()), token_scale * row_scales, stream.y);
            stream.scale += scale_step;
        };
        (close(streams), ...);
    }
}

// Pairs begin..end-1: tile i and tile i of the second half. The last one may lack its second.
template <bool kInt4, Once kOnce>
static void gemv_tile16(const IntMatrix& m, const IntProduct& p, int begin, int end) {
    const int tiles = ceil_div(m.n, 16), half = ceil_div(tiles, 2);
    const auto store = [&](int tile, Vf y) CELLMD_ALWAYS {
        const int row = tile * 16, n = m.n - row;
        store_lanes(p.out + row, finished(y, m, row, n), n);
    };
    with_scales(m, [&]<typename Stored>(Stored) CELLMD_ALWAYS {
        for (int tile = begin; tile < end; tile++) {
            Stream<kInt4, kOnce, Stored> first(m, tile);
            if (tile + half == tiles) {
                multiply_side_by_side<kInt4, kOnce>(m, p, first);
            } else {
                Stream<kInt4, kOnce, Stored> second(m, tile + half);
                multiply_side_by_side<kInt4, kOnce>(m, p, first, second);
                store(tile + half, second.y);
            }
            store(tile, first.y);
        }
    });
}

template <Once kOnce>
static void gemv_int4_geglu(const IntMatrix& gate, const IntMatrix& up, const IntProduct& p, int begin, int end) {
    with_scales(gate, [&]<typename Stored>(Stored) CELLMD_ALWAYS {
        for (int tile = begin; tile < end; tile++) {
            Stream<true, kOnce, Stored> first(gate, tile), second(up, tile);
            multiply_side_by_side<true, kOnce>(gate, p, first, second);
            const int row = tile * 16, n = gate.n - row;
            store_lanes(p.out + row, vgelu(finished(first.y, gate, row, n)) * finished(second.y, up, row, n), n);
        }
    });
}
