#include "tape.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace cellmd {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBetweenChecks = std::chrono::milliseconds(10);

bool same(const Tensor& x, const Tensor& y) {
    return x.floats() == y.floats() && x.type() == y.type() && x.row_stride() == y.row_stride() &&
           std::ranges::equal(x.shape(), y.shape());
}

}  // namespace

Tape::Tape(std::vector<Tensor> inputs) : known_(std::move(inputs)), last_use_(known_.size(), 0), blocks_(blocks_taken()) {
    for (size_t i = 0; i < known_.size(); i++) {
        shapes_.emplace_back(known_[i].shape().begin(), known_[i].shape().end());
        distinct_ &= *place_of(known_[i]) == i;
    }
}

std::optional<size_t> Tape::place_of(const Tensor& x) {
    for (size_t place = known_.size(); place-- > 0;)
        if (same(known_[place], x)) {
            last_use_[place] = steps_.size();
            return place;
        }
    return std::nullopt;
}

bool Tape::finish(std::span<const Tensor> results, bool one) {
    gives_one_ = one;
    bool usable = distinct_ && blocks_ == blocks_taken();
    for (const Tensor& result : results) {
        const std::optional<size_t> place = place_of(result);
        usable &= place.has_value();
        results_.push_back(place.value_or(0));
    }
    for (size_t place = 0; place < known_.size(); place++)
        if (last_use_[place] < steps_.size()) steps_[last_use_[place]].dead.push_back(place);
    n_values_ = known_.size();
    known_ = {};
    last_use_ = {};
    return usable;
}

std::vector<Tensor> Tape::run(Context& context, std::vector<Tensor> inputs, void (*check_interrupt)()) const {
    require(inputs.size() == shapes_.size(), inputs.size(), " inputs for ", shapes_.size());
    for (size_t i = 0; i < inputs.size(); i++)
        require(std::ranges::equal(inputs[i].shape(), shapes_[i]), inputs[i], " has another shape than when this was recorded");
    Values values(n_values_);
    std::ranges::move(inputs, values.begin());
    auto checked = Clock::now();
    for (const Step& step : steps_) {
        if (const auto now = Clock::now(); now - checked >= kBetweenChecks) {
            check_interrupt();
            checked = now;
        }
        step.run(context, values);
        for (const size_t place : step.dead) values[place].reset();
    }
    std::vector<Tensor> results;
    for (const size_t place : results_) results.push_back(*values[place]);
    return results;
}

}  // namespace cellmd
