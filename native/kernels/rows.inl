// Norms. Sums run over lanes i, i + 16, i + 32, ... and then over the 16 lanes.

// body(column, n) for every 16 columns of d; n < 16 for what is left over.
template <typename Body>
CELLMD_INLINE void each_sixteen(int d, Body body) {
    int column = 0;
    for (; column + 16 <= d; column += 16) body(column, 16);
    if (column < d) body(column, d - column);
}
CELLMD_INLINE Vf vload_some(const float* p, int n) { return n < 16 ? vload_first(p, n) : vload(p); }
CELLMD_INLINE void vstore_some(float* p, Vf x, int n) { n < 16 ? vstore_first(p, x, n) : vstore(p, x); }

CELLMD_INLINE Vf inverse_rms(const float* x, float eps, int d) {
    Vf squares = vzero();
    each_sixteen(d, [&](int c, int n) {
        const Vf v = vload_some(x + c, n);
        squares = vfma(v, v, squares);
    });
    return vset(1.0f / __builtin_sqrtf(vsum(squares) / static_cast<float>(d) + eps));
}

static void rms_norm(const float* x, const float* weight, float eps, int d, float* out) {
    const Vf inverse = inverse_rms(x, eps, d);
    if (weight)
        each_sixteen(d, [&](int c, int n) {
            vstore_some(out + c, vload_some(x + c, n) * inverse * vload_some(weight + c, n), n);
        });
    else
        each_sixteen(d, [&](int c, int n) { vstore_some(out + c, vload_some(x + c, n) * inverse, n); });
}

static void add_norm(float* x, const float* y, const float* weight, float eps, float scale, int d) {
    const Vf inverse = inverse_rms(y, eps, d), factor = vset(scale);
    each_sixteen(d, [&](int c, int n) {
        const Vf normed = vload_some(y + c, n) * inverse * vload_some(weight + c, n);
        vstore_some(x + c, (vload_some(x + c, n) + normed) * factor, n);
    });
}

static void layer_norm(const float* x, const float* weight, float eps, int d, float* out) {
    Vf sum = vzero(), squares = vzero();
    each_sixteen(d, [&](int c, int n) { sum = sum + vload_some(x + c, n); });
    const Vf mean = vset(vsum(sum) / static_cast<float>(d));
    each_sixteen(d, [&](int c, int n) {
        const Vf v = vload_some(x + c, n) - mean;
        squares = vfma(v, n < 16 ? vlanes_between(v, 0, n, 0.0f) : v, squares);
    });
    const Vf inverse = vset(1.0f / __builtin_sqrtf(vsum(squares) / static_cast<float>(d) + eps));
    each_sixteen(d, [&](int c, int n) {
        vstore_some(out + c, (vload_some(x + c, n) - mean) * inverse * vload_some(weight + c, n), n);
    });
}
