// Attention: queries are grouped into items that read the same keys, items are shared out, and each goes through its
// blocks of keys in ascending order. Where there are fewer items than threads could use (a decoding step), the blocks
// themselves are shared out and joined afterwards, in the same order and by the same additions.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "cache.h"
#include "checks.h"
#include "ops.h"

namespace cellmd {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kItemRows = 64;        // queries of an item, where there are as many
constexpr int64_t kWaveBlocks = kMaxMerged;  // blocks of keys of an item that are shared out at a time

// Where the keys and values of one sequence and head lie.
class Source {
   public:
    Source(const Cache& cache, int64_t slot, int head) : cache_(&cache), slot_(slot), head_(head) {}
    Source(const float* keys, const float* values, int width) : keys_(keys), values_(values), width_(width) {}

    CacheType type() const { return cache_ ? cache_->type() : CacheType::Float; }
    bool in_memory() const { return cache_ != nullptr; }
    int width() const { return cache_ ? cache_->width() : width_; }

    void block(int64_t first, AttendArgs& args) const {
        args.type = type();
        args.from_memory = in_memory();
        args.key_scales = args.value_scales = nullptr;
        if (!cache_) {
            args.keys = keys_ + first * width_;
            args.values = values_ + first * width_;
            return;
        }
        const Cache::Place place = cache_->block(slot_, head_, first);
        args.keys = place.keys;
        args.values = place.values;
        args.key_scales = place.key_scales;
        args.value_scales = place.value_scales;
    }

   private:
    const Cache* cache_ = nullptr;
    int64_t slot_ = 0;
    int head_ = 0;
    const float *keys_ = nullptr, *values_ = nullptr;
    int width_ = 0;
};

struct Query {
    const float* q;
    float* out;
    int64_t from, to;  // positions that it sees: from..to-1
};

// Queries that read the same source.
class Item {
   public:
    explicit Item(const Source& source_) : source(source_) {}
    void add(const Query& query) {
        queries.push_back(query);
        from_ = std::min(from_, query.from);
        to_ = std::max(to_, query.to);
    }
    int64_t first_block() const { return from_ / kKeyBlock; }
    int64_t last_block() const { return (to_ + kKeyBlock - 1) / kKeyBlock; }

    Source source;
    std::vector<Query> queries;

