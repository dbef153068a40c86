// Products with matrices: activations are prepared once for all matrices of a call, then all their tiles are shared out.
#include <algorithm>
#include <limits>
#include <utility>

#include "checks.h"
#include "ops.h"

namespace cellmd {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// How a matrix wants its activations.
struct Form {
    enum class Kind : uint8_t { Tiled, Int4Rows, Int8Rows, Float } kind;
    int group;
    float low, high;
    bool operator==(const Form&) const = default;
};

Form form_of(const Matrix& m) {
    switch (m.kind()) {
        case Matrix::Kind::Int4Tiled:
        case Matrix::Kind::Int8Tiled: return {Form::Kind::Tiled, m.integers().group, m.input_low(), m.input_high()};
        case Matrix::Kind::Int4Rows: return {Form::Kind::Int4Rows, m.integers().group, m.input_low(), m.input_high()};
        case Matrix::Kind::Int8Rows: return {Form::Kind::Int8Rows, m.integers().group, m.input_low(), m.input_high()};
        default: return {Form::Kind::Float, 0, m.input_low(), m.input_high()};
    }
}

// Activations of all rows in one form.
struct Prepared {
    Form form;
    BlockRef memory;
    int64_t code_stride, scale_stride;  // per row
    int8_t* codes;
    float* scales;
    int32_t* sums;
    float* floats;
};

QuantisedRows quantised_rows(const Prepared& p, int64_t first, int rows, int k) {
    return {.rows = rows, .k = k, .group = p.form.group, .low = p.form.low, .high = p.form.high,
            .codes = p.codes + first * p.code_stride, .scales = p.scales + first * p.scale_stride,
            .sums = p.sums + first * p.scale_stride};
}

// Room for `rows` activations of k numbers as a tiled matrix wants them.
Prepared room_for_codes(Context& context, const Form& form, int64_t rows, int64_t code_stride, int64_t scale_stride) {
    const auto align = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    const int64_t code_bytes = align(rows * code_stride), scale_bytes = align(rows * scale_stride * 4);
    const BlockRef memory = context.memory->take(static_cast<size_t>(code_bytes + 2 * scale_bytes));
    return {.form = form, .memory = memory, .code_stride = code_stride, .scale_stride = scale_stride,
            .codes = reinterpret_cast<int8_t*>(memory.data()), .scales = reinterpret_cast<float*>(memory.data() + code_bytes),
            .sums = reinterpret_cast<int32_t*>(memory.data() + code_bytes + scale_bytes), .floats = nullptr};
}
Prepared room_for_tiled(Context& context, const Form& form, int64_t rows, int64_t k) {
    const int64_t columns = context.kernels.code_columns;
    return room_for_codes(context, form, rows, (k + columns - 1) / columns * columns, (k + form.group - 1) / form.group);
}

class Inputs {
   public:
    Inputs(Context& context, const Rows& input) : context_(context), x_(input.x), closing_(input.closing), norm_(input.norm) {
        require_floats(x_, 2, "the input of a matrix");
        if (norm_ && norm_->weight) require_vector(*norm_->weight, x_.size(1), "the weight of a norm");
        if (closing_) require_closing(x_, *closing_);
    }

    // Index of the prepared activations that m will find.
    size_t add(const Matrix& m) {
        require(m.k() == x_.size(1), "a matrix of ", m.k(), " inputs times ", x_);
        const Form form = form_of(m);
        for (size_t i = 0; i < prepared_.size(); i++)
            if (prepared_[i].form == form) return i;
        prepared_.push_back(room_for(form));
        return prepared_.size() - 1;
    }

    void prepare() {
        const int rows = static_cast<int>(x_.size(0)), block = context_.kernels.token_block;
        const double cost = static_cast<double>(block) * static_cast<double>(x_.size(1)) / 8.0;
        context_.parallel(ceil_div(rows, block), cost, [&](int64_t begin, int64_t end, int) {
            for (auto i = static_cast<int>(begin); i < end; i++) prepare_rows(i * block, std::min(block, rows - i * block));
        });
    }

    const Prepared& operator[](size_t i) const { return prepared_[i]; }

