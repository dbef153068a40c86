// Caches of keys and values, and attention, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include "cache.h"
#include "module.h"
#include "ops.h"
#include "tape.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace cellmd {
namespace {

CacheType cache_type_of(std::string_view name) {
    if (name == "f16") return CacheType::Half;
    if (name == "f32") return CacheType::Float;
    require(name == "i8", "a cache of '", name, "'; known are f16, f32 and i8");
    return CacheType::Int8;
}

void save_slot(const Cache& cache, int64_t slot, int64_t n, const WritableBytes& bytes) {
    require(bytes.size() == cache.saved_bytes(n), n, " positions take ", cache.saved_bytes(n), " bytes, not ", bytes.size());
    const Unlocked unlocked;
    cache.save(slot, n, reinterpret_cast<std::byte*>(bytes.data()));
}

void load_slot(Cache& cache, int64_t slot, int64_t n, const Bytes& bytes) {
    require(bytes.size() == cache.saved_bytes(n), n, " positions take ", cache.saved_bytes(n), " bytes, not ", bytes.size());
    const Unlocked unlocked;
    cache.load(slot, n, reinterpret_cast<const std::byte*>(bytes.data()));
}

}  // namespace

void bind_cache(nb::module_& m) {
    nb::class_<Cache>(m, "Cache", "Keys and values of one layer.")
        .def_prop_ro("capacity", &Cache::capacity)
        .def_prop_ro("slots", &Cache::slots)
        .def("copy", &Cache::copy, "source"_a, "target"_a, "n"_a, nb::call_guard<Unlocked>())
        .def("saved_bytes", &Cache::saved_bytes, "n"_a)
        .def("save", &save_slot, "slot"_a, "n"_a, "bytes"_a.noconvert(), "Into so many bytes as `saved_bytes` says.")
        .def("load", &load_slot, "slot"_a, "n"_a, "bytes"_a.noconvert(), "What `save` gave for as many positions.");
}

void bind_attention(nb::class_<Context>& c) {
    c.def("new_cache", [](Context&, int64_t slots, int64_t capacity, int64_t heads, int64_t head_dim, std::string_view type) {
        return new Cache(slots, capacity, heads, head_dim, cache_type_of(type));
    });
    c.def("append", recorded(+[](Context& self, Cache& cache, const Tensor& keys, const Tensor& values, const Tensor& slots,
                                 const Tensor& positions) {
        const Unlocked unlocked;
        append(self, cache, keys, values, slots, positions);
    }));
    c.def("append_normed",
          recorded(+[](Context& self, Cache& cache, const Tensor& keys, const Tensor& values, const Tensor& weight, float eps,
                       const Tensor& table, const Tensor& slots, const Tensor& positions) {
              unlocked_for(keys, [&] { append_normed(self, cache, keys, values, {&weight, eps}, table, slots, positions); });
          }));
    c.def("attend",
          recorded(+[](Context& self, Cache& cache, const Tensor& q, const Tensor& q_weight, const Tensor* keys,
                       const Tensor* values, const Tensor* key_weight, float eps, const Tensor& table, const Tensor& slots,
                       const Tensor& positions, int64_t window, const Matrix& output) {
              const Unlocked unlocked;
              expect_attention(self, cache, slots, positions, window, output);
              if (keys && values) append_normed(self, cache, *keys, *values, {key_weight, eps}, table, slots, positions);
              const Tensor seen = attention(self, rope(self, q, Norm{&q_weight, eps}, table), cache, slots, positions, window);
              const int64_t flat[] = {seen.rows(), seen.row_size()};
              return linear(self, seen.reshaped(flat), output);
          }),
          "cache"_a, "q"_a, "q_weight"_a, "keys"_a.none(), "values"_a.none(), "key_weight"_a.none(), "eps"_a, "table"_a,
          "slots"_a, "positions"_a, "window"_a, "output"_a);
    c.def("attention", recorded(+[](Context& self, const Tensor& q, const Cache& cache, const Tensor& slots,
                                    const Tensor& positions, int64_t window) {
        const Unlocked unlocked;
        return attention(self, q, cache, slots, positions, window);
    }));
    c.def("attention_bidirectional", &attention_bidirectional, nb::call_guard<Unlocked>());
    c.def("attention_relative", &attention_relative, nb::call_guard<Unlocked>());
}

}  // namespace cellmd
