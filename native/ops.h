// The operations of backends/ops.py on tensors. Shapes, types and indices are checked here: every function throws
// ArgumentError for what does not fit.
#pragma once

#include <optional>
#include <utility>
#include <variant>

#include "context.h"
#include "matrix.h"
#include "tensor.h"

namespace cellmd {

struct Norm {
    const Tensor* weight;  // or null
    float eps;
};

// What closes a residual block: x = (x + the norm of y) * scale.
struct Closing {
    const Tensor* y;
    Norm norm;
    float scale;
};
// What is multiplied: the rows of x, which are closed first if there is a block to close, or their norm.
struct Rows {
    const Tensor& x;
    std::optional<Closing> closing;
    std::optional<Norm> norm;
};

// ---- ops_linear.cpp ----
// The products with each matrix; of a cap other than 0, cap * tanh(product / cap).
std::vector<Tensor> linears(Context&, const Rows&, std::span<const Matrix* const>, float cap = 0.0f);
// gelu(gate) * up of the products with two matrices.
Tensor gated_linear(Context&, const Rows&, const Matrix& gate, const Matrix& up);
// The product of that with a third.
Tensor gated_layer(Context&, const Rows&, const Matrix& gate, const Matrix& up, const Matrix& down);

// ---- ops_rows.cpp ----
Tensor embed(Context&, const Matrix& table, const Tensor& ids, float scale, int64_t start, int64_t stop);
Tensor take_rows(Context&, const Tensor& x, const Tensor& rows);
void put_rows(Context&, const Tensor& x, const Tensor& rows, const Tensor& values);
Tensor rms_norm(Context&, const Tensor& x, Norm);
Tensor layer_norm(Context&, const Tensor& x, const Tensor& weight, float eps);
void add_norm(Context&, const Tensor& x, const Closing&);
// (The norm of x * x_scale, over each part of a row as wide as its weight, + looked-up rows) * scale, into x itself.
void norm_add_embed(Context&, const Tensor& x, float x_scale, Norm, const Matrix& table, const Tensor& ids, float table_scale,
                    int64_t start, float scale);
Tensor rope_table(Context&, const Tensor& positions, double base, int64_t rotary_dim, int64_t head_dim,
                  double stretch = 1.0);
Tensor rope(Context&, const Tensor& x, std::optional<Norm>, const Tensor& table);
Tensor rope_2d(Context&, const Tensor& x, std::optional<Norm>, const Tensor& table_x, const Tensor& table_y);

// ---- ops_elementwise.cpp ----
using Operand = std::variant<float, const Tensor*>;
void add(Context&, const Tensor& x, const Tensor& y, float factor);
void scale(Context&, const Tensor& x, float factor);
Tensor affine(Context&, const Tensor& x, Operand factor, Operand offset);
Tensor clamp(Context&, const Tensor& x, float low, float high);
Tensor geglu(Context&, const Tensor& gate, const Tensor& up);
Tensor silu(Context&, const Tensor& x);
Tensor glu(Context&, const Tensor& x);
void softcap(Context&, const Tensor& x, float cap);

// ---- ops_vocabulary.cpp ----
// Values float32 (N, k) and columns int32 (N, k) of the k largest of each row.
std::pair<Tensor, Tensor> top_k(Context&, const Tensor& logits, int64_t k);
Tensor log_sum_exp(Context&, const Tensor& logits);

// ---- ops_conv.cpp ----
Tensor conv2d(Context&, const Tensor& x, const Tensor& kernel);
Tensor depthwise_conv1d(Context&, const Tensor& x, const Tensor& kernel);
Tensor pool_patches(Context&, const Tensor& x, int64_t grid_width, int64_t size);

// ---- ops_attention.cpp ----
class Cache;
Tensor attention(Context&, const Tensor& q, const Cache&, const Tensor& slots, const Tensor& positions, int64_t window);
void append(Context&, Cache&, const Tensor& keys, const Tensor& values, const Tensor& slots, const Tensor& positions);
void append_normed(Context&, Cache&, const Tensor& keys, const Tensor& values, Norm key_norm, const Tensor& table,
                   const Tensor& slots, const Tensor& positions);
Tensor attention_bidirectional(Context&, const Tensor& q, const Tensor& k, const Tensor& v);
Tensor attention_relative(Context&, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& relative_keys,
                          int64_t past, int64_t future, float cap);

}  // namespace cellmd
