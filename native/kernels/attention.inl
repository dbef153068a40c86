// Attention of a few queries over one block of keys, in float32, and the joining of blocks.
//
// Keys of a block lie transposed, so that the lanes of a vector are keys and a score is a sum over channels in ascending
// order; weighted values have channels as lanes and sum over keys in ascending order. A key that a row does not see adds
// exactly nothing. So a row's bits do not depend on which rows share the block.

constexpr int kKeyVectors = kTileBlock == 2 ? 2 : 1;  // vectors of keys, or of channels, beside kQueryRows rows
constexpr int kQueryRows = kTileBlock == 2 ? 8 : 4;

template <CacheType kType>
CELLMD_INLINE Vf load_stored(const void* p, size_t at) {
    switch (kType) {
        case CacheType::Half: return vload_f16(static_cast<const uint16_t*>(p) + at);
        case CacheType::Int8: return vload_i8(static_cast<const int8_t*>(p) + at);
        default: return vload(static_cast<const float*>(p) + at);
    }
}

template <CacheType kType>
constexpr int kElementBytes = kType == CacheType::Float ? 4 : kType == CacheType::Half ? 2 : 1;

template <int kBytes>
CELLMD_INLINE void fetch_lines(const char* p) {
    repeat<(kBytes + 63) / 64>([&](auto line) CELLMD_ALWAYS { prefetch_later(p + 64 * line); });
}

// scores[row][key] of kVectors * 16 keys beginning at `key`.
template <CacheType kType, int kRows, int kVectors>
CELLMD_INLINE void score_keys(const AttendArgs& a, int key, float* scores) {
    const float* queries[kRows];
    Vf sums[kRows][kVectors];
    repeat<kRows>([&](auto r) CELLMD_ALWAYS {
        queries[r] = a.queries[r];
        repeat<kVectors>([&](auto v) CELLMD_ALWAYS { sums[r][v] = vzero(); });
    });
    // The first time through, keys are fetched some rows ahead; the last time, the block's values for later.
    const bool fetch_keys = a.from_memory && key == a.first / 16 * 16;
    const bool fetch_values = a.from_memory && key + 16 * kVectors >= a.last;
    constexpr int kRowBytes = kKeyBlock * kElementBytes<kType>, kRowsAhead = 64;
    for (int d = 0; d < a.head_dim; d++) {
        if (fetch_keys) fetch_lines<kRowBytes>(static_cast<const char*>(a.keys) + (d + kRowsAhead) * kRowBytes);
        if (fetch_values) fetch_lines<kRowBytes>(static_cast<const char*>(a.values) + d * kRowBytes);
        Vf keys[kVectors];
        repeat<kVectors>([&](auto v) CELLMD_ALWAYS {
            keys[v] = load_stored<kType>(a.keys, static_cast<size_t>(d) * kKeyBlock + key + 16 * v);
        });
        repeat<kRows>([&](auto r) CELLMD_ALWAYS {
            const Vf q = vset(queries[r][d]);
            repeat<kVectors>([&](auto v) CELLMD_ALWAYS { sums[r][v] = vfma(q, keys[v], sums[r][v]); });
        });
    }
    repeat<kVectors>([&](auto v) CELLMD_ALWAYS {
        const Vf scale = kType == CacheType::Int8 ? vload(a.key_scales + key + 16 * v) : vset(1.0f);
        repeat<kRows>([&](auto r) CELLMD_ALWAYS {
            vstore(scores + r * kKeyBlock + key + 16 * v, kType == CacheType::Int8 ? sums[r][v] * scale : sums[r][v]);
        });
    });
}

// The largest score of one row among kVectors * 16 from the key `begin` on; scores of keys that are not seen become -inf.
template <int kVectors>
CELLMD_INLINE void find_largest(AttendArgs& a, int row, int begin, float* scores) {
    const int from = a.from[row] - begin, to = a.to[row] - begin;
    Vf s[kVectors];
    repeat<kVectors>([&](auto v) CELLMD_ALWAYS { s[v] = vload(scores + 16 * v); });
    if (from > 0 || to < 16 * kVectors)
        repeat<kVectors>([&](auto v) CELLMD_ALWAYS {
            s[v] = vlanes_between(s[v], clip(from - 16 * v, 0, 16), clip(to - 16 * v, 0, 16), -infinity());
            vstore(scores + 16 * v, s[v]);
        });
    Vf top = s[0];
    repeat_from<1, kVectors>([&](auto v) CELLMD_ALWAYS { top = vmax(top, s[v]); });
    a.largest[row] = vlargest(top);
}

