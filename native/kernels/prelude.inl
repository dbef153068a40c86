// What every kernel source may use. Included inside an unnamed namespace, so that no function compiled for one instruction
// set can ever be linked in place of another's; for the same reason kernels use nothing from the standard library.

#define CELLMD_INLINE [[gnu::always_inline]] inline

// body(0), body(1), ... body(n - 1), written out: indices are constants, so arrays that are indexed by them live in
// registers. Bodies are lambdas marked CELLMD_ALWAYS.
#define CELLMD_ALWAYS __attribute__((always_inline))
template <int kIndex>
struct Index {
    constexpr operator int() const { return kIndex; }
};
template <int kFrom, int kTo, typename Body>
CELLMD_INLINE void repeat_from(const Body& body) {
    if constexpr (kFrom < kTo) {
        body(Index<kFrom>());
        repeat_from<kFrom + 1, kTo>(body);
    }
}
template <int kTimes, typename Body>
CELLMD_INLINE void repeat(const Body& body) {
    repeat_from<0, kTimes>(body);
}

// Where to fetch what is read once and then not again for long: past the caches, in which other things then stay, which gains
// a fiftieth on AMD's processors; or into them, since Intel's read at half the rate past them.
enum class Once : uint8_t { PastCaches, IntoCaches };
template <Once kOnce>
CELLMD_INLINE void prefetch_once(const void* p) {
    __builtin_prefetch(p, 0, kOnce == Once::PastCaches ? 0 : 3);
}
CELLMD_INLINE void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }
// Into the second-level cache.
CELLMD_INLINE void prefetch_later(const void* p) { __builtin_prefetch(p, 0, 2); }

CELLMD_INLINE int lesser(int a, int b) { return a < b ? a : b; }
CELLMD_INLINE int greater(int a, int b) { return a > b ? a : b; }
CELLMD_INLINE int clip(int a, int low, int high) { return lesser(greater(a, low), high); }
CELLMD_INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
// Within low..high; what is not a number stays so.
CELLMD_INLINE float bounded(float x, float low, float high) {
    x = x > high ? high : x;
    return x < low ? low : x;
}
CELLMD_INLINE float infinity() { return __builtin_inff(); }

CELLMD_INLINE float float_of_bits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}
CELLMD_INLINE uint32_t bits_of_float(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
CELLMD_INLINE float float_of_bfloat(uint16_t x) { return float_of_bits(static_cast<uint32_t>(x) << 16); }
CELLMD_INLINE float float_of_half(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16, rest = x & 0x7FFFu;
    if (rest >= 0x7C00u) return float_of_bits(sign | 0x7F800000u | ((rest & 0x3FFu) << 13));
    // Shifted into a float's places the exponent is 112 too small; a multiplication mends it, and denormals with it.
    return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}
// To the nearest, ties to even; |x| is at most 65504.
CELLMD_INLINE uint16_t half_of_float(float x) {
    const uint32_t bits = bits_of_float(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7FFFFFFFu;
    if (rest < 0x38800000u)  // below the smallest normal half: let an addition round at the right place
        return static_cast<uint16_t>(sign | (bits_of_float(float_of_bits(rest) + 0.5f) - bits_of_float(0.5f)));
    return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xFFFu + ((rest >> 13) & 1u)) >> 13));
}
// To the nearest integer, ties to even; |x| < 2^22.
CELLMD_INLINE int32_t rounded(float x) {
    return static_cast<int32_t>(bits_of_float(x + 0x1.8p23f)) - static_cast<int32_t>(bits_of_float(0x1.8p23f));
}
CELLMD_INLINE float float_at(const void* p, FloatType type, size_t i) {
    if (type == FloatType::Float) return static_cast<const float*>(p)[i];
    const uint16_t bits = static_cast<const uint16_t*>(p)[i];
    return type == FloatType::Half ? float_of_half(bits) : float_of_bfloat(bits);
}
CELLMD_INLINE float scale_at(const void* p, ScaleType type, size_t i, float row_factor) {
    switch (type) {
        case ScaleType::Half: return float_of_half(static_cast<const uint16_t*>(p)[i]);
        case ScaleType::BFloat: return float_of_bfloat(static_cast<const uint16_t*>(p)[i]);
        case ScaleType::Float: return static_cast<const float*>(p)[i];
        default: return static_cast<float>(static_cast<const int8_t*>(p)[i]) * row_factor;
    }
}
