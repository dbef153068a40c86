// Exponential and what is made of it. Bounds hold for all finite inputs; where an input is not a number, neither is the
// result.

// e^x within 2 units in the last place for x in -87.6 .. 88.3; 0 below, infinite above.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q fitted to the least largest relative error (4e-9).
CELLMD_INLINE Vf exp_minus_one_of_rest(Vf r) {
    Vf q = vset(1.381432055e-3f);
    q = vfma(q, r, vset(8.368851617e-3f));
    q = vfma(q, r, vset(4.166840017e-2f));
    q = vfma(q, r, vset(1.666651964e-1f));
    q = vfma(q, r, vset(4.999999404e-1f));
    return vfma(q, r * r, r);
}
CELLMD_INLINE Vi exp_reduce(Vf& x) {
    const Vi n = vround(x * vset(1.44269504089f));
    const Vf steps = vfloat(n);
    // ln 2 in two parts, the first short enough that n times it is exact
    x = vfma(steps, vset(-0.693145751953125f), x);
    x = vfma(steps, vset(-1.4286068203094172e-6f), x);
    return n;
}
CELLMD_INLINE Vf vexp(Vf x) {
    x = vmin(vset(89.0f), vmax(vset(-88.0f), x));
    const Vi n = exp_reduce(x);
    return (vset(1.0f) + exp_minus_one_of_rest(x)) * vpower_of_two(n);
}
// 1 / (1 + e^-x), within 4 units in the last place.
CELLMD_INLINE Vf vsigmoid(Vf x) { return vset(1.0f) / (vset(1.0f) + vexp(vzero() - x)); }

// Within 4 units in the last place, near 0 too: with m = e^(-2|x|) - 1, tanh |x| = -m / (2 + m).
CELLMD_INLINE Vf vtanh(Vf x) {
    Vf y = vmax(vset(-40.0f), vabs(x) * vset(-2.0f));
    const Vf power = vpower_of_two(exp_reduce(y));
    const Vf m = vfma(exp_minus_one_of_rest(y), power, power - vset(1.0f));
    return vcopysign(m / (vset(2.0f) + m), x);
}

// gelu(x) = x / 2 (1 + tanh u) = x / (1 + 2^t) with u = sqrt(2 / pi) (x + 0.044715 x^3) and t = -2 u / ln 2. The relative
// error grows with the argument of the power: at most (4 + 4 |u|) units in the last place.
CELLMD_INLINE Vf vgelu(Vf x) {
    const Vf t = vmin(vset(128.0f), vmax(vset(-127.0f), x * vfma(x * x, vset(-0.102943240f), vset(-2.302208198f))));
    const Vi n = vround(t);
    const Vf r = t - vfloat(n);
    // 2^r = 1 + r q(r), q fitted to the least largest relative error (2e-9)
    Vf q = vset(1.535336181e-4f);
    q = vfma(q, r, vset(1.339887445e-3f));
    q = vfma(q, r, vset(9.618437358e-3f));
    q = vfma(q, r, vset(5.550332471e-2f));
    q = vfma(q, r, vset(2.402264791e-1f));
    q = vfma(q, r, vset(6.931472029e-1f));
    return x / vfma(vfma(q, r, vset(1.0f)), vpower_of_two(n), vset(1.0f));
}
