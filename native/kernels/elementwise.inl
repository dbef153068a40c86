// Element by element: the result at one place depends on the inputs at that place alone.

static void add(float* x, const float* y, float factor, int n) {
    const Vf f = vset(factor);
    each_sixteen(n, [&](int i, int m) { vstore_some(x + i, vload_some(x + i, m) + vload_some(y + i, m) * f, m); });
}

static void scale(float* x, float factor, int n) {
    const Vf f = vset(factor);
    each_sixteen(n, [&](int i, int m) { vstore_some(x + i, vload_some(x + i, m) * f, m); });
}

static void affine(const float* x, const float* factor, float factor_value, const float* offset, float offset_value, int n,
                   float* out) {
    each_sixteen(n, [&](int i, int m) {
        const Vf a = offset ? vload_some(offset + i, m) : vset(offset_value);
        const Vf f = factor ? vload_some(factor + i, m) : vset(factor_value);
        vstore_some(out + i, (vload_some(x + i, m) + a) * f, m);
    });
}

static void clamp(const float* x, float low, float high, int n, float* out) {
    const Vf l = vset(low), h = vset(high);
    each_sixteen(n, [&](int i, int m) { vstore_some(out + i, vmin(h, vmax(l, vload_some(x + i, m))), m); });
}

static void geglu(const float* gate, const float* up, int n, float* out) {
    each_sixteen(n, [&](int i, int m) { vstore_some(out + i, vgelu(vload_some(gate + i, m)) * vload_some(up + i, m), m); });
}

static void silu(const float* x, int n, float* out) {
    each_sixteen(n, [&](int i, int m) {
        const Vf v = vload_some(x + i, m);
        vstore_some(out + i, v * vsigmoid(v), m);
    });
}

static void glu(const float* x, const float* gate, int n, float* out) {
    each_sixteen(n, [&](int i, int m) { vstore_some(out + i, vload_some(x + i, m) * vsigmoid(vload_some(gate + i, m)), m); });
}

static void softcap(float* x, float cap, int n) {
    const Vf c = vset(cap);
    each_sixteen(n, [&](int i, int m) { vstore_some(x + i, c * vtanh(vload_some(x + i, m) / c), m); });
}

static void multiply_add(const float* x, const float* y, int n, float* out) {
    each_sixteen(n, [&](int i, int m) {
        vstore_some(out + i, vfma(vload_some(x + i, m), vload_some(y + i, m), vload_some(out + i, m)), m);
    });
}

static void rope(const float* x, const float* cos, const float* sin, int turning, int half, float* out) {
    each_sixteen(turning, [&](int i, int m) {
        const Vf a = vload_some(x + i, m), b = vload_some(x + half + i, m);
        const Vf c = vload_some(cos + i, m), s = vload_some(sin + i, m);
        vstore_some(out + i, a * c - b * s, m);
        vstore_some(out + half + i, b * c + a * s, m);
    });
    if (out == x) return;
    each_sixteen(half - turning, [&](int i, int m) {
        vstore_some(out + turning + i, vload_some(x + turning + i, m), m);
        vstore_some(out + half + turning + i, vload_some(x + half + turning + i, m), m);
    });
}
