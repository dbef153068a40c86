// Integer products of the vectors of vec_avx2.inl, with AVX2 alone: by pairs in 16 bits.

constexpr int kInt8Offset = 0;
CELLMD_INLINE Codes codes_of_int8(const uint8_t* p) { return {load32(p), load32(p + 32)}; }

// Nibbles (0..15) times activations (-127..127): a pair comes to at most 3810, so even two pairs fit 16 bits.
CELLMD_INLINE __m256i nibble_pairs(__m256i weights, __m256i activations) {
    return _mm256_maddubs_epi16(weights, activations);
}
CELLMD_INLINE __m256i add_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
CELLMD_INLINE Vi dot8_int4(Vi sum, Codes low, Codes high, const int8_t* first, const int8_t* second) {
    const __m256i x = broadcast4(first), y = broadcast4(second);
    return {add_pairs(sum.a, _mm256_add_epi16(nibble_pairs(low.a, x), nibble_pairs(high.a, y))),
            add_pairs(sum.b, _mm256_add_epi16(nibble_pairs(low.b, x), nibble_pairs(high.b, y)))};
}
CELLMD_INLINE void add8_int4(Vi& low, Vi&, const uint8_t* p, const int8_t* activations) {
    Codes first, second;
    codes_of_int4(p, first, second);
    low = dot8_int4(low, first, second, activations, activations + 4);
}
CELLMD_INLINE Vi joined_int4(Vi low, Vi high) { return low + high; }
// maddubs wants unsigned by signed: |w| (at most 128) by the activation with w's sign. A pair comes to at most
// 2 * 128 * 127, which fits 16 bits.
CELLMD_INLINE __m256i signed_pairs(__m256i weights, __m256i activations) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(activations, weights));
}
CELLMD_INLINE Vi dot4(Vi sum, Codes weights, const int8_t* activations) {
    const __m256i x = broadcast4(activations);
    return {add_pairs(sum.a, signed_pairs(weights.a, x)), add_pairs(sum.b, signed_pairs(weights.b, x))};
}
CELLMD_INLINE Vi dot_lanes_int4(Vi sum, Codes weights, const int8_t* activations) {
    return {add_pairs(sum.a, nibble_pairs(weights.a, load32(activations))),
            add_pairs(sum.b, nibble_pairs(weights.b, load32(activations + 32)))};
}
CELLMD_INLINE Vi dot_lanes_int8(Vi sum, Codes weights, const int8_t* activations) {
    return {add_pairs(sum.a, signed_pairs(weights.a, load32(activations))),
            add_pairs(sum.b, signed_pairs(weights.b, load32(activations + 32)))};
}
