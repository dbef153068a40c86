#include "cache.h"

#include <algorithm>
#include <cstring>

#include "errors.h"

namespace cellmd {
namespace {

int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Bytes of keys, or of values, once the sizes are known to be sane.
size_t bytes_of(int64_t slots, int64_t capacity, int64_t heads, int64_t head_dim, int64_t element) {
    constexpr int64_t kMaxCapacity = int64_t{1} << 31;
    require(slots > 0 && slots <= 65536 && capacity > 0 && capacity <= kMaxCapacity && heads > 0 && heads <= 4096 &&
                head_dim > 0 && head_dim <= 65536,
            "a cache of ", slots, " slots, ", capacity, " positions, ", heads, " heads of ", head_dim);
    const int64_t positions = slots * heads * rounded_up(capacity, kKeyBlock);
    const int64_t per_position = rounded_up(head_dim, 16) * element;
    require(positions <= (int64_t{1} << 46) / per_position, "a cache of more than ", int64_t{1} << 46, " bytes");
    return static_cast<size_t>(positions * per_position);
}

size_t element_size(CacheType type) { return type == CacheType::Half ? 2 : type == CacheType::Float ? 4 : 1; }

}  // namespace

Cache::Cache(int64_t slots, int64_t capacity, int64_t heads, int64_t head_dim, CacheType type)
    : slots_(slots),
      capacity_(rounded_up(capacity, kKeyBlock)),
      heads_(static_cast<int>(heads)),
      head_dim_(static_cast<int>(head_dim)),
      width_(static_cast<int>(rounded_up(head_dim, 16))),
      type_(type),
      element_(element_size(type)),
      keys_(bytes_of(slots, capacity, heads, head_dim, static_cast<int64_t>(element_))),
      values_(bytes_of(slots, capacity, heads, head_dim, static_cast<int64_t>(element_))),
      scales_(type == CacheType::Int8 ? static_cast<size_t>(2 * slots_ * heads_ * capacity_) * sizeof(float) : 1) {}

Cache::Place Cache::block(int64_t slot, int head, int64_t first) const {
    const size_t place = static_cast<size_t>((slot * heads_ + head) * capacity_ + first % capacity_);
    const size_t at = place * static_cast<size_t>(width_) * element_;
    Place found{keys_.data() + at, values_.data() + at, nullptr, nullptr};
    if (type_ == CacheType::Int8) {
        found.key_scales = reinterpret_cast<float*>(scales_.data()) + place;
        found.value_scales = found.key_scales + slots_ * heads_ * capacity_;
    }
    return found;
}

Reads Cache::reads(int64_t slot, int64_t first, int64_t last) const {
    const int64_t begin = first / kKeyBlock * kKeyBlock;
    const int64_t positions = std::min(rounded_up(last, kKeyBlock) - begin, capacity_ - begin % capacity_);
    const size_t bytes = static_cast<size_t>(positions * width_) * element_;
    const Place place = block(slot, 0, begin);
    return {Stretch{place.keys, bytes}, {place.values, bytes}};
}

void Cache::write(const KernelTable& kernels, int64_t slot, int head, int64_t position, const float* key, const float* value) {
    const int64_t within = position % kKeyBlock;
    const Place place = block(slot, head, position - within);
    float* stored = scratch(static_cast<size_t>(width_));
    const float key_scale = kernels.narrow(key, type_, width_, stored);
    for (int d = 0; d < width_; d++)
        __builtin_memcpy(place.keys + static_cast<size_t>(d * kKeyBlock + within) * element_,
                         reinterpret_cast<const std::byte*>(stored) + static_cast<size_t>(d) * element_, element_);
    const float value_scale =
        kernels.narrow(value, type_, width_, place.values + static_cast<size_t>(within) * static_cast<size_t>(width_) * element_);
    if (place.key_scales) {
        place.key_scales[within] = key_scale;
        place.value_scales[within] = value_scale;
    }
}

void Cache::copy(int64_t from, int64_t to, int64_t n) {
    require(from >= 0 && from < slots_ && to >= 0 && to < slots_ && from != to && n >= 0, "a copy of ", n,
            " positions from slot ", from, " to slot ", to, " of ", slots_);
    if (n == 0) return;
    const size_t bytes = places(n) * static_cast<size_t>(width_) * element_;
    for (int head = 0; head < heads_; head++) {
        const Place source = block(from, head, 0), target = block(to, head, 0);
        std::memcpy(target.keys, source.keys, bytes);
        std::memcpy(target.values, source.values, bytes);
        if (target.key_scales) {
            std::memcpy(target.key_scales, source.key_scales, places(n) * sizeof(float));
            std::memcpy(target.value_scales, source.value_scales, places(n) * sizeof(float));
        }
    }
}

// Keys lie in whole blocks.
size_t Cache::places(int64_t n) const { return static_cast<size_t>(std::min(rounded_up(n, kKeyBlock), capacity_)); }

size_t Cache::saved_bytes(int64_t n) const {
    require(n >= 0 && n <= int64_t{1} << 31, "a sequence of ", n, " positions");
    const size_t scales = type_ == CacheType::Int8 ? sizeof(float) : 0;
    return places(n) * static_cast<size_t>(heads_) * 2 * (static_cast<size_t>(width_) * element_ + scales);
}

// Hands each contiguous piece of what lies at the first n positions to `move`, always in the same order.
template <class Move>
void Cache::each_piece(int64_t slot, int64_t n, Move&& move) const {
    require(slot >= 0 && slot < slots_ && n >= 0, "the first ", n, " positions of slot ", slot, " of ", slots_);
    const size_t bytes = places(n) * static_cast<size_t>(width_) * element_;
    for (int head = 0; head < heads_ && n > 0; head++) {
        const Place place = block(slot, head, 0);
        move(place.keys, bytes);
        move(place.values, bytes);
        if (!place.key_scales) continue;
        move(reinterpret_cast<std::byte*>(place.key_scales), places(n) * sizeof(float));
        move(reinterpret_cast<std::byte*>(place.value_scales), places(n) * sizeof(float));
    }
}

void Cache::save(int64_t slot, int64_t n, std::byte* bytes) const {
    each_piece(slot, n, [&](std::byte* piece, size_t size) {
        std::memcpy(bytes, piece, size);
        bytes += size;
    });
}

void Cache::load(int64_t slot, int64_t n, const std::byte* bytes) {
    each_piece(slot, n, [&](std::byte* piece, size_t size) {
        std::memcpy(piece, bytes, size);
        bytes += size;
    });
}

}  // namespace cellmd
