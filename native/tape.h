// Operations that are called from Python, recorded once and then done again on other inputs without it.
#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <optional>
#include <tuple>
#include <vector>

#include "cache.h"
#include "context.h"
#include "ops.h"

namespace cellmd {

class Tape {
 public:
    // The tensors of a run: inputs first, then what each step gives. Empty until they are made and once nobody needs them.
    using Values = std::vector<std::optional<Tensor>>;
    using Run = std::function<void(Context&, Values&)>;

    explicit Tape(std::vector<Tensor> inputs);

    // The tape that this thread records on, or null.
    static Tape* recording() { return recording_; }
    class Recording;

    // While recording: where among the values a tensor lies, nowhere if no step made it. It is taken to be a constant then.
    std::optional<size_t> place_of(const Tensor& x);
    // A step that gave these results while it took `blocks` blocks of memory, and puts them where `add` says.
    template <typename MakeRun>
    void add(const std::vector<Tensor>& results, uint64_t blocks, const MakeRun& make_run) {
        blocks_ += blocks;
        steps_.push_back({make_run(known_.size()), {}});
        for (const Tensor& result : results) {
            known_.push_back(result);
            last_use_.push_back(steps_.size() - 1);
        }
    }
    // Ends a recording; one: it gave a tensor and not several. False if something else than recorded steps made tensors, or
    // results: then the tape is of no use.
    bool finish(std::span<const Tensor> results, bool one);
    bool gives_one() const { return gives_one_; }

    // The results for other inputs of the same shapes, without the GIL. check_interrupt is called now and then between steps.
    std::vector<Tensor> run(Context&, std::vector<Tensor> inputs, void (*check_interrupt)()) const;

 private:
    struct Step {
        Run run;
        std::vector<size_t> dead;  // values that no later step needs
    };

    static inline thread_local Tape* recording_ = nullptr;

    std::vector<std::vector<int64_t>> shapes_;  // of the inputs
    std::vector<Step> steps_;
    std::vector<size_t> results_;
    bool gives_one_ = false;
    size_t n_values_ = 0;
    // While recording: all values, so that no two of them lie at one place, the last step that needs each, and blocks of
    // memory that steps took.
    std::vector<Tensor> known_;
    std::vector<size_t> last_use_;
    uint64_t blocks_ = 0;
    bool distinct_ = true;
};

class Tape::Recording {
 public:
    explicit Recording(Tape& tape) { recording_ = &tape; }
    ~Recording() { recording_ = nullptr; }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
};

// An argument of a step: numbers and the like as they are.
template <typename Arg>
class Kept {
 public:
    Kept(Tape&, const std::decay_t<Arg>& value) : value_(value) {}
    const std::decay_t<Arg>& in(const Tape::Values&) const { return value_; }

 private:
    std::decay_t<Arg> value_;
};

template <>
class Kept<const Tensor&> {
 public:
    Kept(Tape& tape, const Tensor& x) : place_(tape.place_of(x)) {
        if (!place_) constant_ = x;
    }
    const Tensor& in(const Tape::Values& values) const { return place_ ? *values[*place_] : *constant_; }

 private:
    std::optional<size_t> place_;
    std::optional<Tensor> constant_;
};

template <>
class Kept<const Tensor*> {
 public:
    Kept(Tape& tape, const Tensor* x) {
        if (x) x_.emplace(tape, *x);
    }
    const Tensor* in(const Tape::Values& values) const { return x_ ? &x_->in(values) : nullptr; }

 private:
    std::optional<Kept<const Tensor&>> x_;
};

// What Python owns.
template <typename Object>
class KeptObject {
 public:
    KeptObject(Tape&, Object& object) : object_(&object), owner_(nanobind::find(object)) {}
    Object& in(const Tape::Values&) const { return *object_; }

 private:
    Object* object_;
    nanobind::object owner_;
};
template <>
class Kept<const Matrix&> : public KeptObject<const Matrix> {
    using KeptObject::KeptObject;
};
template <>
class Kept<const Cache&> : public KeptObject<const Cache> {
    using KeptObject::KeptObject;
};
template <>
class Kept<Cache&> : public KeptObject<Cache> {
    using KeptObject::KeptObject;
};

template <>
class Kept<std::vector<const Matrix*>> {
 public:
    Kept(Tape&, const std::vector<const Matrix*>& matrices) : matrices_(matrices) {
        for (const Matrix* matrix : matrices)
            if (matrix) owners_.push_back(nanobind::find(*matrix));
    }
    const std::vector<const Matrix*>& in(const Tape::Values&) const { return matrices_; }

 private:
    std::vector<const Matrix*> matrices_;
    std::vector<nanobind::object> owners_;
};

template <typename Operation>
std::vector<Tensor> results_of(const Operation& operation) {
    using Result = decltype(operation());
    if constexpr (std::is_void_v<Result>) {
        operation();
        return {};
    } else if constexpr (std::is_same_v<Result, Tensor>) {
        return {operation()};
    } else {
        return operation();
    }
}

// An operation to be called from Python, with the GIL held, or while a recording is played, without: the same, but recorded
// where this thread records. It gives a tensor, several, or nothing.
template <typename Result, typename... Args>
auto recorded(Result (*operation)(Context&, Args...)) {
    return [operation](Context& context, Args... args) -> Result {
        Tape* const tape = Tape::recording();
        if (!tape) return operation(context, args...);
        std::tuple<Kept<Args>...> kept{Kept<Args>(*tape, args)...};
        const uint64_t taken = blocks_taken();
        std::vector<Tensor> results = results_of([&] { return operation(context, args...); });
        tape->add(results, blocks_taken() - taken, [&](size_t place) {
            return [operation, place, kept = std::move(kept)](Context& again, Tape::Values& values) {
                std::vector<Tensor> made = results_of([&] {
                    return std::apply([&](const auto&... each) { return operation(again, each.in(values)...); }, kept);
                });
                for (size_t i = 0; i < made.size(); i++) values[place + i] = std::move(made[i]);
            };
        });
        if constexpr (std::is_same_v<Result, Tensor>)
            return std::move(results.front());
        else if constexpr (!std::is_void_v<Result>)
            return results;
    };
}

}  // namespace cellmd
