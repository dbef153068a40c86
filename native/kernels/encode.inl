// Rows of weights to codes and scales. The specification is quant/matrix.py and what it names: every number here is made
// of the same operations in the same order, so that the bytes are the same on every machine. Sums over a group go by lane,
// column k to lane k % 16, and join as vsum joins lanes; nothing is fused but where products are exact.

// A group without a larger weight is stored as zeros.
constexpr float kNegligibleWeight = 0x1p-100f;
// Weights lie on a grid if they are this near to it, as a part of their code (quant/grid.py); sums that a scale is found
// by are rounded by less than kSumRounding.
constexpr float kGridTolerance = 0x1p-6f, kSumRounding = 0x1p-20f;
constexpr float kLargestHalf = 65504.0f, kSmallestHalf = 0x1p-24f;
// Numbers from here on become an infinite half.
constexpr float kBeyondHalf = 65520.0f;
// A scale that must reach the largest weight may fall short of it by this much.
constexpr float kScaleReach = 1.0f + 1.0f / 256.0f;
constexpr float kScaleSteps = 127.0f;

struct Codebook {
    float low, high;
};
CELLMD_INLINE Codebook codebook_of(bool int4) { return int4 ? Codebook{-8.0f, 7.0f} : Codebook{-128.0f, 127.0f}; }

CELLMD_INLINE float inverse_of(float scale) { return scale != 0.0f ? 1.0f / scale : 0.0f; }
// The weight of the largest magnitude; of two opposite ones the positive.
CELLMD_INLINE float signed_largest(EncodeExtremes e) { return -e.low > e.high ? e.low : e.high; }
CELLMD_INLINE float magnitude_of(EncodeExtremes e) { return -e.low > e.high ? -e.low : e.high; }

CELLMD_INLINE EncodeExtremes extremes_of(const float* w, int n) {
    Vf low = vload(w), high = low, unbounded = vzero();
    for (int i = 0; i < n; i += 16) {
        const Vf v = vload(w + i);
        low = vmin(low, v);
        high = vmax(high, v);
        unbounded = vfma(v, vzero(), unbounded);
    }
    return {-vlargest(vzero() - low), vlargest(high), vsum(unbounded) == 0.0f};
}

// The row's weights as floats, zeros up to the end of the last group.
CELLMD_INLINE void widen_row(const EncodeRowArgs& a, int n) {
    int i = 0;
    for (; i + 16 <= a.k; i += 16)
        vstore(a.weights + i, a.bfloat ? vload_bf16(static_cast<const uint16_t*>(a.row) + i) : vload(static_cast<const float*>(a.row) + i));
    const FloatType type = a.bfloat ? FloatType::BFloat : FloatType::Float;
    for (; i < a.k; i++) a.weights[i] = float_at(a.row, type, static_cast<size_t>(i));
    for (; i < n; i++) a.weights[i] = 0.0f;
}

// ---- weights that lie on a grid already ----

CELLMD_INLINE bool on_grid(const float* w, int n, float inverse) {
    const Vf factor = vset(inverse), tolerance = vset(kGridTolerance);
    for (int i = 0; i < n; i += 16) {
        const Vf steps = vload(w + i) * factor, codes = vfloat(vround(steps));
        if (vlargest(vabs(steps - codes) - tolerance * vabs(codes)) > 0.0f || vlargest(codes) > 7.0f) return false;
    }
    return true;
}

// What weights of fixed codes are best multiplied by: sum(w c) / sum(c c).
CELLMD_INLINE float grid_quotient(const float* w, int n, float inverse) {
    const Vf factor = vset(inverse);
    Vf product = vzero(), energy = vzero();
    for (int i = 0; i < n; i += 16) {
        const Vf v = vload(w + i), codes = vfloat(vround(v * factor));
        product = product + v * codes;
        energy = vfma(codes, codes, energy);
    }
    return vsum(product) / vsum(energy);
}

