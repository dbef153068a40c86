// Rows of a stored table as float32. A number is rounded as code * scale and again when the factor is applied.

CELLMD_INLINE float lookup_scale(const Lookup& a, int64_t row, int group) {
    const int g = a.scale_groups == 1 ? 0 : group;
    const size_t at = a.tiled ? (static_cast<size_t>(row / 16) * a.scale_groups + g) * 16 + row % 16
                              : static_cast<size_t>(row) * a.scale_groups + g;
    return scale_at(a.scales, a.scale_type, at, a.row_factors ? a.row_factors[row] : 1.0f);
}

// Codes of columns begin..end-1, which lie in one group; begin is even.
CELLMD_INLINE void lookup_codes(const Lookup& a, int64_t row, int begin, int end, float scale, float factor, float* out) {
    const int n = end - begin;
    if (!a.tiled && a.bits == 4) {
        const uint8_t* bytes = a.data + static_cast<size_t>(row - a.first) * ceil_div(a.k, 2) + begin / 2;
        for (int i = 0; i < n / 2; i++) {
            out[2 * i] = static_cast<float>((bytes[i] & 15) - 8) * scale * factor;
            out[2 * i + 1] = static_cast<float>((bytes[i] >> 4) - 8) * scale * factor;
        }
        if (n % 2) out[n - 1] = static_cast<float>((bytes[n / 2] & 15) - 8) * scale * factor;
    } else if (!a.tiled) {
        const int8_t* codes = reinterpret_cast<const int8_t*>(a.data) + static_cast<size_t>(row - a.first) * a.k + begin;
        for (int i = 0; i < n; i++) out[i] = static_cast<float>(codes[i]) * scale * factor;
    } else {
        const int columns = a.bits == 4 ? 8 : 4;
        const uint8_t* tile = a.data + static_cast<size_t>(row / 16) * ceil_div(a.k, columns) * 64 + 4 * (row % 16);
        for (int i = 0; i < n; i++) {
            const int column = begin + i;
            const uint8_t byte = tile[static_cast<size_t>(column / columns) * 64 + column % 4];
            const int code = a.bits == 8 ? static_cast<int8_t>(byte) : (column % 8 < 4 ? byte & 15 : byte >> 4) - 8;
            out[i] = static_cast<float>(code) * scale * factor;
        }
    }
}

static void lookup(const Lookup& a, int64_t row, int start, int stop, float factor, float* out) {
    if (a.bits >= 16) {
        const size_t at = static_cast<size_t>(row - a.first) * a.k;
        for (int c = start; c < stop; c++) out[c - start] = float_at(a.data, a.float_type, at + c) * factor;
        return;
    }
    for (int begin = start; begin < stop;) {
        const int group = begin / a.group, end = lesser(stop, (group + 1) * a.group);
        lookup_codes(a, row, begin, end, lookup_scale(a, row, group), factor, out + begin - start);
        begin = end;
    }
}
