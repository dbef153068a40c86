// What the machine can do at best: numbers to hold the other kernels against.

constexpr int kReadAheadBytes = 8192;

static int32_t read(const uint8_t* bytes, size_t n) {
    Vi sums[4] = {vizero(), vizero(), vizero(), vizero()};
    for (size_t i = 0; i < n; i += 256) {
        repeat<4>([&](auto j) CELLMD_ALWAYS {
            prefetch(bytes + i + 64 * j + kReadAheadBytes);
            sums[j] = sums[j] + viload(bytes + i + 64 * j);
        });
    }
    return visum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}
