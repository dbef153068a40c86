// A processor's own tiles in plain C++: what the instructions mean, and a way to test products with tiles where no processor
// has them. Eight tiles a thread, of at most 16 rows x 64 bytes.

struct TileShapes {
    int rows[8] = {}, row_bytes[8] = {};
    CELLMD_INLINE void set(int tile, int n_rows, int n_bytes) {
        rows[tile] = n_rows;
        row_bytes[tile] = n_bytes;
    }
};

struct Tiles {
    TileShapes shapes;
    int8_t bytes[8][16][64];

    void zero(int tile) { __builtin_memset(bytes[tile], 0, sizeof bytes[tile]); }
    // Rows of memory begin 64 bytes apart.
    void load(int tile, const void* from) {
        zero(tile);
        for (int i = 0; i < shapes.rows[tile]; i++)
            __builtin_memcpy(bytes[tile][i], static_cast<const int8_t*>(from) + 64 * i, static_cast<size_t>(shapes.row_bytes[tile]));
    }
    void store(int tile, void* to) const {
        for (int i = 0; i < shapes.rows[tile]; i++)
            __builtin_memcpy(static_cast<int8_t*>(to) + 64 * i, bytes[tile][i], static_cast<size_t>(shapes.row_bytes[tile]));
    }
    // sum[token][row], int32, += codes[token][column] * weights[column / 4][row][column % 4]
    void dot(int sum, int codes, int weights) {
        for (int token = 0; token < shapes.rows[codes]; token++) {
            int32_t total[16];
            __builtin_memcpy(total, bytes[sum][token], sizeof total);
            for (int row = 0; row < 16; row++)
                for (int column = 0; column < shapes.row_bytes[codes]; column++)
                    total[row] += bytes[codes][token][column] * bytes[weights][column / 4][4 * row + column % 4];
            __builtin_memcpy(bytes[sum][token], total, sizeof total);
        }
    }
};
static thread_local Tiles tiles;

#define CELLMD_TILE_ZERO(tile) tiles.zero(tile)
#define CELLMD_TILE_LOAD(tile, from) tiles.load(tile, from)
#define CELLMD_TILE_DOT(sum, codes, weights) tiles.dot(sum, codes, weights)
#define CELLMD_TILE_STORE(tile, to) tiles.store(tile, to)

// 64 bytes of int4, tile16, as int8: the four columns of the low nibbles, then those of the high ones.
CELLMD_INLINE void signed_codes_of_int4(const uint8_t* from, uint8_t* to) {
    for (int i = 0; i < 64; i++) {
        to[i] = static_cast<uint8_t>((from[i] & 15) - 8);
        to[64 + i] = static_cast<uint8_t>((from[i] >> 4) - 8);
    }
}

CELLMD_INLINE void configure_tiles(const TileShapes& shapes) {
    __builtin_memset(tiles.bytes, 1, sizeof tiles.bytes);  // as good as undefined
    tiles.shapes = shapes;
}
CELLMD_INLINE void release_tiles() { tiles.shapes = {}; }
