// Rows: look-ups, selections, norms, rotations.
#include <atomic>
#include <cmath>
#include <cstring>

#include "checks.h"
#include "ops.h"

namespace cellmd {
namespace {

// x (N, D) or (N, H, hd): how many vectors are normed or turned for themselves, and how wide they are.
struct Vectors {
    int64_t count, per_row;
    int width;
};

Vectors vectors_of(const Tensor& x, const char* what) {
    require(x.type() == ElementType::Float && (x.dims() == 2 || x.dims() == 3), what, " must be float32 (N, D) or (N, H, hd), "
            "found ", x);
    const int64_t width = x.size(x.dims() - 1), per_row = x.dims() == 3 ? x.size(1) : 1;
    require(width > 0, what, " has rows of nothing");
    return {x.size(0) * per_row, per_row, static_cast<int>(width)};
}

const float* vector_at(const Tensor& x, const Vectors& v, int64_t i) {
    return x.row(i / v.per_row) + (i % v.per_row) * v.width;
}

const float* weight_of(const Norm& norm, int width) {
    if (!norm.weight) return nullptr;
    require_vector(*norm.weight, width, "the weight of a norm");
    return norm.weight->floats();
}

void require_table(const Tensor& table, int64_t rows, int64_t half) {
    require(table.type() == ElementType::Float && table.dims() == 3 && table.size(0) == rows && table.size(1) == 2 &&
                table.size(2) <= half,
            "the rotary table must be float32 (", rows, ", 2, at most ", half, "), found ", table);
}

}  // namespace

Tensor embed(Context& context, const Matrix& table, const Tensor& ids, float scale, int64_t start, int64_t stop) {
    require_indices(ids, ids.dims() == 1 ? ids.size(0) : -1, table.n(), "ids");
    require(0 <= start && start <= stop && stop <= table.k(), "columns ", start, "..", stop, " of a table of ", table.k());
    require(start % 16 == 0 && (stop % 16 == 0 || stop == table.k()), "columns ", start, "..", stop,
            ": rows are cut at multiples of 16");
    Tensor out(*context.memory, {ids.size(0), stop - start});
    std::atomic<int> failure{0};
    if (table.looked_up_by_reading() && ids.size(0) > 1)
        for (int64_t i = 0; i < ids.size(0); i++) table.expect_row(ids.ints()[i]);
    context.parallel(ids.size(0), static_cast<double>(stop - start) / 4.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t row = ids.ints()[i];
            Lookup from = table.lookup();
            if (table.looked_up_by_reading())
                if (const int failed = table.read_row(row, reinterpret_cast<uint8_t*>(scratch(table.row_bytes() / 4 + 1)), from)) {
                    failure = failed;
                    return;
                }
            context.kernels.lookup(from, row, static_cast<int>(start), static_cast<int>(stop), scale, out.row(i));
        }
    });
    if (failure > 0) throw FileError(std::string("the model's file cannot be read: ") + std::strerror(failure));
    if (failure < 0) throw FileError("the model's file has become shorter since it was opened; copy or convert it again");
    return out;
}

Tensor take_rows(Context& context, const Tensor& x, const Tensor& rows) {
    require(x.dims() >= 1, "rows of a tensor without dimensions");
    require_indices(rows, rows.dims() == 1 ? rows.size(0) : -1, x.size(0), "rows");
    std::vector<int64_t> shape(x.shape().begin(), x.shape().end());
    shape[0] = rows.size(0);
    Tensor out(*context.memory, x.type(), shape);
    for (int64_t i = 0; i < rows.size(0); i++)  // float32 and int32 are of one size
        std::memcpy(out.row(i), x.row(rows.ints()[i]), static_cast<size_t>(x.row_size()) * 4);
    return out;
}

void put_rows(Context&, const Tensor& x, const Tensor& rows, const Tensor& values) {
    require(x.dims() >= 1 && values.dims() >= 1 && x.type() == values.type() && x.row_size() == values.row_size(),
            "rows of ", values, " do not fit ", x);
    require_indices(rows, values.size(0), x.size(0), "rows");
    for (int64_t i = 0; i < values.size(0); i++)
        std::memcpy(x.row(rows.ints()[i]), values.row(i), static_cast<size_t>(x.row_size()) * 4);
}

Tensor rms_norm(Context& context, const Tensor& x, Norm norm) {
    const Vectors v = vectors_of(x, "the input of a norm");
    const float* weight = weight_of(norm, v.width);
    Tensor out(*context.memory, ElementType::Float, x.shape());
    context.parallel(v.count, v.width / 8.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++)
            context.kernels.rms_norm(vector_at(x, v, i), weight, norm.eps, v.width, out.floats() + i * v.width);
    });
    return out;
}

Tensor layer_norm(Context& context, const Tensor& x, const Tensor& weight, float eps) {
    const Vectors v = vectors_of(x, "the input of a norm");
    require_vector(weight, v.width, "the weight of a norm");
    Tensor out(*context.memory, ElementType::Float, x.shape());
    context.parallel(v.count, v.width / 4.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++)
            context.kernels.layer_norm(vector_at(x, v, i), weight.floats(), eps, v.width, out.floats() + i * v.width);
    });
    return out;
}

