// The Python module cellmd._native: tensors, matrices and the operations on them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <optional>

#include "module.h"
#include "ops.h"
#include "tape.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace cellmd {
namespace {

using HostFloats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using HostInts = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_interrupt() {
    const nb::gil_scoped_acquire locked;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

Tensor tensor_of(Context& context, const HostFloats& values) {
    std::vector<int64_t> shape;
    for (size_t i = 0; i < values.ndim(); i++) shape.push_back(static_cast<int64_t>(values.shape(i)));
    Tensor out(*context.memory, ElementType::Float, shape);
    std::memcpy(out.floats(), values.data(), values.nbytes());
    return out;
}

Tensor ints_of(Context& context, const HostInts& values) {
    const int64_t shape[] = {static_cast<int64_t>(values.shape(0))};
    Tensor out(*context.memory, ElementType::Int, shape);
    std::memcpy(out.ints(), values.data(), values.nbytes());
    return out;
}

Tensor zeros(Context& context, const std::vector<int64_t>& shape) {
    Tensor out(*context.memory, ElementType::Float, shape);
    std::memset(out.floats(), 0, static_cast<size_t>(out.elements()) * sizeof(float));
    return out;
}

Tensor copy_of(Context& context, const Tensor& x) {
    Tensor out(*context.memory, x.type(), x.shape());
    for (int64_t row = 0; row < x.rows(); row++) std::memcpy(out.row(row), x.row(row), static_cast<size_t>(x.row_size()) * 4);
    return out;
}

// A NumPy array over the tensor's memory, which it keeps.
nb::object numpy_view(const Tensor& x) {
    size_t shape[Tensor::kMaxDims];
    int64_t strides[Tensor::kMaxDims];
    for (int i = x.dims() - 1, step = 1; i >= 0; step *= static_cast<int>(x.size(i)), i--) {
        shape[i] = static_cast<size_t>(x.size(i));
        strides[i] = i == 0 ? x.row_stride() : step;
    }
    const nb::object owner = nb::cast(x);
    const nb::dlpack::dtype type = x.type() == ElementType::Float ? nb::dtype<float>() : nb::dtype<int32_t>();
    return nb::cast(nb::ndarray<nb::numpy>(x.floats(), static_cast<size_t>(x.dims()), shape, owner, strides, type));
}

nb::tuple shape_of(const Tensor& x) {
    nb::list sizes;
    for (const int64_t size : x.shape()) sizes.append(size);
    return nb::tuple(sizes);
}

std::shared_ptr<const void> keep(nb::object object) {
    return {new nb::object(std::move(object)), [](nb::object* held) {
                const nb::gil_scoped_acquire locked;
                delete held;
            }};
}

Matrix bind_matrix(int64_t n, int64_t k, std::string_view dtype, std::string_view layout,
                   std::optional<std::string_view> scale_dtype, int64_t group_size, const Bytes& data,
                   const std::optional<Bytes>& scales, const std::optional<HostFloats>& row_factors,
                   std::optional<std::tuple<float, float, float, float>> clip, const std::optional<HostFloats>& bias,
                   std::optional<std::tuple<int, int64_t>> file, nb::object owner) {
    const auto bytes = [](const Bytes& array) { return std::as_bytes(std::span(array.data(), array.size())); };
    StoredTensor stored{.n = n, .k = k, .dtype = dtype, .layout = layout, .scale_dtype = scale_dtype, .group_size = group_size,
                        .data = bytes(data), .scales = {}, .row_factors = {}, .file = {}, .owner = keep(std::move(owner))};
    if (scales) stored.scales = bytes(*scales);
    if (row_factors) stored.row_factors = {row_factors->data(), row_factors->size()};
    if (file) stored.file = FileBytes{std::get<0>(*file), std::get<1>(*file)};
    std::optional<Clip> bounds;
    if (clip) bounds = Clip{std::get<0>(*clip), std::get<1>(*clip), std::get<2>(*clip), std::get<3>(*clip)};
    std::vector<float> added;
    if (bias) added.assign(bias->data(), bias->data() + bias->size());
    return Matrix(stored, bounds, std::move(added));
}

// Without an eps there is no norm; without a weight there may still be one.
std::optional<Norm> norm_of(const Tensor* weight, std::optional<float> eps) {
    if (!eps) return std::nullopt;
    return Norm{weight, *eps};
}

// Without a y there is nothing to close, without a weight nothing is normed.
Rows rows_of(const Tensor& x, const Tensor* y, const Tensor* closing, float scale, const Tensor* weight, float eps) {
    Rows rows{x, std::nullopt, std::nullopt};
    if (y) rows.closing = Closing{y, {closing, eps}, scale};
    if (weight) rows.norm = Norm{weight, eps};
    return rows;
}

std::vector<Tensor> linears_of(Context& context, const Tensor& x, const Tensor* y, const Tensor* closing, float scale,
                               const Tensor* weight, float eps, std::vector<const Matrix*> matrices, float cap) {
    for (const Matrix* matrix : matrices)
        if (!matrix) throw nb::type_error("a matrix is needed, found None");
    const Unlocked unlocked;
    return linears(context, rows_of(x, y, closing, scale, weight, eps), matrices, cap);
}

std::vector<Tensor> tensors_of(const nb::tuple& values) {
    std::vector<Tensor> tensors;
    for (const nb::handle value : values) tensors.push_back(nb::cast<const Tensor&>(value));
    return tensors;
}

// What the function gives for these tensors, one or a tuple of them, and the tape that does it again, or None if it did what
// cannot be recorded.
nb::tuple record(Context&, const nb::callable& function, const nb::tuple& inputs) {
    if (Tape::recording()) return nb::make_tuple(function(*inputs), nb::none());
    Tape tape(tensors_of(inputs));
    nb::object results;
    {
        const Tape::Recording recording(tape);
        results = function(*inputs);
    }
    const bool one = nb::isinstance<Tensor>(results);
    const bool usable = tape.finish(tensors_of(one ? nb::make_tuple(results) : nb::cast<nb::tuple>(results)), one);
    return nb::make_tuple(results, usable ? nb::cast(std::move(tape)) : nb::none());
}

nb::object play(const Tape& tape, Context& context, const nb::tuple& inputs) {
    std::vector<Tensor> tensors = tensors_of(inputs);
    {
        const Unlocked unlocked;
        tensors = tape.run(context, std::move(tensors), check_interrupt);
    }
    if (tape.gives_one()) return nb::cast(std::move(tensors.front()));
    nb::list results;
    for (Tensor& out : tensors) results.append(nb::cast(std::move(out)));
    return nb::tuple(results);
}

Operand operand_of(const nb::object& value) {
    if (nb::isinstance<Tensor>(value)) return nb::cast<const Tensor*>(value);
    return nb::cast<float>(value);
}

double seconds_of(const std::function<void()>& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Seconds that all threads take to read the bytes once.
double time_read(Context& context, const Bytes& bytes) {
    const int64_t pieces = static_cast<int64_t>(bytes.size() / 4096);
    const Unlocked unlocked;
    std::atomic<int32_t> sum{0};
    return seconds_of([&] {
        context.on_all_threads(pieces, [&](int64_t begin, int64_t end, int) {
            sum += context.kernels.read(bytes.data() + begin * 4096, static_cast<size_t>(end - begin) * 4096);
        });
    });
}

// int8 multiply-adds of all threads in registers, and the seconds they take.
std::tuple<double, double> time_multiply(Context& context, int64_t repetitions) {
    const Unlocked unlocked;
    std::atomic<int64_t> done{0};
    std::atomic<int32_t> sum{0};
    const double seconds = seconds_of([&] {
        context.on_all_threads(context.threads(), [&](int64_t begin, int64_t end, int) {
            int32_t out = 0;
            for (int64_t i = begin; i < end; i++) done += context.kernels.multiply(repetitions, &out);
            sum += out;
        });
    });
    return {static_cast<double>(done.load()), seconds};
}

// An exception becomes that of cellmd.errors.
template <typename Error>
void translate(const char* name) {
    nb::register_exception_translator(
        [](const std::exception_ptr& error, void* type) {
            try {
                std::rethrow_exception(error);
            } catch (const Error& e) {
                PyErr_SetString(static_cast<PyObject*>(type), e.what());
            }
        },
        nb::object(nb::module_::import_("cellmd.errors").attr(name)).release().ptr());
}

void bind_types(nb::module_& m) {
    nb::class_<Tensor>(m, "Tensor", "Activations or indices: float32 or int32, rows first.")
        .def_prop_ro("shape", &shape_of)
        .def("__len__", &Tensor::rows)
        .def("__repr__", [](const Tensor& x) { return "Tensor " + x.describe(); })
        .def("numpy", &numpy_view, "A view as a NumPy array.")
        .def(
            "__array__",
            [](const Tensor& x, const nb::object& dtype, const nb::object& copy) {
                nb::object array = numpy_view(x);
                if (!dtype.is_none()) array = array.attr("astype")(dtype);
                return copy.is(nb::bool_(true)) ? array.attr("copy")() : array;
            },
            "dtype"_a = nb::none(), "copy"_a = nb::none());
    nb::class_<Matrix>(m, "Matrix", "A stored tensor, bound for products and look-ups; its bytes stay where they are.")
        .def_prop_ro("shape", [](const Matrix& x) { return nb::make_tuple(x.n(), x.k()); })
        .def("rows", &Matrix::rows, "start"_a, "stop"_a);
    m.def("bind_matrix", &bind_matrix, "n"_a, "k"_a, "dtype"_a, "layout"_a, "scale_dtype"_a.none(), "group_size"_a,
          "data"_a.noconvert(), "scales"_a.none().noconvert(), "row_factors"_a.none().noconvert(), "clip"_a.none(), "bias"_a.none(),
          "file"_a.none(), "owner"_a);
}

void bind_rows(nb::class_<Context>& c) {
    c.def("embed",
          recorded(+[](Context& self, const Matrix& table, const Tensor& ids, float scale, int64_t start,
                       std::optional<int64_t> stop) {
              const Unlocked unlocked;  // a row may have to come from the disk
              return embed(self, table, ids, scale, start, stop.value_or(table.k()));
          }),
          "table"_a, "ids"_a, "scale"_a, "start"_a, "stop"_a.none());
    c.def("take_rows", recorded(&take_rows));
    c.def("put_rows", recorded(&put_rows));
    c.def("linears", recorded(&linears_of), "x"_a, "y"_a.none(), "closing"_a.none(), "scale"_a, "norm_weight"_a.none(),
          "eps"_a, "matrices"_a, "cap"_a);
    c.def("linear", recorded(+[](Context& self, const Tensor& x, const Matrix& matrix) {
        const Unlocked unlocked;
        return linear(self, x, matrix);
    }));
    c.def("gated_linear", recorded(+[](Context& self, const Tensor& x, const Tensor& weight, float eps, const Matrix& gate,
                                       const Matrix& up) {
        const Unlocked unlocked;
        return gated_linear(self, rows_of(x, nullptr, nullptr, 1.0f, &weight, eps), gate, up);
    }));
    c.def("gated_layer",
          recorded(+[](Context& self, const Tensor& x, const Tensor& y, const Tensor& closing, const Tensor& weight, float eps,
                       const Matrix& gate, const Matrix& up, const Matrix& down) {
              const Unlocked unlocked;
              return gated_layer(self, rows_of(x, &y, &closing, 1.0f, &weight, eps), gate, up, down);
          }));
    c.def("gated_by",
          recorded(+[](Context& self, const Tensor& x, const Tensor& y, const Tensor& closing, float eps, const Matrix& gate,
                       const Tensor& up, const Matrix& projection) {
              const Matrix* const one[] = {&gate};
              const Unlocked unlocked;
              const std::vector<Tensor> gates = linears(self, rows_of(x, &y, &closing, 1.0f, nullptr, eps), one);
              return linear(self, geglu(self, gates.front(), up), projection);
          }));
    c.def("norm_add_embed",
          recorded(+[](Context& self, const Tensor& x, float x_scale, const Tensor& weight, float eps, const Matrix& table,
                       const Tensor& ids, float table_scale, int64_t start, float scale) {
              const Unlocked unlocked;
              norm_add_embed(self, x, x_scale, {&weight, eps}, table, ids, table_scale, start, scale);
          }));
    c.def("rms_norm",
          recorded(+[](Context& self, const Tensor& x, const Tensor* weight, float eps) {
              return unlocked_for(x, [&] { return rms_norm(self, x, {weight, eps}); });
          }),
          "x"_a, "weight"_a.none(), "eps"_a);
    c.def("layer_norm", recorded(+[](Context& self, const Tensor& x, const Tensor& weight, float eps) {
        return unlocked_for(x, [&] { return layer_norm(self, x, weight, eps); });
    }));
    c.def("add_norm", recorded(+[](Context& self, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                                   float scale) {
        unlocked_for(x, [&] { add_norm(self, x, {&y, {&weight, eps}, scale}); });
    }));
    c.def(
        "rope_table",
        recorded(+[](Context& self, const Tensor& positions, double base, int64_t rotary_dim, int64_t head_dim,
                     double stretch) {
            return unlocked_for(positions, [&] { return rope_table(self, positions, base, rotary_dim, head_dim, stretch); });
        }),
        "positions"_a, "base"_a, "rotary_dim"_a, "head_dim"_a, "stretch"_a = 1.0);
    c.def("rope",
          recorded(+[](Context& self, const Tensor& x, const Tensor* weight, std::optional<float> eps, const Tensor& table) {
              const auto norm = norm_of(weight, eps);
              return unlocked_for(x, [&] { return rope(self, x, norm, table); });
          }),
          "x"_a, "norm_weight"_a.none(), "eps"_a.none(), "table"_a);
    c.def("rope_2d",
          [](Context& self, const Tensor& x, const Tensor& table_x, const Tensor& table_y) {
              return unlocked_for(x, [&] { return rope_2d(self, x, std::nullopt, table_x, table_y); });
          });
}

void bind_elements(nb::class_<Context>& c) {
    c.def("add", recorded(+[](Context& self, const Tensor& x, const Tensor& y, float factor) {
        unlocked_for(x, [&] { add(self, x, y, factor); });
    }));
    c.def("scale", recorded(+[](Context& self, const Tensor& x, float factor) {
        unlocked_for(x, [&] { scale(self, x, factor); });
    }));
    c.def("affine", [](Context& self, const Tensor& x, const nb::object& factor, const nb::object& offset) {
        const Operand f = operand_of(factor), o = operand_of(offset);
        return unlocked_for(x, [&] { return affine(self, x, f, o); });
    });
    c.def("clamp", [](Context& self, const Tensor& x, float low, float high) {
        return unlocked_for(x, [&] { return clamp(self, x, low, high); });
    });
    c.def("geglu", recorded(+[](Context& self, const Tensor& gate, const Tensor& up) {
        return unlocked_for(gate, [&] { return geglu(self, gate, up); });
    }));
    c.def("silu", recorded(+[](Context& self, const Tensor& x) { return unlocked_for(x, [&] { return silu(self, x); }); }));
    c.def("glu", recorded(+[](Context& self, const Tensor& x) { return unlocked_for(x, [&] { return glu(self, x); }); }));
    c.def("softcap", recorded(+[](Context& self, const Tensor& x, float cap) {
        unlocked_for(x, [&] { softcap(self, x, cap); });
    }));
    c.def("top_k", recorded(+[](Context& self, const Tensor& logits, int64_t k) {
        auto [values, ids] = unlocked_for(logits, [&] { return top_k(self, logits, k); });
        return std::vector<Tensor>{std::move(values), std::move(ids)};
    }));
    c.def("log_sum_exp", &log_sum_exp, nb::call_guard<Unlocked>());
    c.def("conv2d", &conv2d, nb::call_guard<Unlocked>());
    c.def("depthwise_conv1d", &depthwise_conv1d, nb::call_guard<Unlocked>());
    c.def("pool_patches", &pool_patches, nb::call_guard<Unlocked>());
}

}  // namespace
}  // namespace cellmd

NB_MODULE(_native, m) {
    using namespace cellmd;
    m.doc() = "Native kernels of the backend 'cpu'.";
    translate<ArgumentError>("ArgumentError");
    translate<FileError>("ContainerError");

    bind_types(m);
    bind_cache(m);
    bind_encode(m);
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const KernelTable* table : available_kernels()) names.emplace_back(table->name);
        return names;
    }, "Names of the instruction sets that this machine can run, best first.");

    nb::class_<Context> c(m, "Context", "Kernels, threads and memory of one backend.");
    c.def("__init__", [](Context* self, int threads) {
        require(1 <= threads && threads <= 1024, threads, " threads; 1..1024 are possible");
        new (self) Context(threads, check_interrupt);
    });
    c.def_prop_ro("instruction_set", [](const Context& self) { return self.kernels.name; });
    c.def_prop_ro("threads", &Context::threads);
    c.def_prop_ro("held_bytes", [](const Context& self) { return self.memory->held_bytes(); });
    c.def("begin", recorded(+[](Context& self) { self.memory->next_pass(); }));
    c.def("record", &record, "function"_a, "inputs"_a);
    c.def("time_read", &time_read, "bytes"_a.noconvert());
    c.def("time_multiply", &time_multiply);
    c.def("floats", &tensor_of);
    c.def("ints", &ints_of);
    c.def("zeros", &zeros);
    c.def("keep", &copy_of);
    c.def("reshape", recorded(+[](Context&, const Tensor& x, const std::vector<int64_t>& shape) { return x.reshaped(shape); }));
    c.def("columns", recorded(+[](Context&, const Tensor& x, int64_t start, int64_t stop) { return x.columns(start, stop); }));
    nb::class_<Tape>(m, "Tape", "What `Context.record` recorded.").def("play", &play, "context"_a, "inputs"_a);
    bind_rows(c);
    bind_elements(c);
    bind_attention(c);
}
