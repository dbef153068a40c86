// Vectors of 16 lanes: NEON with the dot-product instructions, four registers each. What each function means:
// isa/vec_scalar.inl.

struct Vf { float32x4_t v[4]; };
struct Vi { int32x4_t v[4]; };
struct Codes { int8x16_t v[4]; };

constexpr int kRegisterTokens = 4;
constexpr int kRegisterTiles = 1;
constexpr int kInt8Offset = 0;

#define CELLMD_QUARTERS(type, expression)                \
    type r;                                              \
    for (int i = 0; i < 4; i++) r.v[i] = (expression);   \
    return r
CELLMD_INLINE Vf vset(float x) { CELLMD_QUARTERS(Vf, vdupq_n_f32(x)); }
CELLMD_INLINE Vf vzero() { return vset(0.0f); }
CELLMD_INLINE Vf vload(const float* p) { CELLMD_QUARTERS(Vf, vld1q_f32(p + 4 * i)); }
CELLMD_INLINE void vstore(float* p, Vf x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
CELLMD_INLINE Vf vload_first(const float* p, int n) {
    float lanes[16] = {};
    for (int i = 0; i < n; i++) lanes[i] = p[i];
    return vload(lanes);
}
CELLMD_INLINE void vstore_first(float* p, Vf x, int n) {
    float lanes[16];
    vstore(lanes, x);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
}

CELLMD_INLINE Vf vload_f16(const uint16_t* p) {
    CELLMD_QUARTERS(Vf, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
CELLMD_INLINE Vf vload_bf16(const uint16_t* p) {
    CELLMD_QUARTERS(Vf, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)));
}
CELLMD_INLINE Vf vload_i8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
CELLMD_INLINE void vstore_f16(uint16_t* p, Vf x) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
CELLMD_INLINE void vstore_i8(int8_t* p, Vi x) {
    const int16x8_t low = vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
CELLMD_INLINE void vstore_i8_of_four(int8_t* p, int stride, Vi a, Vi b, Vi c, Vi d) {
    for (int i = 0; i < 4; i++) {
        const Vi quarters = {{a.v[i], b.v[i], c.v[i], d.v[i]}};
        vstore_i8(p + i * stride, quarters);
    }
}

CELLMD_INLINE Vf operator+(Vf x, Vf y) { CELLMD_QUARTERS(Vf, vaddq_f32(x.v[i], y.v[i])); }
CELLMD_INLINE Vf operator-(Vf x, Vf y) { CELLMD_QUARTERS(Vf, vsubq_f32(x.v[i], y.v[i])); }
CELLMD_INLINE Vf operator*(Vf x, Vf y) { CELLMD_QUARTERS(Vf, vmulq_f32(x.v[i], y.v[i])); }
CELLMD_INLINE Vf operator/(Vf x, Vf y) { CELLMD_QUARTERS(Vf, vdivq_f32(x.v[i], y.v[i])); }
CELLMD_INLINE Vf vfma(Vf x, Vf y, Vf z) { CELLMD_QUARTERS(Vf, vfmaq_f32(z.v[i], x.v[i], y.v[i])); }
CELLMD_INLINE Vf vmin(Vf x, Vf y) { CELLMD_QUARTERS(Vf, vbslq_f32(vcltq_f32(x.v[i], y.v[i]), x.v[i], y.v[i])); }
CELLMD_INLINE Vf vmax(Vf x, Vf y) { CELLMD_QUARTERS(Vf, vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i])); }
CELLMD_INLINE Vf vabs(Vf x) { CELLMD_QUARTERS(Vf, vabsq_f32(x.v[i])); }
CELLMD_INLINE Vf vsqrt(Vf x) { CELLMD_QUARTERS(Vf, vsqrtq_f32(x.v[i])); }
CELLMD_INLINE Vf vcopysign(Vf x, Vf sign) {
    CELLMD_QUARTERS(Vf, vbslq_f32(vdupq_n_u32(0x80000000u), sign.v[i], x.v[i]));
}
CELLMD_INLINE Vf vselect_less(Vf x, Vf y, Vf yes, Vf no) {
    CELLMD_QUARTERS(Vf, vbslq_f32(vcltq_f32(x.v[i], y.v[i]), yes.v[i], no.v[i]));
}
CELLMD_INLINE Vf vlanes_between(Vf x, int from, int to, float other) {
    float lanes[16];
    vstore(lanes, x);
    for (int i = 0; i < 16; i++) lanes[i] = i >= from && i < to ? lanes[i] : other;
    return vload(lanes);
}

