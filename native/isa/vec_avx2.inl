// Vectors of 16 lanes: AVX2, FMA and F16C, two registers each; their integer products: dot_avx2.inl, or dot_avxvnni.inl on
// processors with an instruction for them. What each function means: isa/vec_scalar.inl.

struct Vf { __m256 a, b; };
struct Vi { __m256i a, b; };
struct Codes { __m256i a, b; };

constexpr int kRegisterTokens = 4;
constexpr int kRegisterTiles = 1;

CELLMD_INLINE Vf vset(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
CELLMD_INLINE Vf vzero() { return vset(0.0f); }
CELLMD_INLINE Vf vload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
CELLMD_INLINE void vstore(float* p, Vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
CELLMD_INLINE __m256i lanes_below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
CELLMD_INLINE Vf vload_first(const float* p, int n) {
    const __m256 low = _mm256_maskload_ps(p, lanes_below(n));
    return {low, n > 8 ? _mm256_maskload_ps(p + 8, lanes_below(n - 8)) : _mm256_setzero_ps()};
}
CELLMD_INLINE void vstore_first(float* p, Vf x, int n) {
    _mm256_maskstore_ps(p, lanes_below(n), x.a);
    if (n > 8) _mm256_maskstore_ps(p + 8, lanes_below(n - 8), x.b);
}

CELLMD_INLINE __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
CELLMD_INLINE Vf vload_f16(const uint16_t* p) { return {_mm256_cvtph_ps(load16(p)), _mm256_cvtph_ps(load16(p + 8))}; }
CELLMD_INLINE __m256 floats_of_bfloats(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
CELLMD_INLINE Vf vload_bf16(const uint16_t* p) { return {floats_of_bfloats(load16(p)), floats_of_bfloats(load16(p + 8))}; }
CELLMD_INLINE Vf vload_i8(const int8_t* p) {
    const __m128i x = load16(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
CELLMD_INLINE void vstore_f16(uint16_t* p, Vf x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
CELLMD_INLINE void vstore_i8(int8_t* p, Vi x) {
    // packs works within 128-bit halves: words 0-3 8-11 | 4-7 12-15, put in order by the permutation
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
CELLMD_INLINE void store_halves(int8_t* p, int stride, __m256i x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm256_extracti128_si256(x, 1));
}
CELLMD_INLINE void vstore_i8_of_four(int8_t* p, int stride, Vi x, Vi y, Vi z, Vi w) {
    store_halves(p, stride, _mm256_packs_epi16(_mm256_packs_epi32(x.a, y.a), _mm256_packs_epi32(z.a, w.a)));
    store_halves(p + 2 * stride, stride, _mm256_packs_epi16(_mm256_packs_epi32(x.b, y.b), _mm256_packs_epi32(z.b, w.b)));
}

CELLMD_INLINE Vf operator+(Vf x, Vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
CELLMD_INLINE Vf operator-(Vf x, Vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
CELLMD_INLINE Vf operator*(Vf x, Vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
CELLMD_INLINE Vf operator/(Vf x, Vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
CELLMD_INLINE Vf vfma(Vf x, Vf y, Vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
CELLMD_INLINE Vf vmin(Vf x, Vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
CELLMD_INLINE Vf vmax(Vf x, Vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
CELLMD_INLINE Vf vabs(Vf x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
CELLMD_INLINE Vf vsqrt(Vf x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
CELLMD_INLINE Vf vcopysign(Vf x, Vf sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(bit, x.a), _mm256_and_ps(bit, sign.a)),
            _mm256_or_ps(_mm256_andnot_ps(bit, x.b), _mm256_and_ps(bit, sign.b))};
}
CELLMD_INLINE Vf vselect_less(Vf x, Vf y, Vf yes, Vf no) {
    return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
CELLMD_INLINE Vf vlanes_between(Vf x, int from, int to, float other) {
    const __m256 rest = _mm256_set1_ps(other);
    const __m256i low = _mm256_andnot_si256(lanes_below(from), lanes_below(to));
    const __m256i high = _mm256_andnot_si256(lanes_below(from - 8), lanes_below(to - 8));
    return {_mm256_blendv_ps(rest, x.a, _mm256_castsi256_ps(low)), _mm256_blendv_ps(rest, x.b, _mm256_castsi256_ps(high))};
}

CELLMD_INLINE Vi viset(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
CELLMD_INLINE Vi vizero() { return viset(0); }
CELLMD_INLINE Vi operator+(Vi x, Vi y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
CELLMD_INLINE Vi vround(Vf x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
CELLMD_INLINE Vf vfloat(Vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
CELLMD_INLINE __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
CELLMD_INLINE Vf vpower_of_two(Vi n) { return {power_of_two(n.a), power_of_two(n.b)}; }

CELLMD_INLINE float vsum(Vf x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
CELLMD_INLINE float vlargest(Vf x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
CELLMD_INLINE int32_t visum(Vi x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

CELLMD_INLINE __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
CELLMD_INLINE void codes_of_int4(const uint8_t* p, Codes& low, Codes& high) {
    const __m256i nibble = _mm256_set1_epi8(15), x = load32(p), y = load32(p + 32);
    low = {_mm256_and_si256(x, nibble), _mm256_and_si256(y, nibble)};
    high = {_mm256_and_si256(_mm256_srli_epi16(x, 4), nibble), _mm256_and_si256(_mm256_srli_epi16(y, 4), nibble)};
}

CELLMD_INLINE __m256i broadcast4(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
CELLMD_INLINE Vi viload(const void* p) { return {load32(p), load32(static_cast<const char*>(p) + 32)}; }
CELLMD_INLINE void opaque(Codes& x) { asm volatile("" : "+x"(x.a), "+x"(x.b)); }
CELLMD_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
