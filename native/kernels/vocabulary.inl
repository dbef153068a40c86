// What is asked of a row of logits: its largest values, and the sum of their exponentials.

static void largest(const float* x, int n, float* out) {
    static_assert(kLargestBlock == 64);
    for (int i = 0; i < n; i += kLargestBlock, out++) {
        const float* const from = x + i;
        const Vf none = vset(-infinity());
        if (n - i >= kLargestBlock) {
            // What is not a number comes first in every comparison, and so loses it.
            const Vf low = vmax(vload(from + 16), vmax(vload(from), none));
            const Vf high = vmax(vload(from + 48), vmax(vload(from + 32), none));
            *out = vlargest(vmax(low, high));
            continue;
        }
        Vf most = none;
        each_sixteen(n - i, [&](int at, int m) {
            const Vf v = vload_some(from + at, m);
            most = vmax(m < 16 ? vlanes_between(v, 0, m, -infinity()) : v, most);
        });
        *out = vlargest(most);
    }
}

// Float32 sums of kExpBlock terms, 16 lanes side by side, are added up in float64.
constexpr int kExpBlock = 256;
static double exp_sum(const float* x, int n, float largest) {
    const Vf top = vset(largest);
    double total = 0.0;
    for (int i = 0; i < n; i += kExpBlock) {
        Vf sum = vzero();
        each_sixteen(lesser(kExpBlock, n - i), [&](int at, int m) {
            const Vf term = vexp(vload_some(x + i + at, m) - top);
            sum = sum + (m < 16 ? vlanes_between(term, 0, m, 0.0f) : term);
        });
        total += static_cast<double>(vsum(sum));
    }
    return total;
}