// These scores as weights e^(score - largest), 0 where not seen, and their sum.
template <int kVectors>
CELLMD_INLINE void weigh(AttendArgs& a, int row, int begin, float* scores) {
    const Vf largest = vset(a.largest[row]);
    const bool seen = a.to[row] > a.from[row];
    Vf total = vzero();
    repeat<kVectors>([&](auto v) CELLMD_ALWAYS {
        const Vf weight = seen ? vexp(vload(scores + 16 * v) - largest) : vzero();
        total = total + weight;
        vstore(scores + 16 * v, a.value_scales ? weight * vload(a.value_scales + begin + 16 * v) : weight);
    });
    a.total[row] = vsum(total);
}

// All rows one step after the other: each step waits long for itself, and not for other rows.
template <int kRows, int kVectors>
static void weigh_rows(AttendArgs& a, int begin, float* scores) {
    for (int row = 0; row < kRows; row++) find_largest<kVectors>(a, row, begin, scores + row * kKeyBlock + begin);
    for (int row = 0; row < kRows; row++) weigh<kVectors>(a, row, begin, scores + row * kKeyBlock + begin);
}

// The largest scores and totals of rows, joined with those of a block: what the rows have counts `keep` times from then on,
// what the block adds `add` times.
CELLMD_INLINE void join(Vf& largest, Vf& total, Vf largest_added, Vf total_added, Vf& keep, Vf& add) {
    const Vf both = vmax(largest_added, largest);
    // Where nothing has been seen at all, any finite number serves: both factors become 0.
    const Vf top = vmax(vset(-3e38f), both);
    keep = vexp(largest - top);
    add = vexp(largest_added - top);
    total = vfma(total_added, add, total * keep);
    largest = both;
}
CELLMD_INLINE Vf largest_of(const float* largest, int rows) {
    return vlanes_between(vload_first(largest, rows), 0, rows, -infinity());
}

// What becomes of the weighted values of a block: they are left, or joined with what the rows have.
struct Leave {
    CELLMD_INLINE explicit Leave(const AttendArgs& a) : to(a.weighted) {}
    CELLMD_INLINE void store(size_t at, int, Vf sum) const { vstore(to + at, sum); }
    float* to;
};
struct Join {
    CELLMD_INLINE Join(const AttendArgs& a, const AttendSums& sums) : to(sums.weighted) {
        Vf largest = largest_of(sums.largest, a.rows), total = vload_first(sums.total, a.rows), k, m;
        join(largest, total, largest_of(a.largest, a.rows), vload_first(a.total, a.rows), k, m);
        vstore_first(sums.largest, largest, a.rows);
        vstore_first(sums.total, total, a.rows);
        vstore(keep, k);
        vstore(add, m);
    }
    CELLMD_INLINE void store(size_t at, int row, Vf sum) const {
        vstore(to + at, vfma(sum, vset(add[row]), vload(to + at) * vset(keep[row])));
    }
    float* to;
    alignas(64) float keep[16], add[16];
};

