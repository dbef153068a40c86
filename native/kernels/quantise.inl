// Activations to int8. What the outputs look like: kernels.h.

// A group whose largest value is smaller counts as zero: 127 / largest would not be finite. The error is below 1e-30.
constexpr float kNothing = 1e-30f;

// What numbers are clipped to first, if to anything.
template <bool kClips>
struct Range {
    Vf low, high;
    CELLMD_INLINE Range(float low_, float high_) : low(vset(low_)), high(vset(high_)) {}
    CELLMD_INLINE Vf load(const float* x, int n) const {
        Vf v = n < 16 ? vload_first(x, n) : vload(x);
        if constexpr (kClips) {
            v = vmax(low, vmin(high, v));
            if (n < 16) v = vlanes_between(v, 0, n, 0.0f);
        }
        return v;
    }
};

// inverse is 0 where every code is to be 0: for a group of zeros, and for one with an infinity or a NaN, whose scale is
// NaN, so that what is made of it is NaN too.
struct Step {
    float scale, inverse;
};
template <bool kClips>
CELLMD_INLINE Step step_of(const float* x, int n, const Range<kClips>& range) {
    Vf largest = vzero(), unbounded = vzero();
    for (int c = 0; c < n; c += 16) {
        const Vf v = range.load(x + c, n - c);
        largest = vmax(largest, vabs(v));
        unbounded = vfma(v, vzero(), unbounded);
    }
    const float top = vlargest(largest), nothing = vsum(unbounded);
    if (!(top >= kNothing) || nothing != 0.0f) return {nothing, 0.0f};
    return {top * (1.0f / 127.0f), 127.0f / top};
}

// Where a column, a multiple of 4, of a row of a block of rows lies among the block's codes.
CELLMD_INLINE int8_t* place_of(int8_t* codes, int rows, int row, int column) {
    return codes + (column / kColumnsTogether * rows + row) * kColumnsTogether + column % kColumnsTogether;
}

// The codes of n numbers of one row from column `begin` on, and their sum.
template <bool kClips>
CELLMD_INLINE int32_t codes_of_group(const float* x, int n, const Range<kClips>& range, float inverse, int8_t* codes, int rows,
                                     int row, int begin) {
    Vi sum = vizero();
    for (int c = 0; c < n; c += 16) {
        const Vf value = range.load(x + c, n - c);
        const Vi code = inverse > 0.0f ? vround(value * vset(inverse)) : vizero();
        sum = sum + code;
        const bool in_a_piece = rows == 1 || (kColumnsTogether % 16 == 0 && begin % 16 == 0);
        if (in_a_piece && n - c >= 16) {
            vstore_i8(place_of(codes, rows, row, begin + c), code);
        } else {
            alignas(16) int8_t bytes[16];
            vstore_i8(bytes, code);
            const int quarters = 2 * ceil_div(lesser(16, n - c), 8);
            for (int q = 0; q < quarters; q++) __builtin_memcpy(place_of(codes, rows, row, begin + c + 4 * q), bytes + 4 * q, 4);
        }
    }
    return visum(sum);
}

// The same of four rows, as long as n is a multiple of 16 and no inverse is 0: a block wants their columns side by side.
template <bool kClips>
CELLMD_INLINE void codes_of_four(const float* x, size_t row_stride, int n, const Range<kClips>& range, const Step* steps,
                                 int8_t* codes, int code_stride, int32_t* sums) {
    Vi sum[4] = {vizero(), vizero(), vizero(), vizero()};
    for (int c = 0; c < n; c += 16, codes += 4 * code_stride) {
        Vi code[4];
        repeat<4>([&](auto r) CELLMD_ALWAYS {
            code[r] = vround(range.load(x + r * row_stride + c, 16) * vset(steps[r].inverse));
            sum[r] = sum[r] + code[r];
        });
        vstore_i8_of_four(codes, code_stride, code[0], code[1], code[2], code[3]);
    }
    repeat<4>([&](auto r) CELLMD_ALWAYS { sums[r] = visum(sum[r]); });
}

