// Weights in tile16 layout.
//
// A tile's 16 rows are the lanes of a vector: 64 bytes of weights hold 4 (int8) or 2 x 4 (int4) columns of each row, and
// are multiplied by 4 activations broadcast to every lane.

// Bytes that a stream of weights is fetched ahead of its use when every weight is used once.
constexpr int kPrefetchBytes = 2560;
// The same for activations that pass by tiles, block after block.
constexpr int kActivationsAhead = 2048;

template <bool kInt4>
struct Tile16 {
    static constexpr int kStepColumns = kInt4 ? 8 : 4;  // columns in 64 bytes of a tile
    // Codes are larger than weights by 8 (int4) or kInt8Offset: sums begin with so many times what QuantiseArgs calls sums.
    static constexpr int kStart = kInt4 ? 1 : kInt8Offset / 8;
};

// One step of one tile: the codes of 64 bytes, and their sum with the activations of `kTokens` tokens.
template <bool kInt4>
struct StepCodes {
    Codes low, high;
    CELLMD_INLINE explicit StepCodes(const uint8_t* from) {
        if constexpr (kInt4)
            codes_of_int4(from, low, high);
        else
            low = codes_of_int8(from);
    }
    template <int kTokens>
    CELLMD_INLINE Vi dot(Vi sum, const int8_t* activations, int token) const {
        const int8_t* first = activations + 4 * token;
        if constexpr (kInt4)
            return dot8_int4(sum, low, high, first, first + 4 * kTokens);
        else
            return dot4(sum, low, first);
    }
};

// The sum of steps of one token, whose weights come from memory: the fewer instructions to a line of them, the more lines
// are under way.
template <bool kInt4>
struct StreamSums {
    Vi low = vizero(), high = vizero();
    CELLMD_INLINE void add(const uint8_t* from, const int8_t* activations) {
        if constexpr (kInt4)
            add8_int4(low, high, from, activations);
        else
            low = dot4(low, codes_of_int8(from), activations);
    }
    CELLMD_INLINE Vi total() const { return kInt4 ? joined_int4(low, high) : low; }
};

// Of a tile of k columns, and where it begins.
template <bool kInt4>
CELLMD_INLINE size_t tile_bytes(int k) {
    return static_cast<size_t>(64) * ceil_div(k, Tile16<kInt4>::kStepColumns);
}
template <bool kInt4>
CELLMD_INLINE const uint8_t* tile_of(const IntMatrix& m, int tile) {
    return m.codes + tile * tile_bytes<kInt4>(m.k);
}