CELLMD_INLINE Vi viset(int32_t x) { CELLMD_QUARTERS(Vi, vdupq_n_s32(x)); }
CELLMD_INLINE Vi vizero() { return viset(0); }
CELLMD_INLINE Vi viload(const void* p) {
    const auto* lanes = static_cast<const int32_t*>(p);
    return {{vld1q_s32(lanes), vld1q_s32(lanes + 4), vld1q_s32(lanes + 8), vld1q_s32(lanes + 12)}};
}
CELLMD_INLINE Vi operator+(Vi x, Vi y) { CELLMD_QUARTERS(Vi, vaddq_s32(x.v[i], y.v[i])); }
CELLMD_INLINE Vi vround(Vf x) { CELLMD_QUARTERS(Vi, vcvtnq_s32_f32(x.v[i])); }
CELLMD_INLINE Vf vfloat(Vi x) { CELLMD_QUARTERS(Vf, vcvtq_f32_s32(x.v[i])); }
CELLMD_INLINE Vf vpower_of_two(Vi n) {
    CELLMD_QUARTERS(Vf, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23)));
}

CELLMD_INLINE float vsum(Vf x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
CELLMD_INLINE float vlargest(Vf x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}
CELLMD_INLINE int32_t visum(Vi x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3])));
}

CELLMD_INLINE void codes_of_int4(const uint8_t* p, Codes& low, Codes& high) {
    for (int i = 0; i < 4; i++) {
        const uint8x16_t bytes = vld1q_u8(p + 16 * i);
        low.v[i] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
        high.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    }
}
CELLMD_INLINE Codes codes_of_int8(const uint8_t* p) {
    CELLMD_QUARTERS(Codes, vreinterpretq_s8_u8(vld1q_u8(p + 16 * i)));
}
CELLMD_INLINE Vi dot4(Vi sum, Codes weights, const int8_t* activations) {
    int32_t four;
    __builtin_memcpy(&four, activations, 4);
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    CELLMD_QUARTERS(Vi, vdotq_s32(sum.v[i], weights.v[i], x));
}
CELLMD_INLINE Vi dot8_int4(Vi sum, Codes low, Codes high, const int8_t* first, const int8_t* second) {
    return dot4(dot4(sum, low, first), high, second);
}
CELLMD_INLINE void add8_int4(Vi& low, Vi&, const uint8_t* p, const int8_t* activations) {
    Codes first, second;
    codes_of_int4(p, first, second);
    low = dot8_int4(low, first, second, activations, activations + 4);
}
CELLMD_INLINE Vi joined_int4(Vi low, Vi high) { return low + high; }
CELLMD_INLINE Vi dot_lanes_int4(Vi sum, Codes weights, const int8_t* activations) {
    CELLMD_QUARTERS(Vi, vdotq_s32(sum.v[i], weights.v[i], vld1q_s8(activations + 16 * i)));
}
CELLMD_INLINE Vi dot_lanes_int8(Vi sum, Codes weights, const int8_t* activations) {
    return dot_lanes_int4(sum, weights, activations);
}
CELLMD_INLINE void opaque(Codes& x) { asm volatile("" : "+w"(x.v[0]), "+w"(x.v[1]), "+w"(x.v[2]), "+w"(x.v[3])); }
CELLMD_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
#undef CELLMD_QUARTERS