   private:
    Prepared room_for(const Form& form) {
        const int64_t rows = x_.size(0), k = x_.size(1);
        switch (form.kind) {
            case Form::Kind::Tiled: return room_for_tiled(context_, form, rows, k);
            case Form::Kind::Int4Rows: return room_for_codes(context_, form, rows, (k + 127) / 128 * 128, (k + 127) / 128 * 16);
            case Form::Kind::Int8Rows: return room_for_codes(context_, form, rows, (k + 63) / 64 * 64, (k + 63) / 64 * 16);
            case Form::Kind::Float: break;
        }
        Prepared p{.form = form, .memory = {}, .code_stride = 0, .scale_stride = 0, .codes = nullptr, .scales = nullptr,
                   .sums = nullptr, .floats = nullptr};
        constexpr float kInfinity = std::numeric_limits<float>::infinity();
        if (!norm_ && form.low == -kInfinity && form.high == kInfinity) return p;  // x itself will do
        p.memory = context_.memory->take(static_cast<size_t>(rows * k) * sizeof(float));
        p.floats = reinterpret_cast<float*>(p.memory.data());
        return p;
    }

    void prepare_rows(int first, int rows) {
        const KernelTable& kernels = context_.kernels;
        const int k = static_cast<int>(x_.size(1));
        const float* x = x_.row(first);
        size_t stride = static_cast<size_t>(x_.row_stride());
        if (closing_)
            for (int i = first; i < first + rows; i++)
                kernels.add_norm(x_.row(i), closing_->y->row(i), closing_->norm.weight->floats(), closing_->norm.eps,
                                 closing_->scale, k);
        if (norm_) {
            float* normed = scratch(static_cast<size_t>(rows) * k);
            for (int i = 0; i < rows; i++)
                kernels.rms_norm(x + i * stride, norm_->weight ? norm_->weight->floats() : nullptr, norm_->eps, k,
                                 normed + static_cast<size_t>(i) * k);
            x = normed;
            stride = static_cast<size_t>(k);
        }
        for (const Prepared& p : prepared_) {
            if (p.form.kind == Form::Kind::Tiled) {
                kernels.quantise(x, stride, quantised_rows(p, first, rows, k));
                continue;
            }
            for (int i = 0; i < rows; i++) {
                const float* row = x + i * stride;
                if (p.form.kind == Form::Kind::Float) {
                    if (p.floats) kernels.clamp(row, p.form.low, p.form.high, k, p.floats + static_cast<int64_t>(first + i) * k);
                } else {
                    const int64_t at = first + i;
                    kernels.quantise_lanes({.x = row, .k = k, .group = p.form.group,
                                            .int4 = p.form.kind == Form::Kind::Int4Rows, .low = p.form.low,
                                            .high = p.form.high, .codes = p.codes + at * p.code_stride,
                                            .scales = p.scales + at * p.scale_stride, .sums = p.sums + at * p.scale_stride});
                }
            }
        }
    }

