// The last of a step: what is asked of the logits of a row.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "checks.h"
#include "ops.h"

namespace cellmd {
namespace {

constexpr int64_t kPartBlocks = 64;  // blocks of kLargestBlock that are looked at in one piece
constexpr int64_t kPart = kPartBlocks * kLargestBlock;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void require_logits(const Tensor& logits) {
    require_floats(logits, 2, "logits");
    require(logits.size(1) > 0, "logits of no columns");
    require(logits.size(1) <= std::numeric_limits<int32_t>::max(), "logits of ", logits.size(1), " columns");
}

// body(row, first, n, part) for parts of all rows.
template <typename Body>
void each_part(Context& context, const Tensor& logits, const Body& body) {
    const int64_t columns = logits.size(1), parts = ceil_div(columns, kPart);
    context.parallel(logits.size(0) * parts, kPart / 4.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t first = i % parts * kPart;
            body(i / parts, first, static_cast<int>(std::min(kPart, columns - first)), i % parts);
        }
    });
}

// A value and its column as one number: what ranks higher is larger. Not a number ranks lowest, of equals the higher column.
uint64_t rank_of(float value, int64_t column) {
    uint32_t bits = 0;
    if (!std::isnan(value)) {
        value += 0.0f;  // one zero
        std::memcpy(&bits, &value, sizeof bits);
        bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    }
    return uint64_t{bits} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(column));
}

// The k largest of a row whose blocks' largest are given (their order is lost). k blocks reach the k-th largest of them, so
// k numbers do: none below it is among the k largest.
void select(const float* x, int64_t columns, float* largest, int64_t blocks, int64_t k, std::vector<uint64_t>& ranks,
            std::vector<float>& sorted, float* values, int32_t* ids) {
    float bound = -std::numeric_limits<float>::infinity();
    if (k < blocks) {
        sorted.assign(largest, largest + blocks);
        std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
        bound = sorted[static_cast<size_t>(k - 1)];
    }
    const bool all = std::isinf(bound) && bound < 0;
    ranks.clear();
    for (int64_t block = 0; block < blocks; block++) {
        if (largest[block] < bound) continue;
        const int64_t end = std::min(columns, (block + 1) * kLargestBlock);
        for (int64_t i = block * kLargestBlock; i < end; i++)
            if (all || x[i] >= bound) ranks.push_back(rank_of(x[i], i));
    }
    const auto last = ranks.begin() + k;
    if (last != ranks.end()) std::nth_element(ranks.begin(), last - 1, ranks.end(), std::greater<>());
    std::sort(ranks.begin(), last, std::greater<>());
    for (int64_t i = 0; i < k; i++) {
        ids[i] = static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(ranks[static_cast<size_t>(i)]));
        values[i] = x[ids[i]];
    }
}

// (N, blocks): the largest of each kLargestBlock of a row.
Tensor blocks_of(Context& context, const Tensor& logits) {
    Tensor largest(*context.memory, {logits.size(0), ceil_div(logits.size(1), kLargestBlock)});
    each_part(context, logits, [&](int64_t row, int64_t first, int n, int64_t part) {
        context.kernels.largest(logits.row(row) + first, n, largest.row(row) + part * kPartBlocks);
    });
    return largest;
}

}  // namespace

std::pair<Tensor, Tensor> top_k(Context& context, const Tensor& logits, int64_t k) {
    require_logits(logits);
    const int64_t rows = logits.size(0), columns = logits.size(1);
    require(1 <= k && k <= columns, "the ", k, " largest of ", columns, " columns; 1..", columns, " are possible");
    const Tensor largest = blocks_of(context, logits);
    const int64_t shape[] = {rows, k};
    std::pair<Tensor, Tensor> out{Tensor(*context.memory, ElementType::Float, shape), Tensor(*context.memory, ElementType::Int, shape)};
    context.parallel(rows, static_cast<double>(largest.size(1) + 64 * k), [&](int64_t begin, int64_t end, int) {
        std::vector<uint64_t> ranks;
        std::vector<float> sorted;
        for (int64_t row = begin; row < end; row++)
            select(logits.row(row), columns, largest.row(row), largest.size(1), k, ranks, sorted, out.first.row(row),
                   out.second.ints() + row * k);
    });
    return out;
}

Tensor log_sum_exp(Context& context, const Tensor& logits) {
    require_logits(logits);
    const Tensor blocks = blocks_of(context, logits);
    const int64_t rows = logits.size(0), parts = ceil_div(logits.size(1), kPart);
    std::vector<float> largest(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; row++)
        largest[static_cast<size_t>(row)] = *std::max_element(blocks.row(row), blocks.row(row) + blocks.size(1));
    std::vector<double> sums(static_cast<size_t>(rows * parts));
    each_part(context, logits, [&](int64_t row, int64_t first, int n, int64_t part) {
        sums[static_cast<size_t>(row * parts + part)] =
            context.kernels.exp_sum(logits.row(row) + first, n, largest[static_cast<size_t>(row)]);
    });
    Tensor out(*context.memory, {rows});
    for (int64_t row = 0; row < rows; row++) {
        double total = 0.0;
        for (int64_t part = 0; part < parts; part++) total += sums[static_cast<size_t>(row * parts + part)];
        const bool finite = std::isfinite(largest[static_cast<size_t>(row)]);
        out.floats()[row] = finite ? static_cast<float>(std::log(total)) : std::numeric_limits<float>::quiet_NaN();
    }
    return out;
}

}  // namespace cellmd
