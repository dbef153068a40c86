#include "matrix.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

namespace cellmd {
namespace {

constexpr int kGroupOfRowScales = 128;  // columns of activations that share a scale where a weight row has a single one
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* p, size_t alignment) { return reinterpret_cast<uintptr_t>(p) % alignment == 0; }

}  // namespace

ScaleType scale_type_of(std::string_view name) {
    if (name == "f16") return ScaleType::Half;
    if (name == "bf16") return ScaleType::BFloat;
    if (name == "f32") return ScaleType::Float;
    require(name == "i8", "scales of type '", name, "'; known are f16, bf16, f32 and i8");
    return ScaleType::Factored;
}

int64_t scale_bytes(ScaleType type) { return type == ScaleType::Float ? 4 : type == ScaleType::Factored ? 1 : 2; }

Matrix::Matrix(const StoredTensor& stored, std::optional<Clip> clip, std::vector<float> bias) : owner_(stored.owner) {
    constexpr int64_t kMaxSide = std::numeric_limits<int32_t>::max() / 16;
    require(0 < stored.n && stored.n <= kMaxSide && 0 < stored.k && stored.k <= kMaxSide, "a matrix of ", stored.n, " x ",
            stored.k, "; each side must be 1..", kMaxSide);
    require(stored.layout == "row" || stored.layout == "tile16", "layout '", stored.layout, "'; known are row and tile16");
    require(bias.empty() || static_cast<int64_t>(bias.size()) == stored.n, "a bias of ", bias.size(), " values for ",
            stored.n, " outputs");
    n_ = static_cast<int>(stored.n);
    k_ = static_cast<int>(stored.k);
    const Clip bounds = clip.value_or(Clip{-kInfinity, kInfinity, -kInfinity, kInfinity});
    require(bounds.input_low <= bounds.input_high && bounds.output_low <= bounds.output_high,
            "a clip range whose lower bound is above its upper one");
    input_low_ = bounds.input_low;
    input_high_ = bounds.input_high;
    if (!bias.empty()) bias_ = std::make_shared<const std::vector<float>>(std::move(bias));
    if (stored.scale_dtype)
        bind_integers(stored);
    else
        bind_floats(stored);
    if (stored.file) {
        require(stored.layout == "row", "a table that is read from a file must lie in rows");
        file_ = stored.file;
    }
    const float* added = bias_ ? bias_->data() : nullptr;
    integers_.bias = floats_.bias = added;
    integers_.low = floats_.low = bounds.output_low;
    integers_.high = floats_.high = bounds.output_high;
}

void Matrix::bind_integers(const StoredTensor& stored) {
    const bool tiled = stored.layout == "tile16", int4 = stored.dtype == "i4";
    require(int4 || stored.dtype == "i8", "a tensor with scales of type '", stored.dtype, "'; known are i4 and i8");
    kind_ = tiled ? (int4 ? Kind::Int4Tiled : Kind::Int8Tiled) : (int4 ? Kind::Int4Rows : Kind::Int8Rows);
    const int64_t group = stored.group_size;
    require(group == 0 || (group >= 8 && group % 8 == 0 && group <= 1024), "groups of ", group,
            " columns; 0 or a multiple of 8 up to 1024 is needed");
    const int64_t padded_n = tiled ? ceil_div(n_, 16) * 16 : n_;
    row_bytes_ = tiled ? 4 * ceil_div(k_, int4 ? 8 : 4) : int4 ? ceil_div(k_, 2) : k_;
    const int64_t scale_groups = group ? ceil_div(k_, group) : 1;
    const ScaleType type = scale_type_of(*stored.scale_dtype);
    const auto bytes = [](const auto& span) { return static_cast<int64_t>(span.size_bytes()); };
    require(bytes(stored.data) == padded_n * row_bytes_, "codes of ", bytes(stored.data), " bytes; ", n_, " x ", k_,
            " needs ", padded_n * row_bytes_);
    require(bytes(stored.scales) == padded_n * scale_groups * scale_bytes(type), "scales of ", bytes(stored.scales),
            " bytes; ", n_, " x ", k_, " needs ", padded_n * scale_groups * scale_bytes(type));
    require(aligned(stored.scales.data(), static_cast<size_t>(scale_bytes(type))), "scales at an unaligned address");
    if (type == ScaleType::Factored) {
        require(static_cast<int64_t>(stored.row_factors.size()) == padded_n, "row factors of ", stored.row_factors.size(),
                " rows; ", padded_n, " are needed");
        require(aligned(stored.row_factors.data(), sizeof(float)), "row factors at an unaligned address");
    }
    integers_.codes = reinterpret_cast<const uint8_t*>(stored.data.data());
    code_bytes_ = stored.data.size();
    integers_.scales = stored.scales.data();
    integers_.row_factors = type == ScaleType::Factored ? stored.row_factors.data() : nullptr;
    integers_.scale_type = type;
    integers_.n = n_;
    integers_.k = k_;
    integers_.group = group ? static_cast<int>(group) : kGroupOfRowScales;
    integers_.groups = static_cast<int>(ceil_div(k_, integers_.group));
    integers_.scale_groups = static_cast<int>(scale_groups);
    lookup_ = {.data = integers_.codes,
               .first = 0,
               .scales = integers_.scales,
               .row_factors = integers_.row_factors,
               .scale_type = type,
               .bits = int4 ? 4 : 8,
               .float_type = FloatType::Float,
               .tiled = tiled,
               .k = k_,
               .group = integers_.group,
               .scale_groups = integers_.scale_groups};
}

