// Vectors of 16 lanes in plain C++, for processors without anything better, and the meaning of every vector function:
// the other files of this kind do the same with the instructions of their processor. Kernels are written once, in terms
// of these. A multiply-add is fused where the processor can; nothing else rounds differently.

struct Vf { float v[16]; };
struct Vi { int32_t v[16]; };
// Weights of 16 rows x 4 columns (or of one row x 64 columns), 4 bytes a lane, as dot4 and dot_lanes take them.
struct Codes { int8_t v[64]; };

// A multiplication kernel holds kRegisterTiles tiles of 16 rows x kRegisterTokens tokens in registers.
constexpr int kRegisterTokens = 4;
constexpr int kRegisterTiles = 1;
// What codes_of_int8 adds to a weight; kernels subtract it again by way of the sum of the activations.
constexpr int kInt8Offset = 0;

CELLMD_INLINE Vf vzero() { return {}; }
CELLMD_INLINE Vf vset(float x) {
    Vf r;
    for (float& lane : r.v) lane = x;
    return r;
}
CELLMD_INLINE Vf vload(const float* p) {
    Vf r;
    __builtin_memcpy(r.v, p, sizeof r.v);
    return r;
}
CELLMD_INLINE void vstore(float* p, Vf a) { __builtin_memcpy(p, a.v, sizeof a.v); }
// The first n lanes from memory, zeros in the others; n in 0..15. No other memory is touched.
CELLMD_INLINE Vf vload_first(const float* p, int n) {
    Vf r{};
    for (int i = 0; i < n; i++) r.v[i] = p[i];
    return r;
}
CELLMD_INLINE void vstore_first(float* p, Vf a, int n) {
    for (int i = 0; i < n; i++) p[i] = a.v[i];
}

CELLMD_INLINE Vf vload_f16(const uint16_t* p) {
    Vf r;
    for (int i = 0; i < 16; i++) r.v[i] = float_of_half(p[i]);
    return r;
}
CELLMD_INLINE Vf vload_bf16(const uint16_t* p) {
    Vf r;
    for (int i = 0; i < 16; i++) r.v[i] = float_of_bfloat(p[i]);
    return r;
}
CELLMD_INLINE Vf vload_i8(const int8_t* p) {
    Vf r;
    for (int i = 0; i < 16; i++) r.v[i] = p[i];
    return r;
}
// To the nearest half, ties to even; |a| is at most 65504.
CELLMD_INLINE void vstore_f16(uint16_t* p, Vf a) {
    for (int i = 0; i < 16; i++) p[i] = half_of_float(a.v[i]);
}
// Values in -128..127.
CELLMD_INLINE void vstore_i8(int8_t* p, Vi a) {
    for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(a.v[i]);
}

// The same of four rows: the four lanes from 4q on of each lie beside each other, 16 bytes at p + q * stride.
CELLMD_INLINE void vstore_i8_of_four(int8_t* p, int stride, Vi a, Vi b, Vi c, Vi d) {
    for (int i = 0; i < 16; i++) {
        int8_t* const to = p + i / 4 * stride + i % 4;
        to[0] = static_cast<int8_t>(a.v[i]);
        to[4] = static_cast<int8_t>(b.v[i]);
        to[8] = static_cast<int8_t>(c.v[i]);
        to[12] = static_cast<int8_t>(d.v[i]);
    }
}

#define CELLMD_LANES(type, expression)                    \
    type r;                                               \
    for (int i = 0; i < 16; i++) r.v[i] = (expression);   \
    return r