// Whether a group lies on a grid; its scale.
CELLMD_INLINE bool grid_scale(const float* w, int n, EncodeExtremes e, float* scale) {
    const float largest = signed_largest(e), magnitude = magnitude_of(e);
    *scale = 0.0f;
    if (magnitude <= kNegligibleWeight) return true;
    bool found = false;
    for (int step = 1; step <= 8; step++) {
        const float candidate = step == 8 ? largest / -8.0f : magnitude / static_cast<float>(step);
        const float inverse = inverse_of(candidate);
        if (candidate == 0.0f || !on_grid(w, n, inverse)) continue;
        const float quotient = grid_quotient(w, n, inverse), size = __builtin_fabsf(quotient);
        const float half = float_of_half(half_of_float(bounded(quotient, -kLargestHalf, kLargestHalf)));
        const bool is_half = __builtin_fabsf(quotient - half) <= kSumRounding * size;
        if (!found || is_half) *scale = quotient;
        found = true;
        if (is_half) break;
    }
    return found;
}

// ---- the search for the scale of least squared error ----

struct Candidate {
    float gain, scale;
};
// kCount candidates at once; the best of them and of the one before, the first of equals.
template <int kCount>
CELLMD_INLINE Candidate better_of(const float* w, int n, const float* candidates, Candidate best) {
    Vf factor[kCount], product[kCount], energy[kCount];
    repeat<kCount>([&](auto c) CELLMD_ALWAYS {
        factor[c] = vset(inverse_of(candidates[c]));
        product[c] = energy[c] = vzero();
    });
    const Vf low = vset(-8.0f), high = vset(7.0f);
    for (int i = 0; i < n; i += 16) {
        const Vf v = vload(w + i);
        repeat<kCount>([&](auto c) CELLMD_ALWAYS {
            const Vf code = vfloat(vround(vmax(low, vmin(high, v * factor[c]))));
            product[c] = product[c] + v * code;
            energy[c] = vfma(code, code, energy[c]);
        });
    }
    repeat<kCount>([&](auto c) CELLMD_ALWAYS {
        const float sum = vsum(product[c]), squares = vsum(energy[c]);
        const float quotient = sum / (squares < 1.0f ? 1.0f : squares), gain = sum * quotient;
        if (gain > best.gain) best = {gain, quotient};
    });
    return best;
}

constexpr int kCandidatesAtOnce = 3;
CELLMD_INLINE float searched_scale(const EncodeRowArgs& a, const float* w, int n, EncodeExtremes e) {
    const float widest = signed_largest(e) / -8.0f;
    float candidates[kMaxCandidates];
    int count = 0;
    for (; count < a.n_shrinks; count++) candidates[count] = widest * a.shrinks[count];
    candidates[count++] = magnitude_of(e) / 7.0f;  // weights on a symmetric grid, -7..7, are found as they are
    Candidate best = {-1.0f, 0.0f};
    int i = 0;
    for (; i + kCandidatesAtOnce <= count; i += kCandidatesAtOnce)
        best = better_of<kCandidatesAtOnce>(w, n, candidates + i, best);
    for (; i < count; i++) best = better_of<1>(w, n, candidates + i, best);
    return best.scale;
}

// The scale wished for each group, into a.scales.
static void wished_scales(const EncodeRowArgs& a, int n, const EncodeExtremes* extremes) {
    if (a.int4 && a.n_shrinks) {
        int g = 0;
        while (g < a.groups && grid_scale(a.weights + static_cast<size_t>(g) * n, n, extremes[g], a.scales + g)) g++;
        if (g == a.groups) return;
    }
    for (int g = 0; g < a.groups; g++) {
        const EncodeExtremes e = extremes[g];
        if (magnitude_of(e) <= kNegligibleWeight)
            a.scales[g] = 0.0f;
        else if (!a.int4)
            a.scales[g] = magnitude_of(e) / 127.0f;
        else if (!a.n_shrinks)
            a.scales[g] = signed_largest(e) / -8.0f;
        else
            a.scales[g] = searched_scale(a, a.weights + static_cast<size_t>(g) * n, n, e);
    }
}

// ---- scales as they are stored ----

