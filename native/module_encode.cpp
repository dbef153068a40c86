// The encoder of weights, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>

#include "dispatch.h"
#include "encode.h"
#include "matrix.h"
#include "module.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace cellmd {
namespace {

using Weights = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutFloats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Shrinks = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Rows of float32, or of bfloat16 as uint16, into the buffers that are given: (finite, in range, the largest weight, the
// largest error, the errors' squares, the weights' squares). See quant/encode.py.
nb::tuple encode_matrix(const Weights& rows, std::string_view dtype, std::string_view layout, int64_t group_size,
                        std::string_view scale_dtype, const Shrinks& shrinks, const OutBytes& data, const OutBytes& scales,
                        const std::optional<OutFloats>& row_factors) {
    const bool bfloat = rows.dtype() == nb::dtype<uint16_t>();
    require(bfloat || rows.dtype() == nb::dtype<float>(), "weights must be float32, or bfloat16 as uint16");
    require(dtype == "i4" || dtype == "i8", "weights as '", dtype, "'; known are i4 and i8");
    require(layout == "row" || layout == "tile16", "a layout '", layout, "'; known are row and tile16");
    const int64_t n = static_cast<int64_t>(rows.shape(0)), k = static_cast<int64_t>(rows.shape(1));
    require(n > 0 && k > 0 && k <= kMaxEncodedColumns, n, " x ", k, " weights");
    require(group_size == 0 || group_size == 32 || group_size == 64 || group_size == 128 || group_size == 256, "groups of ",
            group_size, " columns");
    require(shrinks.size() < kMaxCandidates, shrinks.size(), " scales to try; ", kMaxCandidates - 1, " are possible");
    const EncodeArgs args{.rows = rows.data(), .bfloat = bfloat, .n = n, .k = k, .int4 = dtype == "i4",
                          .tiled = layout == "tile16", .group = static_cast<int>(group_size ? group_size : k),
                          .scale_type = scale_type_of(scale_dtype), .shrinks = shrinks.data(),
                          .n_shrinks = static_cast<int>(shrinks.size()), .data = data.data(), .scales = scales.data(),
                          .row_factors = row_factors ? row_factors->data() : nullptr};
    const EncodedSizes wanted = encoded_sizes(args);
    const int64_t factor_bytes = row_factors ? static_cast<int64_t>(row_factors->nbytes()) : 0;
    require(static_cast<int64_t>(data.nbytes()) == wanted.data && static_cast<int64_t>(scales.nbytes()) == wanted.scales &&
                factor_bytes == wanted.row_factors,
            n, " x ", k, " weights take ", wanted.data, ", ", wanted.scales, " and ", wanted.row_factors,
            " bytes of data, scales and row factors, found ", data.nbytes(), ", ", scales.nbytes(), " and ", factor_bytes);
    const KernelTable& kernels = chosen_kernels();
    EncodeSums sums;
    {
        const nb::gil_scoped_release unlocked;
        sums = encode_rows(kernels, args);
    }
    return nb::make_tuple(sums.finite, sums.in_range, sums.largest, sums.max_abs, sums.error, sums.signal);
}

}  // namespace

void bind_encode(nb::module_& m) {
    m.def("encode_matrix", &encode_matrix, "rows"_a.noconvert(), "dtype"_a, "layout"_a, "group_size"_a, "scale_dtype"_a,
          "shrinks"_a.noconvert(), "data"_a.noconvert(), "scales"_a.noconvert(), "row_factors"_a.none().noconvert());
}

}  // namespace cellmd
