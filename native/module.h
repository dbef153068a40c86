// Parts of the Python module cellmd._native that have sources of their own, and what they share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>

#include "context.h"
#include "tensor.h"

namespace cellmd {

using Bytes = nanobind::ndarray<const uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using WritableBytes = nanobind::ndarray<uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// While one of these lives the interpreter runs other threads. While a recording is played they run already.
class Unlocked {
 public:
    Unlocked() {
        if (PyGILState_Check()) released_.emplace();
    }

 private:
    std::optional<nanobind::gil_scoped_release> released_;
};

// Kernels of more than a few microseconds are worth it.
constexpr int64_t kWorthUnlocking = 1 << 15;
template <typename Body>
auto unlocked_for(const Tensor& x, const Body& body) {
    if (x.elements() <= kWorthUnlocking) return body();
    const Unlocked unlocked;
    return body();
}

void bind_encode(nanobind::module_&);
void bind_cache(nanobind::module_&);
void bind_attention(nanobind::class_<Context>&);

}  // namespace cellmd