// The nearest half, but never 0; one that must reach is not smaller by more than kScaleReach.
CELLMD_INLINE uint16_t stored_half(float scale, bool must_reach) {
    const float size = __builtin_fabsf(scale);
    const uint16_t sign = scale < 0.0f ? 0x8000u : 0u;
    if (size == 0.0f) return 0;
    uint16_t half = size < kSmallestHalf ? 1 : size < kBeyondHalf ? half_of_float(size) : 0x7C00u;
    if (must_reach && size > float_of_half(half) * kScaleReach) half++;
    return sign | half;
}
CELLMD_INLINE uint16_t stored_bfloat(float scale) {
    const uint32_t bits = bits_of_float(scale);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Stores the scales and leaves in a.scales what they are read as.
static void store_scales(const EncodeRowArgs& a) {
    float factor = 0.0f;
    if (a.scale_type == ScaleType::Factored) {
        for (int g = 0; g < a.groups; g++) factor = __builtin_fabsf(a.scales[g]) > factor ? __builtin_fabsf(a.scales[g]) : factor;
        factor = factor / kScaleSteps;
        *a.row_factor = factor;
    }
    const float inverse = inverse_of(factor);
    for (int g = 0; g < a.groups; g++) {
        const size_t place = static_cast<size_t>(g) * a.stored_stride;
        const float scale = a.scales[g], size = __builtin_fabsf(scale);
        switch (a.scale_type) {
            case ScaleType::Half: static_cast<uint16_t*>(a.stored)[place] = stored_half(scale, !a.int4); break;
            case ScaleType::BFloat: static_cast<uint16_t*>(a.stored)[place] = stored_bfloat(scale); break;
            case ScaleType::Float: static_cast<float*>(a.stored)[place] = scale; break;
            default: {
                const float steps = size * inverse;
                float code = bounded(static_cast<float>(rounded(bounded(steps, 0.0f, 128.0f))), size > 0.0f ? 1.0f : 0.0f, kScaleSteps);
                if (!a.int4 && steps > code * kScaleReach) code += 1.0f;
                static_cast<int8_t*>(a.stored)[place] = static_cast<int8_t>(scale < 0.0f ? -code : code);
            }
        }
        a.scales[g] = scale_at(a.stored, a.scale_type, place, factor);
    }
}

static void encode_row(const EncodeRowArgs& a, EncodeSums& sums) {
    const int n = ceil_div(a.group, 16) * 16;  // columns of a group here; only a group of a whole row is padded
    widen_row(a, a.groups * n);
    for (int g = 0; g < a.groups; g++) {
        const EncodeExtremes e = extremes_of(a.weights + static_cast<size_t>(g) * n, n);
        sums.finite &= e.finite;
        sums.largest = magnitude_of(e) > sums.largest ? magnitude_of(e) : sums.largest;
        a.extremes[g] = e;
    }
    if (!sums.finite) return;
    wished_scales(a, n, a.extremes);
    store_scales(a);
    const Codebook book = codebook_of(a.int4);
    const Vf low = vset(book.low), high = vset(book.high);
    for (int g = 0; g < a.groups; g++) {
        const float* w = a.weights + static_cast<size_t>(g) * n;
        sums.in_range &= __builtin_fabsf(a.scales[g]) < infinity();
        const Vf scale = vset(a.scales[g]), inverse = vset(inverse_of(a.scales[g]));
        Vf error = vzero(), signal = vzero(), most = vzero();
        for (int i = 0; i < n; i += 16) {
            const Vf v = vload(w + i);
            const Vi code = vround(vmax(low, vmin(high, v * inverse)));
            vstore_i8(a.codes + static_cast<size_t>(g) * n + i, code);
            const Vf difference = vfloat(code) * scale - v;
            most = vmax(most, vabs(difference));
            error = error + difference * difference;
            signal = signal + v * v;
        }
        const float largest = vlargest(most);
        sums.max_abs = largest > sums.max_abs ? largest : sums.max_abs;
        sums.error += static_cast<double>(vsum(error));
        sums.signal += static_cast<double>(vsum(signal));
    }
}