void Matrix::bind_floats(const StoredTensor& stored) {
    require(stored.layout == "row", "a float tensor in layout '", stored.layout, "'; only row is known");
    require(stored.dtype == "f32" || stored.dtype == "f16" || stored.dtype == "bf16", "a tensor without scales of type '",
            stored.dtype, "'; known are f32, f16 and bf16");
    kind_ = Kind::Float;
    floats_.type = stored.dtype == "f32" ? FloatType::Float : stored.dtype == "f16" ? FloatType::Half : FloatType::BFloat;
    const int64_t size = floats_.type == FloatType::Float ? 4 : 2;
    row_bytes_ = size * k_;
    require(static_cast<int64_t>(stored.data.size()) == n_ * row_bytes_, "a tensor of ", stored.data.size(), " bytes; ", n_,
            " x ", k_, " needs ", n_ * row_bytes_);
    require(aligned(stored.data.data(), static_cast<size_t>(size)), "a float tensor at an unaligned address");
    floats_.data = stored.data.data();
    floats_.n = n_;
    floats_.k = k_;
    lookup_ = {.data = reinterpret_cast<const uint8_t*>(stored.data.data()),
               .first = 0,
               .scales = nullptr,
               .row_factors = nullptr,
               .scale_type = ScaleType::Float,
               .bits = static_cast<int>(8 * size),
               .float_type = floats_.type,
               .tiled = false,
               .k = k_,
               .group = k_,
               .scale_groups = 1};
}

int Matrix::read_row(int64_t row, uint8_t* room, Lookup& from) const {
    for (int64_t done = 0; done < row_bytes_;) {
        const ssize_t n = pread(file_->descriptor, room + done, static_cast<size_t>(row_bytes_ - done),
                                static_cast<off_t>(file_->offset + row * row_bytes_ + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return -1;
        done += n;
    }
    from = lookup_;
    from.data = room;
    from.first = row;
    return 0;
}

void Matrix::expect_row([[maybe_unused]] int64_t row) const {
#ifdef POSIX_FADV_WILLNEED
    posix_fadvise(file_->descriptor, static_cast<off_t>(file_->offset + row * row_bytes_), static_cast<off_t>(row_bytes_),
                  POSIX_FADV_WILLNEED);
#endif
}

Matrix Matrix::rows(int64_t start, int64_t stop) const {
    require(0 <= start && start <= stop && stop <= n_, "rows ", start, "..", stop, " of a matrix with ", n_);
    require(start % kTileRows == 0 && (stop % kTileRows == 0 || stop == n_), "rows ", start, "..", stop,
            ": a matrix is cut at multiples of ", kTileRows);
    Matrix part = *this;
    part.n_ = static_cast<int>(stop - start);
    const float* bias = bias_ ? bias_->data() + start : nullptr;
    if (file_) part.file_->offset += start * row_bytes_;
    if (kind_ == Kind::Float) {
        part.floats_.data = static_cast<const std::byte*>(floats_.data) + start * row_bytes_;
        part.floats_.n = part.n_;
        part.floats_.bias = bias;
        part.lookup_.data = static_cast<const uint8_t*>(part.floats_.data);
        return part;
    }
    IntMatrix& m = part.integers_;
    m.codes += start * row_bytes_;
    part.code_bytes_ = static_cast<size_t>((stop - start) * row_bytes_);
    part.reading_ = std::make_shared<Reading>();
    m.scales = static_cast<const std::byte*>(m.scales) + start * m.scale_groups * scale_bytes(m.scale_type);
    if (m.row_factors) m.row_factors += start;
    m.n = part.n_;
    m.bias = bias;
    part.lookup_.data = m.codes;
    part.lookup_.scales = m.scales;
    part.lookup_.row_factors = m.row_factors;
    return part;
}

}  // namespace cellmd