   private:
    int64_t from_ = std::numeric_limits<int64_t>::max(), to_ = 0;
};

// Results of `rows` queries that have seen nothing yet.
size_t sums_floats(int64_t rows, int width) { return static_cast<size_t>(rows * (width + 2) + 32); }
AttendSums new_sums(float* memory, int64_t rows, int width) {
    const AttendSums sums{memory, memory + rows, memory + (2 * rows + 15) / 16 * 16};
    std::fill_n(sums.largest, rows, -kInfinity);
    std::fill_n(sums.total, rows, 0.0f);
    std::fill_n(sums.weighted, rows * width, 0.0f);
    return sums;
}
// Those from a row on.
AttendSums from_row(const AttendSums& sums, int64_t row, int width) {
    return {sums.largest + row, sums.total + row, sums.weighted + row * width};
}

// Queries that a kernel takes together: a power of two, so that some may be missing in the last group.
int group_size(const KernelTable& kernels, const Item& item) {
    return std::min(kernels.query_rows, static_cast<int>(std::bit_ceil(item.queries.size())));
}

// Sets group g of the item, in place of a missing query the last one, and what it sees of a block; false if nothing.
bool set_group(const Item& item, int64_t g, int size, int64_t block, AttendArgs& args) {
    const int64_t first = block * kKeyBlock, queries = static_cast<int64_t>(item.queries.size());
    args.rows = size;
    args.first = kKeyBlock;
    args.last = 0;
    for (int r = 0; r < size; r++) {
        const int64_t i = g * size + r;
        const Query& query = item.queries[static_cast<size_t>(std::min(i, queries - 1))];
        args.queries[r] = query.q;
        const int from = static_cast<int>(std::clamp<int64_t>(query.from - first, 0, kKeyBlock));
        const int to = i < queries ? static_cast<int>(std::clamp<int64_t>(query.to - first, 0, kKeyBlock)) : 0;
        args.from[r] = args.to[r] = 0;
        if (from >= to) continue;
        args.from[r] = from;
        args.to[r] = to;
        args.first = std::min(args.first, from);
        args.last = std::max(args.last, to);
    }
    return args.first < args.last;
}

void finish(const KernelTable& kernels, const Item& item, const AttendSums& sums, int head_dim) {
    for (size_t i = 0; i < item.queries.size(); i++)
        kernels.affine(sums.weighted + i * static_cast<size_t>(item.source.width()), nullptr, 1.0f / sums.total[i], nullptr, 0.0f,
                       head_dim, item.queries[i].out);
}

// One item, all its blocks.
void attend_item(const KernelTable& kernels, const Item& item, int head_dim) {
    const int width = item.source.width(), size = group_size(kernels, item);
    const int64_t groups = (static_cast<int64_t>(item.queries.size()) + size - 1) / size;
    AttendArgs args{};
    args.head_dim = head_dim;
    args.width = width;
    const AttendSums sums = new_sums(scratch(sums_floats(groups * size, width)), groups * size, width);
    for (int64_t block = item.first_block(); block < item.last_block(); block++) {
        item.source.block(block * kKeyBlock, args);
        for (int64_t g = 0; g < groups; g++) {
            if (!set_group(item, g, size, block, args)) continue;
            const AttendSums of_group = from_row(sums, g * size, width);
            kernels.attend(args, &of_group);
            args.from_memory = false;
        }
    }
    finish(kernels, item, sums, head_dim);
}

// One item of a single group of queries, its blocks shared out in waves.
void attend_shared(Context& context, const Item& item, int head_dim) {
    const KernelTable& kernels = context.kernels;
    const int64_t rows = static_cast<int64_t>(item.queries.size());
    const int width = item.source.width(), size = group_size(kernels, item);
    Tensor sums_memory(*context.memory, {static_cast<int64_t>(sums_floats(rows, width))});
    const AttendSums sums = new_sums(sums_memory.floats(), rows, width);
    const int64_t first = item.first_block(), last = item.last_block();
    const int64_t wave = std::min(kWaveBlocks, last - first), stride = size * (width + 2);
    Tensor parts(*context.memory, {wave, stride});
    const double cost = static_cast<double>(kKeyBlock * width) * static_cast<double>(size) / 8.0;
    for (int64_t begin = first; begin < last; begin += wave) {
        const int64_t blocks = std::min(wave, last - begin);
        context.parallel(blocks, cost, [&](int64_t from, int64_t to, int) {
            for (int64_t b = from; b < to; b++) {
                AttendArgs args{};
                args.head_dim = head_dim;
                args.width = width;
                args.weighted = parts.row(b);
                item.source.block((begin + b) * kKeyBlock, args);
                float* ends = parts.row(b) + size * width;
                if (set_group(item, 0, size, begin + b, args)) {
                    kernels.attend(args, nullptr);
                    std::copy_n(args.largest, size, ends);
                    std::copy_n(args.total, size, ends + size);
                } else {
                    std::fill_n(ends, size, -kInfinity);
                }
            }
        });
        context.parallel(rows, static_cast<double>(blocks * width) / 8.0, [&](int64_t from, int64_t to, int) {
            float* const ends = parts.row(0) + size * width;
            kernels.merge(static_cast<int>(to - from), width, from_row(sums, from, width),
                          from_row({ends, ends + size, parts.row(0)}, from, width), static_cast<int>(blocks),
                          static_cast<size_t>(stride));
        });
    }
    finish(kernels, item, sums, head_dim);
}

// item(i) of n items, whose queries see `blocks` blocks of keys together.
template <typename ItemAt>
void attend_all(Context& context, int64_t n, int64_t blocks, int head_dim, const ItemAt& item) {
    const double cost = static_cast<double>(blocks) / static_cast<double>(n) * kKeyBlock * head_dim / 8.0;
    // Neighbouring items see about as many keys; taking them from both ends in turn gives each thread its share of both.
    context.parallel(n, cost, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) attend_item(context.kernels, item(i % 2 ? n - 1 - i / 2 : i / 2), head_dim);
    });
}

void require_cache_rows(const Cache& cache, const Tensor& x, int64_t heads, const Tensor& slots, const Tensor& positions) {
    require_floats(x, 3, "what goes to or asks the cache");
    require(x.size(2) == cache.head_dim() && heads % cache.heads() == 0 && heads > 0, x, " does not fit a cache of ",
            cache.heads(), " heads of ", cache.head_dim());
    require_indices(slots, x.size(0), cache.slots(), "slots");
    require_indices(positions, x.size(0), int64_t{1} << 31, "positions");
}

}  // namespace