// Groups from..to-1 of kRows rows of a block from `row` on. x: the block's first row, from the first of these groups on.
template <int kRows, bool kClips>
CELLMD_INLINE void quantise_rows(const float* x, size_t row_stride, const QuantisedRows& block, int rows, int row, int from, int to) {
    const Range<kClips> range(block.low, block.high);
    const int group = block.group, first_column = from * group;
    x += row * row_stride;
    // A step takes long to come by and little to compute: several come together, before they are used.
    constexpr int kTogether = 16 / kRows;
    Step steps[kTogether][kRows];
    for (int first = from; first < to; first += kTogether) {
        const int last = lesser(to, first + kTogether);
        for (int g = first; g < last; g++)
            for (int r = 0; r < kRows; r++)
                steps[g - first][r] = step_of(x + r * row_stride + g * group - first_column, lesser(group, block.k - g * group), range);
        for (int g = first; g < last; g++) {
            const Step* const step = steps[g - first];
            const int begin = g * group, n = lesser(group, block.k - begin);
            const float* const numbers = x + begin - first_column;
            int32_t sums[kRows];
            bool together = kRows == 4 && n % 16 == 0;
            for (int r = 0; r < kRows; r++) together &= step[r].inverse > 0.0f;
            if (together)
                codes_of_four(numbers, row_stride, n, range, step, place_of(block.codes, rows, row, begin), 4 * rows, sums);
            else
                for (int r = 0; r < kRows; r++)
                    sums[r] = codes_of_group(numbers + r * row_stride, n, range, step[r].inverse, block.codes, rows, row + r, begin);
            for (int r = 0; r < kRows; r++) {
                block.scales[g * rows + row + r] = step[r].scale;
                block.sums[g * rows + row + r] = kSumFactor * sums[r];
            }
        }
    }
    if (to < ceil_div(block.k, group)) return;
    for (int r = 0; r < kRows; r++)
        for (int c = 8 * ceil_div(block.k, 8); c < padded_columns(block.k); c += 4)
            __builtin_memset(place_of(block.codes, rows, row + r, c), 0, 4);
}

template <bool kClips>
CELLMD_INLINE void quantise_groups(const float* x, size_t row_stride, const QuantisedRows& block, int rows, int from, int to) {
    int row = 0;
    if constexpr (kColumnsTogether == 4)
        for (; row + 4 <= rows; row += 4) quantise_rows<4, kClips>(x, row_stride, block, rows, row, from, to);
    for (; row < rows; row++) quantise_rows<1, kClips>(x, row_stride, block, rows, row, from, to);
}
static void quantise_block(const float* x, size_t row_stride, const QuantisedRows& block, int from, int to) {
    if (block.low != -infinity() || block.high != infinity())
        quantise_groups<true>(x, row_stride, block, block.rows, from, to);
    else if (block.rows == kTokenBlock)  // most blocks: places are constants
        quantise_groups<false>(x, row_stride, block, kTokenBlock, from, to);
    else
        quantise_groups<false>(x, row_stride, block, block.rows, from, to);
}

static void quantise(const float* x, size_t row_stride, const QuantisedRows& block) {
    quantise_block(x, row_stride, block, 0, ceil_div(block.k, block.group));
}

static void quantise_lanes(const QuantiseLanesArgs& a) {
    const Range<true> range(a.low, a.high);
    const int lane_columns = a.int4 ? 8 : 4, chunk_columns = 16 * lane_columns;
    const int chunks = ceil_div(a.k, chunk_columns);
    __builtin_memset(a.codes, 0, static_cast<size_t>(chunks) * chunk_columns);
    __builtin_memset(a.sums, 0, static_cast<size_t>(chunks) * 64);
    for (int begin = 0; begin < a.k; begin += a.group) {
        const int n = lesser(a.group, a.k - begin);
        const Step step = step_of(a.x + begin, n, range);
        for (int c = begin; c < begin + n; c++) {
            const int code = step.inverse > 0.0f ? rounded(bounded(a.x[c], a.low, a.high) * step.inverse) : 0;
            const int chunk = c / chunk_columns, within = c % chunk_columns;
            const int place = a.int4 ? (within & 1) * 64 + within / 2 : within;
            a.codes[chunk * chunk_columns + place] = static_cast<int8_t>(code);
            a.sums[chunk * 16 + within / lane_columns] += code;
        }
        for (int lane = begin / lane_columns; lane < ceil_div(begin + n, lane_columns); lane++) a.scales[lane] = step.scale;
    }
    for (int lane = ceil_div(a.k, lane_columns); lane < 16 * chunks; lane++) a.scales[lane] = 0.0f;
}
