// One pool of threads for all kernels. The calling thread works too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "reading.h"

namespace cellmd {

// A worker that has nothing to do watches for the next job for as long as it takes to choose a token, between two steps, and
// then sleeps in the kernel until it is woken: an idle pool takes no processor time. After a fork
// the child starts workers of its own when it first needs them.
class ThreadPool {
   public:
    static constexpr size_t kExpectedReads = 2;  // one after the other

    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return size_; }

    // body(begin, end, thread) for stretches of items that together are 0..items-1. Each thread begins with a contiguous
    // part of its own; one that is done helps another that is not, so that a thread which the system has put aside holds
    // up nothing but the stretch it is at. Items must not depend on one another; then no result depends on the number of
    // threads or on who did what. Stretches are at least `grain` items long. Callers wait for each other.
    template <typename Body>
    void run(int64_t items, int64_t grain, const Body& body) {
        run_job(items, grain, &body, [](const void* self, int64_t begin, int64_t end, int thread) {
            (*static_cast<const Body*>(self))(begin, end, thread);
        });
    }

    // Memory that the next jobs, or those after the next one, are likely to read: the weights of the operations that came
    // next the last time, say. While it waits, each thread fetches the beginning of its own parts.
    void expect(const std::array<Reads, kExpectedReads>& reads);

   private:
    using Call = void (*)(const void*, int64_t, int64_t, int);
    struct Workers;
    class Fetcher;
    // Threads read it while it changes: what they fetch then may be worth nothing, but is harmless.
    struct Expected {
        struct Part {
            std::atomic<const char*> begin{nullptr};
            std::atomic<size_t> bytes{0};
        };
        std::atomic<uint32_t> version{0};
        std::array<std::array<Part, 2>, kExpectedReads> reads;
    };

    void run_job(int64_t items, int64_t grain, const void* body, Call call);
    void start();
    void work(Workers& shared, int thread);

    const int size_;
    uint32_t generation_of_process_ = 0;
    Expected expected_;
    std::mutex one_job_;
    std::unique_ptr<Workers> workers_;
};

}  // namespace cellmd