Tensor attention(Context& context, const Tensor& q, const Cache& cache, const Tensor& slots, const Tensor& positions,
                 int64_t window) {
    require_cache_rows(cache, q, q.dims() == 3 ? q.size(1) : 0, slots, positions);
    require(0 <= window, "a window of ", window);
    const int64_t n = q.size(0), heads = q.size(1), readers = heads / cache.heads();
    const int head_dim = cache.head_dim();
    Tensor out(*context.memory, ElementType::Float, q.shape());
    if (n == 0) return out;
    // The positions that a row sees.
    const auto seen_by = [&](int64_t row) {
        const int64_t position = positions.ints()[row];
        return std::pair(window ? std::max<int64_t>(0, position - window + 1) : 0, position + 1);
    };
    // Few rows, many threads: blocks of keys are shared out instead of items.
    const bool share = context.threads() > 1 && n * cache.heads() < 2 * context.threads() && readers <= context.kernels.query_rows;
    const int64_t rows_of_item = share ? 1 : std::max<int64_t>(1, kItemRows / readers);
    std::vector<std::pair<int64_t, int64_t>> stretches;  // rows of one sequence
    int64_t blocks = 0;
    for (int64_t row = 0; row < n; row++) {
        const auto [from, to] = seen_by(row);
        // A cache that is smaller than the window holds every position or has lost some that are seen.
        require((0 < window && window <= cache.capacity()) || to <= cache.capacity(), "position ", to - 1, " with a window of ",
                window, " in a cache of ", cache.capacity());
        blocks += heads * ((to - 1) / kKeyBlock - from / kKeyBlock + 1);
        if (stretches.empty() || row - stretches.back().first == rows_of_item || slots.ints()[row] != slots.ints()[row - 1])
            stretches.emplace_back(row, row);
        stretches.back().second = row + 1;
    }
    const auto item_at = [&](int64_t i) {
        const auto [begin, end] = stretches[static_cast<size_t>(i / cache.heads())];
        const int64_t first_head = i % cache.heads() * readers;
        Item item(Source(cache, slots.ints()[begin], static_cast<int>(i % cache.heads())));
        item.queries.reserve(static_cast<size_t>((end - begin) * readers));
        for (int64_t row = begin; row < end; row++) {
            const auto [from, to] = seen_by(row);
            for (int64_t h = first_head; h < first_head + readers; h++)
                item.add({q.row(row) + h * head_dim, out.row(row) + h * head_dim, from, to});
        }
        return item;
    };
    const int64_t items = static_cast<int64_t>(stretches.size()) * cache.heads();
    if (share)
        for (int64_t i = 0; i < items; i++) attend_shared(context, item_at(i), head_dim);
    else
        attend_all(context, items, blocks, head_dim, item_at);
    return out;
}

void expect_attention(Context& context, const Cache& cache, const Tensor& slots, const Tensor& positions, int64_t window,
                      const Matrix& output) {
    require_indices(slots, slots.dims() == 1 ? slots.size(0) : -1, cache.slots(), "slots");
    require_indices(positions, slots.size(0), int64_t{1} << 31, "positions");
    if (slots.size(0) != 1) return;
    const int64_t position = positions.ints()[0];
    const int64_t first = window ? std::max<int64_t>(0, position - window + 1) : 0;
    context.expect(cache.reads(slots.ints()[0], first, position + 1), output.reading());
}

void append(Context& context, Cache& cache, const Tensor& keys, const Tensor& values, const Tensor& slots,
            const Tensor& positions) {
    append_normed(context, cache, keys, values, {nullptr, -1.0f}, keys, slots, positions);
}

void append_normed(Context& context, Cache& cache, const Tensor& keys, const Tensor& values, Norm key_norm, const Tensor& table,
                   const Tensor& slots, const Tensor& positions) {
    require_same_shape(keys, values, "keys and values");
    require_cache_rows(cache, keys, cache.heads(), slots, positions);
    require(keys.size(1) == cache.heads(), keys, " does not fit a cache of ", cache.heads(), " heads");
    const bool normed = key_norm.weight != nullptr;
    const int head_dim = cache.head_dim(), width = cache.width(), half = head_dim / 2;
    int turning = 0;
    if (normed) {
        require_vector(*key_norm.weight, head_dim, "the weight of the keys' norm");
        require(head_dim % 2 == 0 && table.type() == ElementType::Float && table.dims() == 3 && table.size(0) == keys.size(0) &&
                    table.size(1) == 2 && table.size(2) <= half,
                "the rotary table must be float32 (", keys.size(0), ", 2, at most ", half, "), found ", table);
        turning = static_cast<int>(table.size(2));
    }
    const KernelTable& kernels = context.kernels;
    Tensor room(*context.memory, {context.threads(), 2 * width});
    context.parallel(keys.size(0), static_cast<double>(width * cache.heads()), [&](int64_t begin, int64_t end, int thread) {
        float *key = room.row(thread), *value = key + width;
        std::fill_n(key, 2 * width, 0.0f);
        for (int64_t row = begin; row < end; row++)
            for (int head = 0; head < cache.heads(); head++) {
                const float *from_key = keys.row(row) + head * head_dim, *from_value = values.row(row) + head * head_dim;
                if (normed) {
                    kernels.rms_norm(from_key, key_norm.weight->floats(), key_norm.eps, head_dim, key);
                    kernels.rope(key, table.row(row), table.row(row) + turning, turning, half, key);
                    kernels.rms_norm(from_value, nullptr, key_norm.eps, head_dim, value);
                } else {
                    std::copy_n(from_key, head_dim, key);
                    std::copy_n(from_value, head_dim, value);
                }
                cache.write(kernels, slots.ints()[row], head, positions.ints()[row], key, value);
            }
    });
}

