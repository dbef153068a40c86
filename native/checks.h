// Checks that several operations share.
#pragma once

#include "ops.h"

namespace cellmd {

inline void require_floats(const Tensor& x, int dims, const char* what) {
    require(x.type() == ElementType::Float && x.dims() == dims, what, " must be float32 of ", dims, " dimensions, found ",
            x);
}

inline void require_contiguous(const Tensor& x, const char* what) {
    require(x.contiguous(), what, " must be contiguous; it is a view of columns of ", x);
}

inline void require_vector(const Tensor& x, int64_t size, const char* what) {
    require(x.type() == ElementType::Float && x.dims() == 1 && x.size(0) == size, what, " must be float32 (", size,
            "), found ", x);
}

// int32 (size,) with values in 0..limit-1.
inline void require_indices(const Tensor& x, int64_t size, int64_t limit, const char* what) {
    require(x.type() == ElementType::Int && x.dims() == 1 && x.size(0) == size, what, " must be int32 (", size, "), found ",
            x);
    for (int64_t i = 0; i < size; i++)
        require(0 <= x.ints()[i] && x.ints()[i] < limit, what, "[", i, "] is ", x.ints()[i], "; 0..", limit - 1,
                " are possible");
}

inline void require_same_shape(const Tensor& x, const Tensor& y, const char* what) {
    require(x.type() == y.type() && x.dims() == y.dims() && std::equal(x.shape().begin(), x.shape().end(), y.shape().begin()),
            what, ": shapes differ, ", x, " and ", y);
}

inline void require_closing(const Tensor& x, const Closing& closing) {
    require_floats(x, 2, "the sum of a norm");
    require_same_shape(x, *closing.y, "the sum of a norm");
    require(closing.norm.weight != nullptr, "the sum of a norm needs its weight");
    require_vector(*closing.norm.weight, x.size(1), "the weight of a norm");
}

}  // namespace cellmd
