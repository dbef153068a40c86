// Integer products of the vectors of vec_avx2.inl, with AVX-VNNI: four bytes a lane at once, unsigned by signed.

constexpr int kInt8Offset = 128;
CELLMD_INLINE __m256i unsigned_of(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
CELLMD_INLINE Codes codes_of_int8(const uint8_t* p) { return {unsigned_of(load32(p)), unsigned_of(load32(p + 32))}; }

CELLMD_INLINE Vi dot4(Vi sum, Codes weights, const int8_t* activations) {
    const __m256i x = broadcast4(activations);
    return {_mm256_dpbusd_avx_epi32(sum.a, weights.a, x), _mm256_dpbusd_avx_epi32(sum.b, weights.b, x)};
}
CELLMD_INLINE Vi dot8_int4(Vi sum, Codes low, Codes high, const int8_t* first, const int8_t* second) {
    return dot4(dot4(sum, low, first), high, second);
}
CELLMD_INLINE void add8_int4(Vi& low, Vi& high, const uint8_t* p, const int8_t* activations) {
    Codes first, second;
    codes_of_int4(p, first, second);
    low = dot4(low, first, activations);
    high = dot4(high, second, activations + 4);
}
CELLMD_INLINE Vi joined_int4(Vi low, Vi high) { return low + high; }
CELLMD_INLINE Vi dot_lanes_int4(Vi sum, Codes weights, const int8_t* activations) {
    return {_mm256_dpbusd_avx_epi32(sum.a, weights.a, load32(activations)),
            _mm256_dpbusd_avx_epi32(sum.b, weights.b, load32(activations + 32))};
}
CELLMD_INLINE Vi dot_lanes_int8(Vi sum, Codes weights, const int8_t* activations) {
    return dot_lanes_int4(sum, weights, activations);
}
