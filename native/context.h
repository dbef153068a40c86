// What every operation needs: kernels, threads, memory.
#pragma once

#include <algorithm>

#include "dispatch.h"
#include "matrix.h"
#include "memory.h"
#include "thread_pool.h"

namespace cellmd {

class Context {
   public:
    // check_interrupt throws if the user wants to stop; it is called before every piece of long work.
    Context(int threads, void (*check_interrupt)())
        : kernels(chosen_kernels()),
          memory(std::make_shared<MemoryPool>(check_interrupt)),
          pool_(threads),
          check_interrupt_(check_interrupt) {}

    const KernelTable& kernels;
    const std::shared_ptr<MemoryPool> memory;

    int threads() const { return pool_.size(); }

    template <typename Body>
    void on_all_threads(int64_t items, const Body& body) {
        pool_.run(items, 1, body);
    }

    // body(begin, end, thread) over 0..items-1 as ThreadPool::run does it, where an item takes about `cost` simple vector
    // operations: little work stays on this thread, much work is done in pieces before each of which the user may interrupt.
    // Stretches are at least `grain` items long, where there are enough for all threads.
    template <typename Body>
    void parallel(int64_t items, double cost, const Body& body, int64_t grain = 1) {
        if (items <= 0) return;
        const double total = cost * static_cast<double>(items);
        if (total < kWorthWaking) {
            body(int64_t{0}, items, 0);
            return;
        }
        const auto grain_of = [&](int64_t n) { return std::clamp<int64_t>(grain, 1, std::max<int64_t>(1, n / (2 * threads()))); };
        if (total < kPiece) {
            pool_.run(items, grain_of(items), body);
            return;
        }
        // Pieces of one size: a piece is done when its slowest thread is.
        const auto most = std::max<int64_t>(threads(), static_cast<int64_t>(kPiece / cost));
        const int64_t pieces = (items + most - 1) / most;
        for (int64_t i = 0; i < pieces; i++) {
            check_interrupt_();
            const int64_t first = items * i / pieces, n = items * (i + 1) / pieces - first;
            pool_.run(n, grain_of(n), [&](int64_t begin, int64_t end, int thread) { body(first + begin, first + end, thread); });
        }
    }

    // Notes that an operation which reads this once follows the one noted before, and has the pool expect what followed it
    // the last time.
    void reads_once(Reading& reading, const Reads& reads) {
        const std::lock_guard<std::mutex> lock(reading_mutex_);
        reading.reads = reads;
        if (last_reading_) last_reading_->next = reading.weak_from_this();
        last_reading_ = reading.shared_from_this();
        const std::shared_ptr<Reading> next = reading.next.lock(), after = next ? next->next.lock() : nullptr;
        pool_.expect({next ? next->reads : Reads(), after ? after->reads : Reads()});
    }

    // Has the pool expect what is about to be read, and what was read with a matrix the last time.
    void expect(const Reads& first, const Reading& then) {
        const std::lock_guard<std::mutex> lock(reading_mutex_);
        pool_.expect({first, then.reads});
    }

   private:
    // In vector operations, of which a core does about 1e9 a second or more.
    static constexpr double kWorthWaking = 4e3;
    static constexpr double kPiece = 4e7;

    ThreadPool pool_;
    std::mutex reading_mutex_;
    std::shared_ptr<Reading> last_reading_;
    void (*check_interrupt_)();
};

}  // namespace cellmd
