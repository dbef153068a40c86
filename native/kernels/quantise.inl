// Activations to int8. What the outputs look like: kernels.h.

// A group whose largest value is smaller counts as zero: 127 / largest would not be finite. The error is below 1e-30.
constexpr float kNothing = 1e-30f;

CELLMD_INLINE Vf clipped(const float* x, int n, Vf low, Vf high) {
    const Vf v = vmax(low, vmin(high, n < 16 ? vload_first(x, n) : vload(x)));
    return n < 16 ? vlanes_between(v, 0, n, 0.0f) : v;
}

// inverse is 0 where every code is to be 0: for a group of zeros, and for one with an infinity or a NaN, whose scale is
// NaN, so that what is made of it is NaN too.
struct Step {
    float scale, inverse;
};
CELLMD_INLINE Step step_of(const float* x, int n, Vf low, Vf high) {
    Vf largest = vzero(), unbounded = vzero();
    for (int c = 0; c < n; c += 16) {
        const Vf v = clipped(x + c, n - c, low, high);
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
CELLMD_INLINE int32_t codes_of_group(const float* x, int n, Vf low, Vf high, float inverse, int8_t* codes, int rows, int row,
                                     int begin) {
    Vi sum = vizero();
    for (int c = 0; c < n; c += 16) {
        const Vf value = clipped(x + c, n - c, low, high);
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

CELLMD_INLINE void quantise_block(const QuantiseArgs& a, int rows) {
    const Vf low = vset(a.low), high = vset(a.high);
    const int groups = ceil_div(a.k, a.group);
    // A step takes long to come by and little to compute: those of several groups come together, before they are used.
    constexpr int kTogether = 16;
    Step steps[kTogether];
    for (int row = 0; row < rows; row++) {
        const float* x = a.x + row * a.row_stride;
        for (int first = 0; first < groups; first += kTogether) {
            const int last = lesser(groups, first + kTogether);
            for (int g = first; g < last; g++)
                steps[g - first] = step_of(x + g * a.group, lesser(a.group, a.k - g * a.group), low, high);
            for (int g = first; g < last; g++) {
                const Step step = steps[g - first];
                const int begin = g * a.group, n = lesser(a.group, a.k - begin);
                a.scales[g * rows + row] = step.scale;
                a.sums[g * rows + row] = codes_of_group(x + begin, n, low, high, step.inverse, a.codes, rows, row, begin);
            }
        }
        for (int c = 8 * ceil_div(a.k, 8); c < padded_columns(a.k); c += 4)
            __builtin_memset(place_of(a.codes, rows, row, c), 0, 4);
    }
}

static void quantise(const QuantiseArgs& a) {
    if (a.rows == kTokenBlock) return quantise_block(a, kTokenBlock);  // most blocks: places are constants
    quantise_block(a, a.rows);
}

static void quantise_lanes(const QuantiseLanesArgs& a) {
    const Vf low = vset(a.low), high = vset(a.high);
    const int lane_columns = a.int4 ? 8 : 4, chunk_columns = 16 * lane_columns;
    const int chunks = ceil_div(a.k, chunk_columns);
    __builtin_memset(a.codes, 0, static_cast<size_t>(chunks) * chunk_columns);
    __builtin_memset(a.sums, 0, static_cast<size_t>(chunks) * 64);
    for (int begin = 0; begin < a.k; begin += a.group) {
        const int n = lesser(a.group, a.k - begin);
        const Step step = step_of(a.x + begin, n, low, high);
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