// weighted[row][channel] of kVectors * 16 channels beginning at `channel`.
template <CacheType kType, int kRows, int kVectors, typename Result>
CELLMD_INLINE void weigh_values(const AttendArgs& a, int channel, const float* weights, const Result& result) {
    Vf sums[kRows][kVectors];
    repeat<kRows>([&](auto r) CELLMD_ALWAYS { repeat<kVectors>([&](auto v) CELLMD_ALWAYS { sums[r][v] = vzero(); }); });
    // What memory would have no work for else: the keys of the next block.
    constexpr int kPieceBytes = 16 * kVectors * kElementBytes<kType>;
    const char* const next_keys = static_cast<const char*>(a.keys) + (a.width + channel) * kKeyBlock * kElementBytes<kType>;
    for (int key = a.first; key < a.last; key++) {
        if (a.from_memory) fetch_lines<kPieceBytes>(next_keys + key * kPieceBytes);
        Vf values[kVectors];
        repeat<kVectors>([&](auto v) CELLMD_ALWAYS {
            values[v] = load_stored<kType>(a.values, static_cast<size_t>(key) * a.width + channel + 16 * v);
        });
        repeat<kRows>([&](auto r) CELLMD_ALWAYS {
            const Vf weight = vset(weights[r * kKeyBlock + key]);
            repeat<kVectors>([&](auto v) CELLMD_ALWAYS { sums[r][v] = vfma(weight, values[v], sums[r][v]); });
        });
    }
    repeat<kRows>([&](auto r) CELLMD_ALWAYS {
        repeat<kVectors>([&](auto v) CELLMD_ALWAYS { result.store(r * a.width + channel + 16 * v, r, sums[r][v]); });
    });
}

// sums: null if the results are left in `a`.
template <CacheType kType, int kRows>
static void attend_block(AttendArgs& a, const AttendSums* sums) {
    alignas(64) float scores[kRows * kKeyBlock];
    const int begin = a.first / 16 * 16, end = ceil_div(a.last, 16) * 16;
    int key = begin;
    for (; key + 16 * kKeyVectors <= end; key += 16 * kKeyVectors) score_keys<kType, kRows, kKeyVectors>(a, key, scores);
    for (; key < end; key += 16) score_keys<kType, kRows, 1>(a, key, scores);
    switch ((end - begin) / 16) {
        case 1: weigh_rows<kRows, 1>(a, begin, scores); break;
        case 2: weigh_rows<kRows, 2>(a, begin, scores); break;
        case 3: weigh_rows<kRows, 3>(a, begin, scores); break;
        default: weigh_rows<kRows, kKeyBlock / 16>(a, begin, scores);
    }
    const auto all_channels = [&](const auto& result) CELLMD_ALWAYS {
        int channel = 0;
        for (; channel + 16 * kKeyVectors <= a.width; channel += 16 * kKeyVectors)
            weigh_values<kType, kRows, kKeyVectors>(a, channel, scores, result);
        for (; channel < a.width; channel += 16) weigh_values<kType, kRows, 1>(a, channel, scores, result);
    };
    sums ? all_channels(Join(a, *sums)) : all_channels(Leave(a));
}

template <CacheType kType>
static void attend_of(AttendArgs& a, const AttendSums* sums) {
    switch (a.rows) {
        case 1: return attend_block<kType, 1>(a, sums);
        case 2: return attend_block<kType, 2>(a, sums);
        case 4: return attend_block<kType, 4>(a, sums);
        default:
            if constexpr (kQueryRows >= 8) attend_block<kType, 8>(a, sums);
    }
}
static void attend(AttendArgs& a, const AttendSums* sums) {
    switch (a.type) {
        case CacheType::Half: return attend_of<CacheType::Half>(a, sums);
        case CacheType::Int8: return attend_of<CacheType::Int8>(a, sums);
        default: return attend_of<CacheType::Float>(a, sums);
    }
}

// kVectors * 16 channels of one row, with the parts of some blocks, one after another: keep[block][row] times what is there
// and add[block][row] times the part.
template <int kVectors>
CELLMD_INLINE void merge_channels(float* to, const float* from, int blocks, size_t stride, const float (*keep)[16],
                                  const float (*add)[16], int row) {
    Vf sums[kVectors];
    repeat<kVectors>([&](auto v) CELLMD_ALWAYS { sums[v] = vload(to + 16 * v); });
    for (int b = 0; b < blocks; b++, from += stride) {
        const Vf kept = vset(keep[b][row]), added = vset(add[b][row]);
        repeat<kVectors>([&](auto v) CELLMD_ALWAYS { sums[v] = vfma(vload(from + 16 * v), added, sums[v] * kept); });
    }
    repeat<kVectors>([&](auto v) CELLMD_ALWAYS { vstore(to + 16 * v, sums[v]); });
}

