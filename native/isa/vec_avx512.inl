// Vectors of 16 lanes: AVX-512 (F, BW, DQ, VL, VNNI). What each function means: isa/vec_scalar.inl.

struct Vf { __m512 v; };
struct Vi { __m512i v; };
struct Codes { __m512i v; };

constexpr int kRegisterTokens = 8;
constexpr int kRegisterTiles = 2;
constexpr int kInt8Offset = 128;

CELLMD_INLINE Vf vzero() { return {_mm512_setzero_ps()}; }
CELLMD_INLINE Vf vset(float x) { return {_mm512_set1_ps(x)}; }
CELLMD_INLINE Vf vload(const float* p) { return {_mm512_loadu_ps(p)}; }
CELLMD_INLINE void vstore(float* p, Vf a) { _mm512_storeu_ps(p, a.v); }
CELLMD_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
CELLMD_INLINE Vf vload_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
CELLMD_INLINE void vstore_first(float* p, Vf a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

CELLMD_INLINE Vf vload_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
CELLMD_INLINE Vf vload_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
CELLMD_INLINE Vf vload_i8(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
CELLMD_INLINE void vstore_f16(uint16_t* p, Vf a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
CELLMD_INLINE void vstore_i8(int8_t* p, Vi a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
CELLMD_INLINE void vstore_i8_of_four(int8_t* p, int stride, Vi a, Vi b, Vi c, Vi d) {
    // packs works within 128 bits
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm512_extracti32x4_epi32(bytes, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * stride), _mm512_extracti32x4_epi32(bytes, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * stride), _mm512_extracti32x4_epi32(bytes, 3));
}

CELLMD_INLINE Vf operator+(Vf a, Vf b) { return {_mm512_add_ps(a.v, b.v)}; }
CELLMD_INLINE Vf operator-(Vf a, Vf b) { return {_mm512_sub_ps(a.v, b.v)}; }
CELLMD_INLINE Vf operator*(Vf a, Vf b) { return {_mm512_mul_ps(a.v, b.v)}; }
CELLMD_INLINE Vf operator/(Vf a, Vf b) { return {_mm512_div_ps(a.v, b.v)}; }
CELLMD_INLINE Vf vfma(Vf a, Vf b, Vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
CELLMD_INLINE Vf vmin(Vf a, Vf b) { return {_mm512_min_ps(a.v, b.v)}; }
CELLMD_INLINE Vf vmax(Vf a, Vf b) { return {_mm512_max_ps(a.v, b.v)}; }
CELLMD_INLINE Vf vabs(Vf a) { return {_mm512_abs_ps(a.v)}; }
CELLMD_INLINE Vf vsqrt(Vf a) { return {_mm512_sqrt_ps(a.v)}; }
CELLMD_INLINE Vf vcopysign(Vf a, Vf sign) {
    return {_mm512_or_ps(vabs(a).v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.0f)))};
}
CELLMD_INLINE Vf vselect_less(Vf a, Vf b, Vf yes, Vf no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
CELLMD_INLINE Vf vlanes_between(Vf a, int from, int to, float other) {
    const __mmask16 in = static_cast<__mmask16>(first_lanes(to) & ~first_lanes(from));
    return {_mm512_mask_blend_ps(in, _mm512_set1_ps(other), a.v)};
}

CELLMD_INLINE Vi viload(const void* p) { return {_mm512_loadu_si512(p)}; }
CELLMD_INLINE Vi vizero() { return {_mm512_setzero_si512()}; }
CELLMD_INLINE Vi viset(int32_t x) { return {_mm512_set1_epi32(x)}; }
CELLMD_INLINE Vi operator+(Vi a, Vi b) { return {_mm512_add_epi32(a.v, b.v)}; }
CELLMD_INLINE Vi vround(Vf a) { return {_mm512_cvtps_epi32(a.v)}; }
CELLMD_INLINE Vf vfloat(Vi a) { return {_mm512_cvtepi32_ps(a.v)}; }
CELLMD_INLINE Vf vpower_of_two(Vi n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}

CELLMD_INLINE float vsum(Vf a) {
    const __m256 low = _mm512_castps512_ps256(a.v), high = _mm512_extractf32x8_ps(a.v, 1);
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
CELLMD_INLINE float vlargest(Vf a) { return _mm512_reduce_max_ps(a.v); }
CELLMD_INLINE int32_t visum(Vi a) { return _mm512_reduce_add_epi32(a.v); }

CELLMD_INLINE void codes_of_int4(const uint8_t* p, Codes& low, Codes& high) {
    const __m512i bytes = _mm512_loadu_si512(p), nibble = _mm512_set1_epi8(15);
    low.v = _mm512_and_si512(bytes, nibble);
    high.v = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
}
CELLMD_INLINE Codes codes_of_int8(const uint8_t* p) {
    return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))};
}
CELLMD_INLINE Vi dot4(Vi sum, Codes weights, const int8_t* activations) {
    int32_t four;
    __builtin_memcpy(&four, activations, 4);
    return {_mm512_dpbusd_epi32(sum.v, weights.v, _mm512_set1_epi32(four))};
}
CELLMD_INLINE Vi dot8_int4(Vi sum, Codes low, Codes high, const int8_t* first, const int8_t* second) {
    return dot4(dot4(sum, low, first), high, second);
}
// One instruction each, with its operand in memory, where the compiler would take two.
CELLMD_INLINE __m512i and_memory(const uint8_t* p, __m512i mask) {
    __m512i result;
    asm("vpandd %1, %2, %0" : "=v"(result) : "m"(*reinterpret_cast<const __m512i_u*>(p)), "v"(mask));
    return result;
}
CELLMD_INLINE void dot4_memory(__m512i& sum, __m512i weights, const int8_t* activations) {
    asm("vpdpbusd %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*reinterpret_cast<const int8_t (*)[4]>(activations)), "v"(weights));
}
// High nibbles stay where they are: their products are 16 times too large.
CELLMD_INLINE void add8_int4(Vi& low, Vi& high, const uint8_t* p, const int8_t* activations) {
    dot4_memory(low.v, and_memory(p, _mm512_set1_epi8(0x0F)), activations);
    dot4_memory(high.v, and_memory(p, _mm512_set1_epi8(static_cast<char>(0xF0))), activations + 4);
}
CELLMD_INLINE Vi joined_int4(Vi low, Vi high) { return {_mm512_add_epi32(low.v, _mm512_srai_epi32(high.v, 4))}; }
CELLMD_INLINE Vi dot_lanes_int4(Vi sum, Codes weights, const int8_t* activations) {
    return {_mm512_dpbusd_epi32(sum.v, weights.v, _mm512_loadu_si512(activations))};
}
CELLMD_INLINE Vi dot_lanes_int8(Vi sum, Codes weights, const int8_t* activations) {
    return dot_lanes_int4(sum, weights, activations);
}
CELLMD_INLINE void opaque(Codes& x) { asm volatile("" : "+v"(x.v)); }
CELLMD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
