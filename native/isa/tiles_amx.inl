// Tiles: Intel's AMX, eight of 16 rows x 64 bytes. What each of these means: isa/tiles_plain.inl.
// Macros, since an instruction names its tiles and compilers want to see the numbers.

#define CELLMD_TILE_ZERO(tile) _tile_zero(tile)
#define CELLMD_TILE_LOAD(tile, from) _tile_loadd(tile, from, 64)
#define CELLMD_TILE_DOT(sum, codes, weights) _tile_dpbssd(sum, codes, weights)
#define CELLMD_TILE_STORE(tile, to) _tile_stored(tile, to, 64)

CELLMD_INLINE void signed_codes_of_int4(const uint8_t* from, uint8_t* to) {
    const __m512i offset = _mm512_set1_epi8(8);
    Codes low, high;
    codes_of_int4(from, low, high);
    _mm512_storeu_si512(to, _mm512_sub_epi8(low.v, offset));
    _mm512_storeu_si512(to + 64, _mm512_sub_epi8(high.v, offset));
}

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    CELLMD_INLINE void set(int tile, int n_rows, int n_bytes) {
        rows[tile] = static_cast<uint8_t>(n_rows);
        row_bytes[tile] = static_cast<uint16_t>(n_bytes);
    }
};
static_assert(sizeof(TileShapes) == 64);

CELLMD_INLINE void configure_tiles(const TileShapes& shapes) {
    _tile_loadconfig(&shapes);
    asm volatile("" ::: "memory");  // loads of tiles are not said to read memory: nothing written before may come after them
}
CELLMD_INLINE void release_tiles() { _tile_release(); }