static void merge(int rows, int width, const AttendSums& sums, const AttendSums& first, int blocks, size_t stride) {
    alignas(64) float keep[kMaxMerged][16], add[kMaxMerged][16];
    Vf largest = largest_of(sums.largest, rows), total = vload_first(sums.total, rows);
    for (int b = 0; b < blocks; b++) {
        Vf k, a;
        join(largest, total, largest_of(first.largest + b * stride, rows), vload_first(first.total + b * stride, rows), k, a);
        vstore(keep[b], k);
        vstore(add[b], a);
    }
    vstore_first(sums.largest, largest, rows);
    vstore_first(sums.total, total, rows);
    for (int row = 0; row < rows; row++)
        for (int d = 0; d < width;) {
            float* const to = sums.weighted + row * width + d;
            const float* const from = first.weighted + row * width + d;
            if (d + 64 <= width) {
                merge_channels<4>(to, from, blocks, stride, keep, add, row);
                d += 64;
            } else {
                merge_channels<1>(to, from, blocks, stride, keep, add, row);
                d += 16;
            }
        }
}

static float narrow(const float* x, CacheType type, int n, void* out) {
    const float largest = type == CacheType::Half ? 65504.0f : 3.402823466e38f;
    if (type == CacheType::Int8) {
        const Step step = step_of(x, n, Range<true>(-largest, largest));
        for (int i = 0; i < n; i += 16)
            vstore_i8(static_cast<int8_t*>(out) + i, step.inverse > 0.0f ? vround(vload(x + i) * vset(step.inverse)) : vizero());
        return step.inverse > 0.0f ? step.scale : 0.0f;
    }
    const Vf bound = vset(largest);
    for (int i = 0; i < n; i += 16) {
        // Not a number becomes the bound as well: what one sequence leaves behind must not reach another.
        const Vf v = vmax(vmin(vload(x + i), bound), vzero() - bound);
        if (type == CacheType::Half)
            vstore_f16(static_cast<uint16_t*>(out) + i, v);
        else
            vstore(static_cast<float*>(out) + i, v);
    }
    return 1.0f;
}

// The audio tower's local attention: one row of one head. scores has room for past + future numbers.
static void relative(const RelativeArgs& a, int row, int head, float* scores, float* out) {
    const int stride = a.heads * a.head_dim;
    const float* q = a.q + static_cast<size_t>(row) * stride + head * a.head_dim;
    const int first = greater(0, row - a.past + 1), last = lesser(a.n - 1, row + greater(a.future, 1) - 1);
    const int seen = last - first + 1;
    for (int j = first; j <= last; j++) {
        const float* k = a.k + static_cast<size_t>(j) * stride + head * a.head_dim;
        const int place = a.past - (row - j);
        Vf by_key = vzero(), by_place = vzero();
        each_sixteen(a.head_dim, [&](int d, int n) { by_key = vfma(vload_some(q + d, n), vload_some(k + d, n), by_key); });
        if (place < a.n_relative) {
            const float* r = a.relative_keys + static_cast<size_t>(place) * stride + head * a.head_dim;
            each_sixteen(a.head_dim,
                         [&](int d, int n) { by_place = vfma(vload_some(q + d, n), vload_some(r + d, n), by_place); });
        }
        scores[j - first] = vsum(by_key) + vsum(by_place);
    }
    softcap(scores, a.cap, seen);
    float top = -infinity();
    for (int j = 0; j < seen; j++) top = scores[j] > top ? scores[j] : top;
    Vf total = vzero();
    each_sixteen(seen, [&](int j, int n) {
        const Vf weight = vexp(vload_some(scores + j, n) - vset(top));
        vstore_some(scores + j, weight, n);
        total = total + (n < 16 ? vlanes_between(weight, 0, n, 0.0f) : weight);
    });
    const Vf inverse = vset(1.0f / vsum(total));
    const float* v = a.v + static_cast<size_t>(first) * stride + head * a.head_dim;
    each_sixteen(a.head_dim, [&](int d, int n) {
        Vf sum = vzero();
        for (int j = 0; j < seen; j++) sum = vfma(vset(scores[j]), vload_some(v + static_cast<size_t>(j) * stride + d, n), sum);
        vstore_some(out + d, sum * inverse, n);
    });
}
