// Tensors: what activations are on this backend.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "errors.h"
#include "memory.h"

namespace cellmd {

enum class ElementType : uint8_t { Float, Int };

// float32 or int32 numbers in up to kMaxDims dimensions; rows (the first dimension) begin row_stride elements apart and
// are contiguous in themselves. Only 2-D tensors ever have a row_stride beyond a row's length (Ops.columns).
class Tensor {
   public:
    static constexpr int kMaxDims = 4;

    Tensor(MemoryPool& pool, ElementType type, std::span<const int64_t> shape);
    Tensor(MemoryPool& pool, std::initializer_list<int64_t> shape)
        : Tensor(pool, ElementType::Float, std::span(shape.begin(), shape.size())) {}

    ElementType type() const { return type_; }
    int dims() const { return dims_; }
    int64_t size(int dim) const { return shape_[static_cast<size_t>(dim)]; }
    std::span<const int64_t> shape() const { return {shape_.data(), static_cast<size_t>(dims_)}; }
    int64_t rows() const { return dims_ ? shape_[0] : 1; }
    int64_t row_size() const { return row_size_; }
    int64_t row_stride() const { return row_stride_; }
    int64_t elements() const { return rows() * row_size_; }
    bool contiguous() const { return row_stride_ == row_size_ || rows() <= 1; }
    std::string describe() const;

    float* floats() const { return static_cast<float*>(data_); }
    int32_t* ints() const { return static_cast<int32_t*>(data_); }
    float* row(int64_t i) const { return floats() + i * row_stride_; }

    Tensor reshaped(std::span<const int64_t> shape) const;
    Tensor columns(int64_t start, int64_t stop) const;

   private:
    void set_shape(std::span<const int64_t> shape);

    BlockRef block_;
    void* data_;
    int64_t row_size_, row_stride_;
    std::array<int64_t, kMaxDims> shape_{};
    ElementType type_;
    int dims_;
};

}  // namespace cellmd