    Context& context_;
    const Tensor& x_;
    const std::optional<Closing> closing_;
    const std::optional<Norm> norm_;
    std::vector<Prepared> prepared_;
};

IntProduct product_of(const Prepared& p, int rows, const Tensor& out) {
    return {.codes = p.codes, .scales = p.scales, .sums = p.sums, .rows = rows, .out = out.floats(),
            .out_stride = static_cast<size_t>(out.row_stride())};
}

float* scratch_of(const KernelTable& kernels, const Matrix& m) { return scratch(kernels.gemm_scratch(m.integers())); }

int64_t tiles_of(const Matrix& m) { return ceil_div(m.n(), kTileRows); }

// Tiles are shared out in pairs: of neighbours, which kernels like to take together, or of one from each half, where all
// are read for a single token (KernelTable::gemv_int4).
constexpr int64_t kUnit = 2;
int64_t units_of(const Matrix& m) { return (tiles_of(m) + kUnit - 1) / kUnit; }
bool in_halves(const Matrix& m, const Tensor& x) { return m.tiled() && x.size(0) == 1; }

// Outputs first..last-1.
struct Span {
    int first, last;
    static Span of_tiles(const Matrix& m, int64_t begin, int64_t end) {
        return {static_cast<int>(begin) * kTileRows, std::min(m.n(), static_cast<int>(end) * kTileRows)};
    }
};

// Units begin..end-1 of the product with m; of a cap other than 0, cap * tanh(product / cap).
void multiply(const KernelTable& kernels, const Matrix& m, const Tensor& x, const Prepared& p, const Tensor& out, int64_t begin,
              int64_t end, float cap) {
    const auto capped = [&](const Span& span) {
        for (int64_t row = 0; cap != 0.0f && row < x.size(0); row++)
            kernels.softcap(out.row(row) + span.first, cap, span.last - span.first);
    };
    const int rows = static_cast<int>(x.size(0));
    const IntProduct product = product_of(p, rows, out);
    if (in_halves(m, x)) {
        const auto gemv = m.kind() == Matrix::Kind::Int4Tiled ? kernels.gemv_int4 : kernels.gemv_int8;
        gemv(m.integers(), product, static_cast<int>(begin), static_cast<int>(end));
        capped(Span::of_tiles(m, begin, end));
        capped(Span::of_tiles(m, units_of(m) + begin, units_of(m) + end));
        return;
    }
    const auto from = static_cast<int>(begin * kUnit), to = static_cast<int>(std::min(end * kUnit, tiles_of(m)));
    const Span span = Span::of_tiles(m, from, to);
    switch (m.kind()) {
        case Matrix::Kind::Int4Tiled: kernels.gemm_int4(m.integers(), product, from, to, scratch_of(kernels, m)); break;
        case Matrix::Kind::Int8Tiled: kernels.gemm_int8(m.integers(), product, from, to, scratch_of(kernels, m)); break;
        case Matrix::Kind::Int4Rows: kernels.gemm_row_int4(m.integers(), product, span.first, span.last); break;
        case Matrix::Kind::Int8Rows: kernels.gemm_row_int8(m.integers(), product, span.first, span.last); break;
        case Matrix::Kind::Float:
            kernels.gemm_float(m.floats(),
                               {.x = p.floats ? p.floats : x.floats(),
                                .x_stride = static_cast<size_t>(p.floats ? x.size(1) : x.row_stride()),
                                .rows = rows,
                                .out = out.floats(),
                                .out_stride = static_cast<size_t>(out.row_stride())},
                               span.first, span.last);
    }
    capped(span);
}

// What a single token reads of a matrix (KernelTable::gemv_int4).
Reads halves_of(const Matrix& m) {
    const Stretch all = m.codes();
    const size_t first = all.bytes / static_cast<size_t>(tiles_of(m)) * static_cast<size_t>(units_of(m));
    return {Stretch{all.begin, first}, {static_cast<const std::byte*>(all.begin) + first, all.bytes - first}};
}

double unit_cost(int64_t rows, const Matrix& m) {
    const double per_row = m.kind() == Matrix::Kind::Float ? 16.0 : m.tiled() ? 64.0 : 24.0;
    return static_cast<double>(rows) * static_cast<double>(m.k()) * 2.0 * kTileRows / per_row;
}

}  // namespace

std::vector<Tensor> linears(Context& context, const Rows& input, std::span<const Matrix* const> matrices, float cap) {
    const Tensor& x = input.x;
    Inputs inputs(context, input);
    struct Job {
        const Matrix* matrix;
        size_t input;
        int64_t first_unit, units;
    };
    std::vector<Job> jobs;
    std::vector<Tensor> outputs;
    int64_t units = 0;
    double cost = 0.0;
    for (const Matrix* m : matrices) {
        jobs.push_back({m, inputs.add(*m), units, units_of(*m)});
        outputs.emplace_back(*context.memory, std::initializer_list<int64_t>{x.size(0), m->n()});
        units += jobs.back().units;
        cost = std::max(cost, unit_cost(x.size(0), *m));
    }
    if (!matrices.empty() && in_halves(*matrices.front(), x))
        context.reads_once(matrices.front()->reading(), halves_of(*matrices.front()));
    inputs.prepare();
    context.parallel(x.size(0) ? units : 0, cost, [&](int64_t begin, int64_t end, int) {
        for (size_t i = 0; i < jobs.size(); i++) {
            const Job& job = jobs[i];
            const int64_t from = std::max<int64_t>(begin - job.first_unit, 0), to = std::min(end - job.first_unit, job.units);
            if (from >= to) continue;
            multiply(context.kernels, *job.matrix, x, inputs[job.input], outputs[i], from, to, cap);
        }
    }, x.size(0) > 1 ? kTilesOfScratch / kUnit : 1);
    return outputs;
}

