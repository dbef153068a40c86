// Products with int4 and int8 weights in row layout: files of version 1. Lanes hold neighbouring columns of one row, 64
// bytes of weights a step; integer sums are exact within a step, steps are scaled and added in ascending order. Rows of
// weights are taken a few at a time, each with every token while it is in the nearest cache.

template <bool kInt4>
CELLMD_INLINE Vf lanes_step(Vf sum, const Codes& low, const Codes& high, const int8_t* codes, Vf token_scales,
                            const int32_t* sums, Vf row_scales) {
    alignas(64) int32_t start[16];
    for (int i = 0; i < 16; i++) start[i] = (kInt4 ? -8 : -kInt8Offset) * sums[i];
    Vi product;
    static_assert(sizeof product == sizeof start);
    __builtin_memcpy(&product, start, sizeof start);
    if constexpr (kInt4)
        product = dot_lanes_int4(dot_lanes_int4(product, low, codes), high, codes + 64);
    else
        product = dot_lanes_int8(product, low, codes);
    return vfma(vfloat(product), token_scales * row_scales, sum);
}

template <bool kInt4>
static void gemm_row(const IntMatrix& m, const IntProduct& p, int begin, int end) {
    constexpr int kLaneColumns = kInt4 ? 8 : 4, kChunkColumns = 16 * kLaneColumns;
    const int chunks = ceil_div(m.k, kChunkColumns), row_bytes = kInt4 ? ceil_div(m.k, 2) : m.k;
    for (int row = begin; row < end; row++) {
        const uint8_t* weights = m.codes + static_cast<size_t>(row) * row_bytes;
        const size_t scales_at = static_cast<size_t>(row) * m.scale_groups;
        const float factor = m.row_factors ? m.row_factors[row] : 1.0f;
        for (int first = 0; first < p.rows; first += 4) {
            const int tokens = lesser(4, p.rows - first);
            Vf sums[4] = {vzero(), vzero(), vzero(), vzero()};
            for (int chunk = 0; chunk < chunks; chunk++) {
                const uint8_t* bytes = weights + 64 * chunk;
                uint8_t padded[64] = {};
                if (row_bytes - 64 * chunk < 64) {
                    __builtin_memcpy(padded, bytes, row_bytes - 64 * chunk);
                    bytes = padded;
                }
                Codes low, high;
                if constexpr (kInt4)
                    codes_of_int4(bytes, low, high);
                else
                    low = high = codes_of_int8(bytes);
                Vf row_scales;
                const int first_column = chunk * kChunkColumns;
                if (m.scale_groups == 1 || m.group >= kChunkColumns) {
                    const int g = m.scale_groups == 1 ? 0 : first_column / m.group;
                    row_scales = vset(scale_at(m.scales, m.scale_type, scales_at + g, factor));
                } else {
                    alignas(64) float lanes[16];
                    for (int i = 0; i < 16; i++) {
                        const int g = lesser((first_column + i * kLaneColumns) / m.group, m.scale_groups - 1);
                        lanes[i] = scale_at(m.scales, m.scale_type, scales_at + g, factor);
                    }
                    row_scales = vload(lanes);
                }
                for (int t = 0; t < tokens; t++) {
                    const size_t at = static_cast<size_t>(first + t) * chunks + chunk;
                    sums[t] = lanes_step<kInt4>(sums[t], low, high, p.codes + at * kChunkColumns, vload(p.scales + at * 16),
                                                p.sums + at * 16, row_scales);
                }
            }
            for (int t = 0; t < tokens; t++) {
                const float y = vsum(sums[t]) + (m.bias ? m.bias[row] : 0.0f);
                p.out[(first + t) * p.out_stride + row] = bounded(y, m.low, m.high);
            }
        }
    }
}
