// Convolutions and pooling of the media towers.
#include <cstring>
#include <limits>

#include "checks.h"
#include "ops.h"

namespace cellmd {

// As a product of matrices: for one frame of output at a time, the 3 x 3 x C inputs of each bin side by side, times the
// kernels reordered the same way (row, column, channel).
Tensor conv2d(Context& context, const Tensor& x, const Tensor& kernel) {
    require_floats(x, 3, "the input of conv2d");
    require_floats(kernel, 4, "the kernel of conv2d");
    const int64_t frames = x.size(0), bins = x.size(1), channels = x.size(2), outputs = kernel.size(0);
    require(kernel.size(1) == channels && kernel.size(2) == 3 && kernel.size(3) == 3, "a kernel ", kernel, " on ",
            x, "; 3 x 3 for each of its channels is needed");
    require(channels > 0 && outputs > 0, "a convolution of nothing, ", kernel);
    const int64_t out_frames = (frames + 1) / 2, out_bins = (bins + 1) / 2, width = 9 * channels;
    Tensor reordered(*context.memory, {outputs, width});
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t tap = 0; tap < 9; tap++) reordered.row(o)[tap * channels + c] = kernel.row(o)[c * 9 + tap];
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const FloatMatrix matrix{.data = reordered.floats(), .type = FloatType::Float, .n = static_cast<int>(outputs),
                             .k = static_cast<int>(width), .bias = nullptr, .low = -kInfinity, .high = kInfinity};
    Tensor out(*context.memory, {out_frames, out_bins, outputs});
    const double cost = static_cast<double>(out_bins * width) * (static_cast<double>(outputs) + 4.0) / 16.0;
    context.parallel(out_frames, cost, [&](int64_t begin, int64_t end, int) {
        float* seen = scratch(static_cast<size_t>(out_bins * width));
        for (int64_t frame = begin; frame < end; frame++) {
            for (int64_t bin = 0; bin < out_bins; bin++)
                for (int64_t tap = 0; tap < 9; tap++) {
                    const int64_t from_frame = 2 * frame - 1 + tap / 3, from_bin = 2 * bin - 1 + tap % 3;
                    float* to = seen + bin * width + tap * channels;
                    const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
                    if (0 <= from_frame && from_frame < frames && 0 <= from_bin && from_bin < bins)
                        std::memcpy(to, x.row(from_frame) + from_bin * channels, bytes);
                    else
                        std::memset(to, 0, bytes);
                }
            context.kernels.gemm_float(matrix,
                                       {.x = seen, .x_stride = static_cast<size_t>(width), .rows = static_cast<int>(out_bins),
                                        .out = out.row(frame), .out_stride = static_cast<size_t>(outputs)},
                                       0, static_cast<int>(outputs));
        }
    });
    return out;
}

Tensor depthwise_conv1d(Context& context, const Tensor& x, const Tensor& kernel) {
    require_floats(x, 2, "the input of depthwise_conv1d");
    require_floats(kernel, 2, "the kernel of depthwise_conv1d");
    require(kernel.size(0) == x.size(1), "a kernel ", kernel, " on ", x);
    const int64_t channels = x.size(1), width = kernel.size(1);
    Tensor taps(*context.memory, {width, channels});
    for (int64_t tap = 0; tap < width; tap++)
        for (int64_t d = 0; d < channels; d++) taps.row(tap)[d] = kernel.row(d)[tap];
    Tensor out(*context.memory, {x.size(0), channels});
    context.parallel(x.size(0), static_cast<double>(channels * width) / 8.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; row++) {
            std::memset(out.row(row), 0, static_cast<size_t>(channels) * sizeof(float));
            for (int64_t tap = std::max<int64_t>(0, width - 1 - row); tap < width; tap++)
                context.kernels.multiply_add(x.row(row - width + 1 + tap), taps.row(tap), static_cast<int>(channels), out.row(row));
        }
    });
    return out;
}

Tensor pool_patches(Context& context, const Tensor& x, int64_t grid_width, int64_t size) {
    require_floats(x, 2, "the input of pool_patches");
    require(size > 0 && grid_width > 0 && grid_width % size == 0 && x.size(0) % (grid_width * size) == 0, x.size(0),
            " patches in rows of ", grid_width, " do not make blocks of ", size, " x ", size);
    const int64_t across = grid_width / size, blocks = x.size(0) / (size * size);
    const int width = static_cast<int>(x.size(1));
    const float share = 1.0f / static_cast<float>(size * size);
    Tensor out(*context.memory, {blocks, width});
    context.parallel(blocks, static_cast<double>(size * size) * width / 8.0, [&](int64_t begin, int64_t end, int) {
        for (int64_t block = begin; block < end; block++) {
            float* sum = out.row(block);
            std::memset(sum, 0, static_cast<size_t>(width) * sizeof(float));
            for (int64_t i = 0; i < size * size; i++) {
                const int64_t row = block / across * size + i / size, column = block % across * size + i % size;
                context.kernels.add(sum, x.row(row * grid_width + column), 1.0f, width);
            }
            context.kernels.scale(sum, share, width);
        }
    });
    return out;
}

}  // namespace cellmd
