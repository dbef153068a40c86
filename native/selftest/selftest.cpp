// Holds every instruction set of this machine against plain C++, operation by operation, on random inputs. Runs where no
// Python does: under an emulator of another processor (scripts/test-neon). Exits 1 at the first difference beyond rounding.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include "cache.h"
#include "encode.h"
#include "ops.h"

using namespace cellmd;

namespace {

std::mt19937 generator(20);

float normal() { return std::normal_distribution<float>()(generator); }
int below(int n) { return static_cast<int>(generator() % static_cast<unsigned>(n)); }

// Values that every instruction set is given alike.
std::vector<float> normals(size_t n, float size = 1.0f) {
    std::vector<float> values(n);
    for (float& value : values) value = normal() * size;
    return values;
}
std::vector<std::byte> bytes(size_t n) {
    std::vector<std::byte> values(n);
    for (std::byte& value : values) value = static_cast<std::byte>(generator());
    return values;
}

Tensor tensor(Context& context, std::initializer_list<int64_t> shape, const std::vector<float>& values) {
    Tensor x(*context.memory, shape);
    require(static_cast<int64_t>(values.size()) == x.elements(), "a test of its own size");
    std::memcpy(x.floats(), values.data(), values.size() * sizeof(float));
    return x;
}
Tensor indices(Context& context, const std::vector<int32_t>& values) {
    const int64_t shape[] = {static_cast<int64_t>(values.size())};
    Tensor x(*context.memory, ElementType::Int, shape);
    std::memcpy(x.ints(), values.data(), values.size() * sizeof(int32_t));
    return x;
}

// One operation: the same inputs give outputs that differ by rounding alone. `size` is that of the numbers added up.
struct Case {
    std::string name;
    double size;
    std::function<Tensor(Context&)> run;
};

Matrix stored_matrix(int n, int k, const char* dtype, const char* layout, const char* scales, int group, bool clipped) {
    const bool tiled = !std::strcmp(layout, "tile16"), int4 = !std::strcmp(dtype, "i4"), factored = !std::strcmp(scales, "i8");
    const int padded = tiled ? (n + 15) / 16 * 16 : n, columns = int4 ? 8 : 4;
    const int row_bytes = tiled ? (k + columns - 1) / columns * 4 : int4 ? (k + 1) / 2 : k;
    const int groups = group ? (k + group - 1) / group : 1;
    struct Data {
        std::vector<std::byte> codes;
        std::vector<float> floats, factors;
        std::vector<std::byte> codes_of_scales;
    };
    auto data = std::make_shared<Data>();
    data->codes = bytes(static_cast<size_t>(padded) * row_bytes);
    data->floats = normals(static_cast<size_t>(padded) * groups, 0.01f);
    data->factors = normals(static_cast<size_t>(padded), 1e-4f);
    data->codes_of_scales = bytes(static_cast<size_t>(padded) * groups);
    StoredTensor stored{.n = n, .k = k, .dtype = dtype, .layout = layout, .scale_dtype = scales, .group_size = group,
                        .data = data->codes, .scales = std::as_bytes(std::span(data->floats)), .row_factors = {}, .file = {},
                        .owner = data};
    if (factored) {
        stored.scales = data->codes_of_scales;
        stored.row_factors = data->factors;
    }
    std::optional<Clip> clip;
    if (clipped) clip = Clip{-1.0f, 1.5f, -3.0f, 2.0f};
    return Matrix(stored, clip, clipped ? normals(static_cast<size_t>(n)) : std::vector<float>());
}

void add_products(std::vector<Case>& cases) {
    for (const char* dtype : {"i4", "i8"})
        for (const char* layout : {"tile16", "row"})
            for (const char* scales : {"f32", "i8"})
                for (const int group : {0, 24, 32, 128})
                    for (const int rows : {1, 2, 7, 19, 34}) {
                        const int n = 1 + below(90), k = 1 + below(400);
                        const auto m = std::make_shared<Matrix>(stored_matrix(n, k, dtype, layout, scales, group, rows % 2 == 0));
                        const auto x = normals(static_cast<size_t>(rows) * k), weight = normals(static_cast<size_t>(k));
                        const std::string name = std::string(dtype) + " " + layout + " " + scales + " group " +
                                                 std::to_string(group) + " of " + std::to_string(rows) + " x " +
                                                 std::to_string(k) + " x " + std::to_string(n);
                        cases.push_back({name, 0.01 * 128 * k, [=](Context& c) {
                                             const Matrix* const one[] = {m.get()};
                                             const Tensor in = tensor(c, {rows, k}, x), w = tensor(c, {k}, weight);
                                             return linears(c, {in, std::nullopt, Norm{&w, 1e-6f}}, one).front();
                                         }});
                        std::vector<int32_t> ids;
                        for (int i = 0; i < rows; i++) ids.push_back(below(n));
                        cases.push_back({"look-up in " + name, 0.0, [=](Context& c) {
                                             return embed(c, *m, indices(c, ids), 1.5f, 0, k);
                                         }});
                    }
    for (const int rows : {1, 3, 10, 40}) for (const char* scales : {"f32", "i8"}) {
        const auto gate = std::make_shared<Matrix>(stored_matrix(50, 264, "i4", "tile16", scales, 128, false));
        const auto up = std::make_shared<Matrix>(stored_matrix(50, 264, "i4", "tile16", "i8", 128, true));
        const auto x = normals(static_cast<size_t>(rows) * 264), weight = normals(264);
        cases.push_back({"gated product of " + std::to_string(rows) + " with scales " + scales, 300.0, [=](Context& c) {
                             const Tensor in = tensor(c, {rows, 264}, x), w = tensor(c, {264}, weight);
                             const Tensor y = tensor(c, {rows, 264}, x);
                             return gated_linear(c, {in, Closing{&y, {&w, 1e-6f}, 0.7f}, std::nullopt}, *gate, *up);
                         }});
        const auto down = std::make_shared<Matrix>(stored_matrix(30, 50, "i4", "tile16", "i8", 32, true));
        cases.push_back({"gated layer of " + std::to_string(rows), 0.01 * 128 * 50, [=](Context& c) {
                             const Tensor in = tensor(c, {rows, 264}, x), w = tensor(c, {264}, weight);
                             return gated_layer(c, {in, std::nullopt, Norm{&w, 1e-6f}}, *gate, *up, *down);
                         }});
    }
}

// What is stored of random weights, byte by byte, and the error figures: the same on every instruction set.
void add_encoding(std::vector<Case>& cases) {
    for (const bool int4 : {true, false})
        for (const bool tiled : {true, false})
            for (const ScaleType type : {ScaleType::Half, ScaleType::BFloat, ScaleType::Float, ScaleType::Factored})
                for (const int group : {0, 32, 256}) {
                    const int n = 1 + below(40), k = 1 + below(600);
                    auto weights = normals(static_cast<size_t>(n) * k);
                    for (int i = 0; i < k; i++) weights[static_cast<size_t>(i)] = static_cast<float>(below(15) - 7) * 0.25f;  // a grid
                    const std::string name = std::string("encoding ") + (int4 ? "i4 " : "i8 ") + std::to_string(n) + " x " +
                                             std::to_string(k) + " in groups of " + std::to_string(group);
                    cases.push_back({name, 0.0, [=](Context& c) {
                        const float shrinks[] = {1.0f, 0.9f, 0.8f, 0.7f};
                        EncodeArgs args{.rows = weights.data(), .bfloat = false, .n = n, .k = k, .int4 = int4, .tiled = tiled,
                                        .group = group ? group : k, .scale_type = type, .shrinks = shrinks, .n_shrinks = 4,
                                        .data = nullptr, .scales = nullptr, .row_factors = nullptr};
                        const EncodedSizes sizes = encoded_sizes(args);
                        std::vector<uint8_t> data(static_cast<size_t>(sizes.data)), scales(static_cast<size_t>(sizes.scales));
                        std::vector<float> factors(static_cast<size_t>(sizes.row_factors / 4));
                        args.data = data.data();
                        args.scales = scales.data();
                        args.row_factors = factors.empty() ? nullptr : factors.data();
                        const EncodeSums sums = encode_rows(c.kernels, args);
                        std::vector<float> all = {sums.largest, sums.max_abs, static_cast<float>(sums.error),
                                                  static_cast<float>(sums.signal)};
                        all.insert(all.end(), data.begin(), data.end());
                        all.insert(all.end(), scales.begin(), scales.end());
                        all.insert(all.end(), factors.begin(), factors.end());
                        return tensor(c, {static_cast<int64_t>(all.size())}, all);
                    }});
                }
}

void add_elements(std::vector<Case>& cases) {
    for (const int d : {1, 16, 31, 300}) {
        const auto x = normals(static_cast<size_t>(6) * d, 3.0f), y = normals(static_cast<size_t>(6) * d), w = normals(static_cast<size_t>(d));
        const std::string of = " of " + std::to_string(d);
        const auto with = [&](const char* name, double size, auto body) {
            cases.push_back({name + of, size, [=](Context& c) {
                                 const Tensor a = tensor(c, {6, d}, x), b = tensor(c, {6, d}, y), v = tensor(c, {d}, w);
                                 return body(c, a, b, v);
                             }});
        };
        using T = const Tensor&;
        with("rms_norm", 10, [](Context& c, T a, T, T v) { return rms_norm(c, a, {&v, 1e-6f}); });
        with("layer_norm", 30, [](Context& c, T a, T, T v) { return layer_norm(c, a, v, 1e-6f); });
        with("add_norm", 30, [](Context& c, T a, T b, T v) { return add_norm(c, a, {&b, {&v, 1e-6f}, 0.7f}), a; });
        with("add", 10, [](Context& c, T a, T b, T) { return add(c, a, b, 0.3f), a; });
        with("affine", 30, [](Context& c, T a, T, T v) { return affine(c, a, &v, 0.5f); });
        with("clamp", 0, [](Context& c, T a, T, T) { return clamp(c, a, -1.0f, 2.0f); });
        with("geglu", 60, [](Context& c, T a, T b, T) { return geglu(c, a, b); });
        with("silu", 20, [](Context& c, T a, T, T) { return silu(c, a); });
        with("softcap", 10, [](Context& c, T a, T, T) { return softcap(c, a, 2.0f), a; });
        with("top_k", 0, [](Context& c, T a, T, T) { return top_k(c, a, (a.size(1) + 1) / 2).first; });
        with("log_sum_exp", 20, [](Context& c, T a, T, T) { return log_sum_exp(c, a); });
        if (d % 2 == 0) with("glu", 20, [](Context& c, T a, T, T) { return glu(c, a); });
    }
    const auto x = normals(9 * 10 * 7), kernel = normals(5 * 7 * 9), rows = normals(36 * 40), taps = normals(40 * 5);
    cases.push_back({"conv2d", 300, [=](Context& c) { return conv2d(c, tensor(c, {9, 10, 7}, x), tensor(c, {5, 7, 3, 3}, kernel)); }});
    cases.push_back({"depthwise_conv1d", 50, [=](Context& c) {
                         return depthwise_conv1d(c, tensor(c, {36, 40}, rows), tensor(c, {40, 5}, taps));
                     }});
    cases.push_back({"pool_patches", 20, [=](Context& c) { return pool_patches(c, tensor(c, {36, 40}, rows), 6, 3); }});
}

void add_attention(std::vector<Case>& cases) {
    for (const CacheType type : {CacheType::Half, CacheType::Float, CacheType::Int8})
        for (const int rows : {1, 90})
            for (const int window : {0, 40}) {
                const int heads = 1 + below(2), readers = 1 + below(9), width = 2 * (1 + below(40)), past = 100;
                const auto keys = normals(static_cast<size_t>(past) * heads * width), values = normals(keys.size());
                const auto q = normals(static_cast<size_t>(rows) * heads * readers * width, 0.3f), weight = normals(static_cast<size_t>(width));
                std::vector<int32_t> written, asked;
                for (int i = 0; i < past; i++) written.push_back(i);
                for (int i = 0; i < rows; i++) asked.push_back(past - rows + i);
                cases.push_back({"attention, cache type " + std::to_string(static_cast<int>(type)), 30, [=](Context& c) {
                                     Cache cache(1, past, heads, width, type);
                                     const Tensor at = indices(c, written), table = rope_table(c, at, 1e4, width / 2 / 2 * 2, width);
                                     const Tensor zeros = indices(c, std::vector<int32_t>(past)), w = tensor(c, {width}, weight);
                                     const Tensor k = tensor(c, {past, heads, width}, keys), v = tensor(c, {past, heads, width}, values);
                                     // Norms differ by roundings, which decide between two neighbours of a coarser type.
                                     if (type == CacheType::Float)
                                         append_normed(c, cache, k, v, {&w, 1e-6f}, table, zeros, at);
                                     else
                                         append(c, cache, k, v, zeros, at);
                                     return attention(c, tensor(c, {rows, heads * readers, width}, q), cache,
                                                      indices(c, std::vector<int32_t>(static_cast<size_t>(rows))), indices(c, asked), window);
                                 }});
            }
    const auto q = normals(70 * 3 * 20, 0.3f), k = normals(70 * 3 * 20), v = normals(70 * 3 * 20), r = normals(13 * 3 * 20);
    cases.push_back({"bidirectional attention", 30, [=](Context& c) {
                         return attention_bidirectional(c, tensor(c, {70, 3, 20}, q), tensor(c, {70, 3, 20}, k), tensor(c, {70, 3, 20}, v));
                     }});
    cases.push_back({"relative attention", 30, [=](Context& c) {
                         return attention_relative(c, tensor(c, {70, 3, 20}, q), tensor(c, {70, 3, 20}, k), tensor(c, {70, 3, 20}, v),
                                                   tensor(c, {13, 3, 20}, r), 12, 2, 50.0f);
                     }});
}

Context context_of(const char* instruction_set, int threads) {
    setenv("CELLMD_ISA", instruction_set, 1);
    return {threads, [] {}};
}

double largest_difference(const Tensor& want, const Tensor& got) {
    double worst = 0.0;
    for (int64_t i = 0; i < want.elements(); i++) {
        const double error = std::fabs(static_cast<double>(got.floats()[i]) - want.floats()[i]);
        worst = std::isfinite(error) ? std::fmax(worst, error) : INFINITY;
    }
    return worst;
}

}  // namespace