Tensor linear(Context& context, const Tensor& x, const Matrix& matrix) {
    const Matrix* const one[] = {&matrix};
    return std::move(linears(context, {x, std::nullopt, std::nullopt}, one).front());
}

namespace {

// Whether kernels can multiply by both at once; they must have as many outputs.
bool go_together(const Matrix& gate, const Matrix& up) {
    require(gate.n() == up.n(), "a gate of ", gate.n(), " outputs and ", up.n(), " to be gated");
    const auto scales_of = [](const Matrix& m) { return std::pair(m.integers().scale_type, m.integers().scale_groups); };
    return gate.kind() == Matrix::Kind::Int4Tiled && up.kind() == gate.kind() && form_of(gate) == form_of(up) &&
           scales_of(gate) == scales_of(up);
}

}  // namespace

Tensor gated_linear(Context& context, const Rows& input, const Matrix& gate, const Matrix& up) {
    const Tensor& x = input.x;
    if (!go_together(gate, up)) {
        const Matrix* const both[] = {&gate, &up};
        const std::vector<Tensor> products = linears(context, input, both);
        return geglu(context, products[0], products[1]);
    }
    Inputs inputs(context, input);
    const Prepared& prepared = (static_cast<void>(inputs.add(gate)), inputs.add(up), inputs[0]);
    Tensor out(*context.memory, {x.size(0), gate.n()});
    if (in_halves(gate, x)) context.reads_once(gate.reading(), {gate.codes(), up.codes()});
    inputs.prepare();
    const IntProduct product = product_of(prepared, static_cast<int>(x.size(0)), out);
    context.parallel(x.size(0) ? tiles_of(gate) : 0, unit_cost(x.size(0), gate), [&](int64_t begin, int64_t end, int) {
        const auto first = static_cast<int>(begin), last = static_cast<int>(end);
        const IntMatrix &g = gate.integers(), &u = up.integers();
        if (in_halves(gate, x))
            context.kernels.gemv_int4_geglu(g, u, product, first, last);
        else
            context.kernels.gemm_int4_geglu(g, u, product, first, last, scratch_of(context.kernels, gate));
    }, x.size(0) > 1 ? kTilesOfScratch / 2 : 1);
    return out;
}

Tensor gated_layer(Context& context, const Rows& input, const Matrix& gate, const Matrix& up, const Matrix& down) {
    const Tensor& x = input.x;
    require(down.k() == gate.n(), "a matrix of ", down.k(), " inputs after a gate of ", gate.n(), " outputs");
    const bool gated_in_codes = x.size(0) > 1 && go_together(gate, up) && down.tiled() &&
                                kGatedTiles * kTileRows % down.integers().group == 0;
    if (!gated_in_codes) return linear(context, gated_linear(context, input, gate, up), down);
    const int64_t rows = x.size(0);
    Inputs inputs(context, input);
    const Prepared& prepared = (static_cast<void>(inputs.add(gate)), inputs.add(up), inputs[0]);
    const Prepared gated = room_for_tiled(context, form_of(down), rows, down.k());
    const QuantisedRows to = quantised_rows(gated, 0, static_cast<int>(rows), down.k());
    const IntProduct product{.codes = prepared.codes, .scales = prepared.scales, .sums = prepared.sums,
                             .rows = static_cast<int>(rows), .out = nullptr, .out_stride = 0};
    inputs.prepare();
    const int64_t tiles = tiles_of(gate), parts = (tiles + kGatedTiles - 1) / kGatedTiles;
    context.parallel(parts, kGatedTiles * unit_cost(rows, gate), [&](int64_t begin, int64_t end, int) {
        const auto first = static_cast<int>(begin * kGatedTiles), last = static_cast<int>(std::min(end * kGatedTiles, tiles));
        context.kernels.gemm_int4_geglu_codes(gate.integers(), up.integers(), product, to, first, last,
                                              scratch_of(context.kernels, gate));
    });
    Tensor out(*context.memory, {rows, down.n()});
    context.parallel(units_of(down), unit_cost(rows, down), [&](int64_t begin, int64_t end, int) {
        multiply(context.kernels, down, x, gated, out, begin, end, 0.0f);
    }, kTilesOfScratch / kUnit);
    return out;
}

}  // namespace cellmd