void add_norm(Context& context, const Tensor& x, const Closing& closing) {
    require_closing(x, closing);
    const int width = vectors_of(x, "the sum of a norm").width;
    context.parallel(x.size(0), width / 6.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++)
            context.kernels.add_norm(x.row(i), closing.y->row(i), closing.norm.weight->floats(), closing.norm.eps, closing.scale,
                                     width);
    });
}

void norm_add_embed(Context& context, const Tensor& x, float x_scale, Norm norm, const Matrix& table, const Tensor& ids,
                    float table_scale, int64_t start, float scale) {
    require_floats(x, 2, "what is normed in parts");
    require(norm.weight && norm.weight->dims() == 1 && norm.weight->size(0) > 0 && x.size(1) % norm.weight->size(0) == 0,
            "rows of ", x, " are not made of parts as wide as the weight of their norm");
    require(ids.dims() == 1 && ids.size(0) == x.size(0), "ids ", ids, " for rows of ", x);
    const int columns = static_cast<int>(x.size(1)), width = static_cast<int>(norm.weight->size(0));
    const float* weight = weight_of(norm, width);
    const Tensor looked_up = embed(context, table, ids, table_scale, start, start + columns);
    context.parallel(x.size(0), columns / 2.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
            float* const row = x.row(i);
            context.kernels.scale(row, x_scale, columns);
            for (int c = 0; c < columns; c += width) context.kernels.rms_norm(row + c, weight, norm.eps, width, row + c);
            context.kernels.add(row, looked_up.row(i), 1.0f, columns);
            context.kernels.scale(row, scale, columns);
        }
    });
}

Tensor rope_table(Context& context, const Tensor& positions, double base, int64_t rotary_dim, int64_t head_dim,
                  double stretch) {
    require_indices(positions, positions.dims() == 1 ? positions.size(0) : -1, int64_t{1} << 31, "positions");
    require(base > 0 && stretch > 0 && rotary_dim >= 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim,
            "a rotary table of ", rotary_dim, " of ", head_dim, " channels on base ", base, ", stretched by ", stretch);
    const int64_t half = rotary_dim / 2;
    std::vector<float> frequencies(static_cast<size_t>(half));
    for (int64_t i = 0; i < half; i++) {
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
        const float whole = 1.0f / static_cast<float>(std::pow(base, static_cast<double>(exponent)));
        frequencies[static_cast<size_t>(i)] = whole / static_cast<float>(stretch);
    }
    Tensor out(*context.memory, {positions.size(0), 2, half});
    context.parallel(positions.size(0), static_cast<double>(half) * 40.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; row++)
            for (int64_t i = 0; i < half; i++) {
                const float angle = static_cast<float>(positions.ints()[row]) * frequencies[static_cast<size_t>(i)];
                out.row(row)[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
                out.row(row)[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
            }
    });
    return out;
}

Tensor rope(Context& context, const Tensor& x, std::optional<Norm> norm, const Tensor& table) {
    require_floats(x, 3, "the input of a rotation");
    const Vectors v = vectors_of(x, "the input of a rotation");
    require(v.width % 2 == 0, "heads of an odd width ", v.width);
    require_table(table, x.size(0), v.width / 2);
    const float* weight = norm ? weight_of(*norm, v.width) : nullptr;
    const int turning = static_cast<int>(table.size(2));
    Tensor out(*context.memory, ElementType::Float, x.shape());
    context.parallel(v.count, v.width / 4.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
            const float* from = vector_at(x, v, i);
            float* to = out.floats() + i * v.width;
            if (norm) {
                context.kernels.rms_norm(from, weight, norm->eps, v.width, to);
                from = to;
            }
            const float* cos = table.row(i / v.per_row);
            context.kernels.rope(from, cos, cos + turning, turning, v.width / 2, to);
        }
    });
    return out;
}

Tensor rope_2d(Context& context, const Tensor& x, std::optional<Norm> norm, const Tensor& table_x, const Tensor& table_y) {
    require_floats(x, 3, "the input of a rotation");
    const Vectors v = vectors_of(x, "the input of a rotation");
    require(v.width % 4 == 0, "heads of width ", v.width, "; two halves of even width are needed");
    require_table(table_x, x.size(0), v.width / 4);
    require_table(table_y, x.size(0), v.width / 4);
    const float* weight = norm ? weight_of(*norm, v.width) : nullptr;
    Tensor out(*context.memory, ElementType::Float, x.shape());
    context.parallel(v.count, v.width / 4.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) {
            const float* from = vector_at(x, v, i);
            float* to = out.floats() + i * v.width;
            if (norm) {
                context.kernels.rms_norm(from, weight, norm->eps, v.width, to);
                from = to;
            }
            const int half = v.width / 2;
            for (const Tensor* table : {&table_x, &table_y}) {
                const int turning = static_cast<int>(table->size(2));
                const float* cos = table->row(i / v.per_row);
                context.kernels.rope(from, cos, cos + turning, turning, half / 2, to);
                from += half;
                to += half;
            }
        }
    });
    return out;
}

}  // namespace cellmd
