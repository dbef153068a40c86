#include "tensor.h"

#include <limits>

namespace cellmd {
namespace {

// Sizes of one tensor and counts of work fit an int in every kernel.
constexpr int64_t kMaxRowSize = std::numeric_limits<int32_t>::max() / 8;
constexpr int64_t kMaxElements = int64_t{1} << 36;

}  // namespace

void Tensor::set_shape(std::span<const int64_t> shape) {
    require(shape.size() <= kMaxDims, "a tensor of ", shape.size(), " dimensions; at most ", int{kMaxDims}, " are supported");
    dims_ = static_cast<int>(shape.size());
    row_size_ = 1;
    int64_t total = 1;
    for (size_t i = 0; i < shape.size(); i++) {
        require(shape[i] >= 0 && shape[i] <= kMaxElements, "a tensor with a side of ", shape[i]);
        shape_[i] = shape[i];
        total *= shape[i];
        require(total <= kMaxElements, "a tensor of more than ", kMaxElements, " elements");
        if (i > 0) row_size_ *= shape[i];
    }
    require(row_size_ <= kMaxRowSize, "a tensor with rows of ", row_size_, " elements; at most ", kMaxRowSize);
    row_stride_ = row_size_;
}

Tensor::Tensor(MemoryPool& pool, ElementType type, std::span<const int64_t> shape) : type_(type) {
    set_shape(shape);
    block_ = pool.take(static_cast<size_t>(elements()) * 4);
    data_ = block_.data();
}

std::string Tensor::describe() const {
    std::string text = type_ == ElementType::Float ? "float32 (" : "int32 (";
    for (int i = 0; i < dims_; i++) text += (i ? ", " : "") + std::to_string(size(i));
    return text + ")";
}

Tensor Tensor::reshaped(std::span<const int64_t> shape) const {
    require(contiguous(), "a view of columns cannot take another shape");
    Tensor other = *this;
    other.shape_ = {};
    other.set_shape(shape);
    require(other.elements() == elements(), *this, " cannot become ", other);
    return other;
}

Tensor Tensor::columns(int64_t start, int64_t stop) const {
    require(dims_ == 2 && type_ == ElementType::Float, "columns are taken of float32 (N, D), found ", *this);
    require(0 <= start && start <= stop && stop <= size(1), "columns ", start, "..", stop, " of ", *this);
    Tensor view = *this;
    view.shape_[1] = view.row_size_ = stop - start;
    view.data_ = floats() + start;
    return view;
}

}  // namespace cellmd