Tensor attention_bidirectional(Context& context, const Tensor& q, const Tensor& k, const Tensor& v) {
    require_floats(q, 3, "queries");
    require_same_shape(q, k, "queries and keys");
    require_same_shape(q, v, "queries and values");
    const int64_t n = q.size(0), heads = q.size(1);
    const int head_dim = static_cast<int>(q.size(2)), width = (head_dim + 15) / 16 * 16;
    Tensor out(*context.memory, ElementType::Float, q.shape());
    if (out.elements() == 0) return out;
    const int64_t blocks = (n + kKeyBlock - 1) / kKeyBlock, padded = blocks * kKeyBlock;
    Tensor keys(*context.memory, {heads, padded, width}), values(*context.memory, {heads, padded, width});
    context.parallel(heads * blocks, static_cast<double>(kKeyBlock * width) / 2.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t head = i / blocks, first = i % blocks * kKeyBlock;
            float *to_keys = keys.row(head) + first * width, *to_values = values.row(head) + first * width;
            const int64_t there = std::min<int64_t>(kKeyBlock, n - first);
            std::fill_n(to_keys, kKeyBlock * width, 0.0f);
            std::fill_n(to_values, kKeyBlock * width, 0.0f);
            for (int64_t j = 0; j < there; j++) {
                const float* key = k.row(first + j) + head * head_dim;
                for (int d = 0; d < head_dim; d++) to_keys[d * kKeyBlock + j] = key[d];
                std::copy_n(v.row(first + j) + head * head_dim, head_dim, to_values + j * width);
            }
        }
    });
    const int64_t of_head = (n + kItemRows - 1) / kItemRows;
    attend_all(context, heads * of_head, n * heads * blocks, head_dim, [&](int64_t i) {
        const int64_t head = i / of_head, first = i % of_head * kItemRows;
        Item item(Source(keys.row(head), values.row(head), width));
        for (int64_t row = first; row < std::min(n, first + kItemRows); row++)
            item.add({q.row(row) + head * head_dim, out.row(row) + head * head_dim, 0, n});
        return item;
    });
    return out;
}

Tensor attention_relative(Context& context, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& relative_keys,
                          int64_t past, int64_t future, float cap) {
    require_floats(q, 3, "queries");
    require_same_shape(q, k, "queries and keys");
    require_same_shape(q, v, "queries and values");
    require_floats(relative_keys, 3, "relative keys");
    require(relative_keys.size(1) == q.size(1) && relative_keys.size(2) == q.size(2), "relative keys ", relative_keys,
            " for queries ", q);
    constexpr int64_t kFar = 1 << 20;
    require(1 <= past && past <= kFar && 0 <= future && future <= kFar, "a past of ", past, " and a future of ", future, " rows");
    require(cap > 0.0f, "a cap of ", cap, "; it must be above 0");
    const int64_t n = q.size(0), heads = q.size(1);
    const int head_dim = static_cast<int>(q.size(2));
    Tensor out(*context.memory, ElementType::Float, q.shape());
    const RelativeArgs args{.q = q.floats(), .k = k.floats(), .v = v.floats(), .relative_keys = relative_keys.floats(),
                            .n = static_cast<int>(n), .heads = static_cast<int>(heads), .head_dim = head_dim,
                            .n_relative = static_cast<int>(relative_keys.size(0)), .past = static_cast<int>(past),
                            .future = static_cast<int>(future), .cap = cap};
    const double cost = static_cast<double>((past + future) * (3 * head_dim / 16 + 8));
    context.parallel(n * heads, cost, [&](int64_t begin, int64_t end, int) {
        float* scores = scratch(static_cast<size_t>(past + future));
        for (int64_t i = begin; i < end; i++)
            context.kernels.relative(args, static_cast<int>(i / heads), static_cast<int>(i % heads), scores,
                                     out.row(i / heads) + i % heads * head_dim);
    });
    return out;
}

}  // namespace cellmd
