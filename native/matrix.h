// Stored tensors, bound: checked once, read in place ever after.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "reading.h"

namespace cellmd {

// "f16", "bf16", "f32" or "i8"; anything else is an ArgumentError.
ScaleType scale_type_of(std::string_view name);
int64_t scale_bytes(ScaleType type);

// A place in an open file.
struct FileBytes {
    int descriptor;
    int64_t offset;
};

// A stored tensor as `quant/tensor.py` describes it. Bytes are read-only views that `owner` keeps alive, and
// the file open.
struct StoredTensor {
    int64_t n, k;  // all dimensions but the last, the last
    std::string_view dtype, layout;
    std::optional<std::string_view> scale_dtype;
    int64_t group_size;
    std::span<const std::byte> data, scales;
    std::span<const float> row_factors;
    std::optional<FileBytes> file;  // where the data lies, for a table that is to be looked up by reading
    std::shared_ptr<const void> owner;
};

struct Clip {
    float input_low, input_high, output_low, output_high;
};

// An n x k matrix to multiply with or to look rows up in.
class Matrix {
   public:
    // Throws ArgumentError if the bytes do not fit the shape or the coding is unknown.
    Matrix(const StoredTensor& stored, std::optional<Clip> clip, std::vector<float> bias);

    enum class Kind : uint8_t { Int4Tiled, Int8Tiled, Int4Rows, Int8Rows, Float };

    Kind kind() const { return kind_; }
    bool tiled() const { return kind_ == Kind::Int4Tiled || kind_ == Kind::Int8Tiled; }
    int n() const { return n_; }
    int k() const { return k_; }
    const IntMatrix& integers() const { return integers_; }
    const FloatMatrix& floats() const { return floats_; }
    const Lookup& lookup() const { return lookup_; }
    // Whether a row's codes are read before it is looked up: row_bytes() into `room`, of which `from` is then made. Fails
    // with what errno says, or -1 where the file ends; else 0.
    bool looked_up_by_reading() const { return file_.has_value(); }
    size_t row_bytes() const { return static_cast<size_t>(row_bytes_); }
    int read_row(int64_t row, uint8_t* room, Lookup& from) const;
    // Has the system bring such a row from the disk meanwhile, if it can.
    void expect_row(int64_t row) const;
    float input_low() const { return input_low_; }
    float input_high() const { return input_high_; }
    Stretch codes() const { return {integers_.codes, code_bytes_}; }
    Reading& reading() const { return *reading_; }

    // Outputs start..stop-1 alone, sharing memory; both are multiples of 16, or stop is n.
    Matrix rows(int64_t start, int64_t stop) const;

   private:
    void bind_integers(const StoredTensor& stored);
    void bind_floats(const StoredTensor& stored);

    Kind kind_;
    int n_, k_;
    IntMatrix integers_{};
    FloatMatrix floats_{};
    Lookup lookup_{};
    int64_t row_bytes_ = 0;
    std::optional<FileBytes> file_;
    float input_low_, input_high_;
    std::shared_ptr<const std::vector<float>> bias_;
    std::shared_ptr<const void> owner_;
    size_t code_bytes_ = 0;
    std::shared_ptr<Reading> reading_ = std::make_shared<Reading>();
};

}  // namespace cellmd
