// What the machine can do at best: numbers to hold the other kernels against.

constexpr int kReadAheadBytes = 8192;

static int32_t read(const uint8_t* bytes, size_t n) {
    Vi sums[4] = {vizero(), vizero(), vizero(), vizero()};
    for (size_t i = 0; i < n; i += 256) {
        repeat<4>([&](auto j) CELLMD_ALWAYS {
            Vi loaded;
            __builtin_memcpy(&loaded, bytes + i + 64 * j, sizeof loaded);
            prefetch(bytes + i + 64 * j + kReadAheadBytes);
            sums[j] = sums[j] + loaded;
        });
    }
    return visum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// As a product's inner loop, but with everything in registers.
static int64_t multiply(int64_t repetitions, int32_t* out) {
    constexpr int kSums = kTokenBlock * kTileBlock;
    alignas(64) uint8_t bytes[64] = {1, 2, 3};
    alignas(16) int8_t activations[8] = {1, -1, 1, -1, 1, -1, 1, -1};
    Codes low, high;
    codes_of_int4(bytes, low, high);
    Vi sums[kSums];
    repeat<kSums>([&](auto i) CELLMD_ALWAYS { sums[i] = viset(i); });
    for (int64_t n = 0; n < repetitions; n++)
        repeat<kSums>([&](auto i) CELLMD_ALWAYS { sums[i] = dot8_int4(sums[i], low, high, activations, activations + 4); });
    Vi total = vizero();
    repeat<kSums>([&](auto i) CELLMD_ALWAYS { total = total + sums[i]; });
    *out = visum(total);
    return repetitions * kSums * 128;
}