int main() {
    std::vector<Case> cases;
    add_products(cases);
    const size_t n_products = cases.size();
    add_encoding(cases);
    add_elements(cases);
    add_attention(cases);
    int passed = 0, failed = 0;
    const auto compare = [&](const char* name, const char* with, double tolerance, std::span<const Case> some) {
        Context reference = context_of(with, 1), context = context_of(name, 2);
        for (const Case& one : some) {
            const double error = largest_difference(one.run(reference), one.run(context));
            const bool good = error <= one.size * tolerance;
            good ? passed++ : failed++;
            if (!good) std::printf("%s: %s is off by %g from %s\n", name, one.name.c_str(), error, with);
        }
        std::printf("%s: done\n", name);
    };
    const auto tables = available_kernels();
    for (const KernelTable* table : tables) compare(table->name, "scalar", 4 * 1.2e-7, cases);
    // Whether vectors or tiles multiply, the bits are the same.
    const auto has = [&](std::string_view name) {
        return std::any_of(tables.begin(), tables.end(), [&](const KernelTable* table) { return table->name == name; });
    };
    for (const auto& [tiles, vectors] : {std::pair("plain_tiles", "scalar"), std::pair("amx", "avx512vnni")})
        if (has(tiles)) compare(tiles, vectors, 0.0, std::span(cases).first(n_products));
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
