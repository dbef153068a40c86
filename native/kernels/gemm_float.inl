// Products with float weights in row layout, in float32. Lane i sums columns i, i + 16, i + 32, ... of one row and one
// token; the 16 lanes are summed at the end. A block of rows x tokens shares its loads.

constexpr int kFloatBlock = kTileBlock == 2 ? 4 : 2;  // rows and tokens of a block, as many as there are registers for
constexpr int kFloatTokens = 32;                      // tokens that stay in the second-level cache

template <FloatType kType>
CELLMD_INLINE Vf load_weights(const void* p, size_t at, int n) {
    if constexpr (kType == FloatType::Float) {
        const float* from = static_cast<const float*>(p) + at;
        return n < 16 ? vload_first(from, n) : vload(from);
    } else {
        const uint16_t* from = static_cast<const uint16_t*>(p) + at;
        uint16_t padded[16] = {};
        if (n < 16) {
            __builtin_memcpy(padded, from, 2 * static_cast<size_t>(n));
            from = padded;
        }
        return kType == FloatType::Half ? vload_f16(from) : vload_bf16(from);
    }
}

template <FloatType kType, int kRows, int kTokens>
static void float_block(const FloatMatrix& m, const FloatProduct& p, int row, int token) {
    Vf sums[kRows][kTokens];
    repeat<kRows>([&](auto r) CELLMD_ALWAYS { repeat<kTokens>([&](auto t) CELLMD_ALWAYS { sums[r][t] = vzero(); }); });
    const auto add_columns = [&](int column, int n) CELLMD_ALWAYS {
        Vf x[kTokens];
        repeat<kTokens>([&](auto t) CELLMD_ALWAYS {
            const float* from = p.x + (token + t) * p.x_stride + column;
            x[t] = n < 16 ? vload_first(from, n) : vload(from);
        });
        repeat<kRows>([&](auto r) CELLMD_ALWAYS {
            const Vf w = load_weights<kType>(m.data, static_cast<size_t>(row + r) * m.k + column, n);
            repeat<kTokens>([&](auto t) CELLMD_ALWAYS { sums[r][t] = vfma(w, x[t], sums[r][t]); });
        });
    };
    int column = 0;
    for (; column + 16 <= m.k; column += 16) add_columns(column, 16);
    if (column < m.k) add_columns(column, m.k - column);
    for (int r = 0; r < kRows; r++)
        for (int t = 0; t < kTokens; t++) {
            const float y = vsum(sums[r][t]) + (m.bias ? m.bias[row + r] : 0.0f);
            p.out[(token + t) * p.out_stride + row + r] = bounded(y, m.low, m.high);
        }
}

template <FloatType kType, int kRows>
static void float_rows(const FloatMatrix& m, const FloatProduct& p, int row, int first, int last) {
    int token = first;
    for (; token + kFloatBlock <= last; token += kFloatBlock) float_block<kType, kRows, kFloatBlock>(m, p, row, token);
    for (; token < last; token++) float_block<kType, kRows, 1>(m, p, row, token);
}

template <FloatType kType>
static void gemm_float_of(const FloatMatrix& m, const FloatProduct& p, int begin, int end) {
    for (int first = 0; first < p.rows; first += kFloatTokens) {
        const int last = lesser(p.rows, first + kFloatTokens);
        int row = begin;
        for (; row + kFloatBlock <= end; row += kFloatBlock) float_rows<kType, kFloatBlock>(m, p, row, first, last);
        for (; row < end; row++) float_rows<kType, 1>(m, p, row, first, last);
    }
}

static void gemm_float(const FloatMatrix& m, const FloatProduct& p, int begin, int end) {
    switch (m.type) {
        case FloatType::Half: return gemm_float_of<FloatType::Half>(m, p, begin, end);
        case FloatType::BFloat: return gemm_float_of<FloatType::BFloat>(m, p, begin, end);
        default: return gemm_float_of<FloatType::Float>(m, p, begin, end);
    }
}