CELLMD_INLINE Vf operator+(Vf a, Vf b) { CELLMD_LANES(Vf, a.v[i] + b.v[i]); }
CELLMD_INLINE Vf operator-(Vf a, Vf b) { CELLMD_LANES(Vf, a.v[i] - b.v[i]); }
CELLMD_INLINE Vf operator*(Vf a, Vf b) { CELLMD_LANES(Vf, a.v[i] * b.v[i]); }
CELLMD_INLINE Vf operator/(Vf a, Vf b) { CELLMD_LANES(Vf, a.v[i] / b.v[i]); }
CELLMD_INLINE Vf vfma(Vf a, Vf b, Vf c) { CELLMD_LANES(Vf, a.v[i] * b.v[i] + c.v[i]); }
// Where a is not a number, b.
CELLMD_INLINE Vf vmin(Vf a, Vf b) { CELLMD_LANES(Vf, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
CELLMD_INLINE Vf vmax(Vf a, Vf b) { CELLMD_LANES(Vf, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
CELLMD_INLINE Vf vabs(Vf a) { CELLMD_LANES(Vf, __builtin_fabsf(a.v[i])); }
CELLMD_INLINE Vf vsqrt(Vf a) { CELLMD_LANES(Vf, __builtin_sqrtf(a.v[i])); }
CELLMD_INLINE Vf vcopysign(Vf a, Vf sign) { CELLMD_LANES(Vf, __builtin_copysignf(a.v[i], sign.v[i])); }
CELLMD_INLINE Vf vselect_less(Vf a, Vf b, Vf yes, Vf no) {
    CELLMD_LANES(Vf, a.v[i] < b.v[i] ? yes.v[i] : no.v[i]);
}
// Lanes from..to-1 of a, `other` in the rest; 0 <= from, to <= 16.
CELLMD_INLINE Vf vlanes_between(Vf a, int from, int to, float other) {
    CELLMD_LANES(Vf, i >= from && i < to ? a.v[i] : other);
}

CELLMD_INLINE Vi viload(const void* p) {
    Vi r;
    __builtin_memcpy(r.v, p, sizeof r.v);
    return r;
}
CELLMD_INLINE Vi vizero() { return {}; }
CELLMD_INLINE Vi viset(int32_t x) { CELLMD_LANES(Vi, x); }
CELLMD_INLINE Vi operator+(Vi a, Vi b) { CELLMD_LANES(Vi, a.v[i] + b.v[i]); }
// To the nearest integer, ties to even; |a| < 2^22. Adding 1.5 * 2^23 leaves the integer in the low bits.
CELLMD_INLINE Vi vround(Vf a) { CELLMD_LANES(Vi, rounded(a.v[i])); }
CELLMD_INLINE Vf vfloat(Vi a) { CELLMD_LANES(Vf, static_cast<float>(a.v[i])); }
// 2^n; n in -127..127, where -127 gives 0.
CELLMD_INLINE Vf vpower_of_two(Vi n) { CELLMD_LANES(Vf, float_of_bits(static_cast<uint32_t>(n.v[i] + 127) << 23)); }
#undef CELLMD_LANES

// Sum of the lanes, by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
CELLMD_INLINE float vsum(Vf a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
    return a.v[0];
}
CELLMD_INLINE float vlargest(Vf a) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
CELLMD_INLINE int32_t visum(Vi a) {
    int32_t sum = 0;
    for (int32_t lane : a.v) sum += lane;
    return sum;
}

// The low and the high nibbles of 64 bytes, each still 8 more than the weight.
CELLMD_INLINE void codes_of_int4(const uint8_t* p, Codes& low, Codes& high) {
    for (int i = 0; i < 64; i++) {
        low.v[i] = p[i] & 15;
        high.v[i] = p[i] >> 4;
    }
}
// 64 signed bytes, kInt8Offset added to each.
CELLMD_INLINE Codes codes_of_int8(const uint8_t* p) {
    Codes r;
    __builtin_memcpy(r.v, p, sizeof r.v);
    return r;
}
// Lane r: sum[r] + the 4 bytes of lane r times the 4 activations, which lie in -127..127.
CELLMD_INLINE Vi dot4(Vi sum, Codes weights, const int8_t* activations) {
    for (int r = 0; r < 16; r++)
        for (int j = 0; j < 4; j++) sum.v[r] += weights.v[4 * r + j] * activations[j];
    return sum;
}
// The same for codes of int4 and both halves at once: low with the first four, high with the second four.
CELLMD_INLINE Vi dot8_int4(Vi sum, Codes low, Codes high, const int8_t* first, const int8_t* second) {
    return dot4(dot4(sum, low, first), high, second);
}
// The same straight from memory, into two sums, which `joined_int4` makes one.
CELLMD_INLINE void add8_int4(Vi& low, Vi&, const uint8_t* p, const int8_t* activations) {
    Codes first, second;
    codes_of_int4(p, first, second);
    low = dot8_int4(low, first, second, activations, activations + 4);
}
CELLMD_INLINE Vi joined_int4(Vi low, Vi high) { return low + high; }
// Lane r: sum[r] + the 4 bytes of lane r times activations 4r..4r+3.
CELLMD_INLINE Vi dot_lanes_int4(Vi sum, Codes weights, const int8_t* activations) {
    for (int r = 0; r < 16; r++)
        for (int j = 0; j < 4; j++) sum.v[r] += weights.v[4 * r + j] * activations[4 * r + j];
    return sum;
}
CELLMD_INLINE Vi dot_lanes_int8(Vi sum, Codes weights, const int8_t* activations) {
    return dot_lanes_int4(sum, weights, activations);
}
// The compiler is to take these for others from here on.
CELLMD_INLINE void opaque(Codes& x) { asm volatile("" : "+m"(x)); }
CELLMD_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
