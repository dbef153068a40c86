// Element by element.
#include "checks.h"
#include "ops.h"

namespace cellmd {
namespace {

constexpr int64_t kAtOnce = 4096;  // elements of contiguous tensors that are handed out together

void require_float(const Tensor& x, const char* what) {
    require(x.type() == ElementType::Float, what, " takes float32, found ", x);
}

// body(row, column, n) for stretches of n elements that are contiguous in every tensor.
template <typename Body>
void each_stretch(Context& context, bool contiguous, int64_t rows, int64_t row_size, double cost, const Body& body) {
    if (row_size == 0) return;
    if (!contiguous) {
        context.parallel(rows, cost * static_cast<double>(row_size) / 16.0, [&](int64_t begin, int64_t end, int) {
            for (int64_t row = begin; row < end; row++) body(row, int64_t{0}, static_cast<int>(row_size));
        });
        return;
    }
    const int64_t elements = rows * row_size;
    context.parallel((elements + kAtOnce - 1) / kAtOnce, cost * kAtOnce / 16.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++)
            body(int64_t{0}, i * kAtOnce, static_cast<int>(std::min(kAtOnce, elements - i * kAtOnce)));
    });
}

// out = f(x) of x's shape.
template <typename Kernel>
Tensor map(Context& context, const Tensor& x, const char* what, double cost, const Kernel& kernel) {
    require_float(x, what);
    Tensor out(*context.memory, ElementType::Float, x.shape());
    each_stretch(context, x.contiguous(), x.rows(), x.row_size(), cost, [&](int64_t row, int64_t column, int n) {
        kernel(x.row(row) + column, n, out.row(row) + column);
    });
    return out;
}

}  // namespace

void add(Context& context, const Tensor& x, const Tensor& y, float factor) {
    require_float(x, "add");
    require_same_shape(x, y, "add");
    each_stretch(context, x.contiguous() && y.contiguous(), x.rows(), x.row_size(), 2.0, [&](int64_t row, int64_t column, int n) {
        context.kernels.add(x.row(row) + column, y.row(row) + column, factor, n);
    });
}

void scale(Context& context, const Tensor& x, float factor) {
    require_float(x, "scale");
    each_stretch(context, x.contiguous(), x.rows(), x.row_size(), 1.0, [&](int64_t row, int64_t column, int n) {
        context.kernels.scale(x.row(row) + column, factor, n);
    });
}

Tensor affine(Context& context, const Tensor& x, Operand factor, Operand offset) {
    require_float(x, "affine");
    const auto values = [&](const Operand& operand) -> const float* {
        const Tensor* const* tensor = std::get_if<const Tensor*>(&operand);
        if (!tensor) return nullptr;
        require(x.dims() >= 1, "affine by a vector of a tensor without dimensions");
        require_vector(**tensor, x.size(x.dims() - 1), "an operand of affine");
        return (*tensor)->floats();
    };
    const auto number = [](const Operand& operand) {
        const float* value = std::get_if<float>(&operand);
        return value ? *value : 0.0f;
    };
    const float *factors = values(factor), *offsets = values(offset);
    const int64_t width = x.dims() ? x.size(x.dims() - 1) : 1, vectors = width ? x.elements() / width : 0;
    const int64_t per_row = x.rows() ? vectors / x.rows() : 0;
    Tensor out(*context.memory, ElementType::Float, x.shape());
    context.parallel(vectors, static_cast<double>(width) / 12.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++)
            context.kernels.affine(x.row(i / per_row) + i % per_row * width, factors, number(factor), offsets, number(offset),
                                   static_cast<int>(width), out.floats() + i * width);
    });
    return out;
}

Tensor clamp(Context& context, const Tensor& x, float low, float high) {
    return map(context, x, "clamp", 2.0, [&](const float* from, int n, float* to) { context.kernels.clamp(from, low, high, n, to); });
}

Tensor geglu(Context& context, const Tensor& gate, const Tensor& up) {
    require_float(gate, "geglu");
    require_same_shape(gate, up, "geglu");
    Tensor out(*context.memory, ElementType::Float, gate.shape());
    each_stretch(context, gate.contiguous() && up.contiguous(), gate.rows(), gate.row_size(), 25.0,
                 [&](int64_t row, int64_t column, int n) {
                     context.kernels.geglu(gate.row(row) + column, up.row(row) + column, n, out.row(row) + column);
                 });
    return out;
}

Tensor silu(Context& context, const Tensor& x) { return map(context, x, "silu", 20.0, context.kernels.silu); }

Tensor glu(Context& context, const Tensor& x) {
    require_floats(x, 2, "the input of a gated linear unit");
    require(x.size(1) % 2 == 0, "a gated linear unit of an odd number of columns, ", x.size(1));
    const int64_t half = x.size(1) / 2;
    Tensor out(*context.memory, {x.size(0), half});
    each_stretch(context, false, x.size(0), half, 20.0, [&](int64_t row, int64_t, int n) {
        context.kernels.glu(x.row(row), x.row(row) + half, n, out.row(row));
    });
    return out;
}

void softcap(Context& context, const Tensor& x, float cap) {
    require_float(x, "softcap");
    require(cap > 0.0f, "a cap of ", cap, "; it must be above 0");
    each_stretch(context, x.contiguous(), x.rows(), x.row_size(), 25.0, [&](int64_t row, int64_t column, int n) {
        context.kernels.softcap(x.row(row) + column, cap, n);
    });
}

}  // namespace cellmd
