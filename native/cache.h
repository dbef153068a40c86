// Keys and values of one layer, for several sequences.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "reading.h"

namespace cellmd {

// Position p of a sequence lies at p mod capacity, so that a block of kKeyBlock positions (beginning at a multiple of it)
// is contiguous: capacity is rounded up to a multiple. Widths are padded to 16 channels, with zeros. For each slot and head
//   keys    [capacity / kKeyBlock][width][kKeyBlock]   transposed, so that kernels find keys side by side
//   values  [capacity][width]
// as half, float32, or int8 with one scale for each key and value. Memory is taken as positions are written.
class Cache {
   public:
    Cache(int64_t slots, int64_t capacity, int64_t heads, int64_t head_dim, CacheType type);

    int64_t slots() const { return slots_; }
    int64_t capacity() const { return capacity_; }
    int heads() const { return heads_; }
    int head_dim() const { return head_dim_; }
    int width() const { return width_; }
    CacheType type() const { return type_; }

    // Block of the position `first`, a multiple of kKeyBlock. Scales are null but for int8.
    struct Place {
        std::byte *keys, *values;
        float *key_scales, *value_scales;
    };
    Place block(int64_t slot, int head, int64_t first) const;

    // Keys and values of the first head at positions first..last-1, as far as they lie at a stretch.
    Reads reads(int64_t slot, int64_t first, int64_t last) const;

    // One key and one value of `width()` channels, padded with zeros.
    void write(const KernelTable&, int64_t slot, int head, int64_t position, const float* key, const float* value);

    // What lies at the first n positions of one sequence, to where another's lie; all of it once n exceeds the capacity.
    void copy(int64_t from, int64_t to, int64_t n);

    // The same as bytes, which `load` takes on a cache of equal heads, widths, type and (for n above it) capacity.
    size_t saved_bytes(int64_t n) const;
    void save(int64_t slot, int64_t n, std::byte* bytes) const;
    void load(int64_t slot, int64_t n, const std::byte* bytes);

   private:
    size_t places(int64_t n) const;
    template <class Move>
    void each_piece(int64_t slot, int64_t n, Move&& move) const;

    int64_t slots_, capacity_;
    int heads_, head_dim_, width_;
    CacheType type_;
    size_t element_;
    LazyZeros keys_, values_, scales_;
};

}  // namespace cellmd
