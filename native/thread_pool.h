// One pool of threads for all kernels. The calling thread works too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace cellmd {

// A worker that has nothing to do watches for the next job for some tens of microseconds, the time between two operations
// of a forward pass, and then sleeps in the kernel until it is woken: an idle pool takes no processor time. After a fork
// the child starts workers of its own when it first needs them.
class ThreadPool {
   public:
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

    // Memory that a job after the next one is likely to begin with, such as the weights of the operation that came next the
    // last time. While there is nothing else to do, each worker fetches the beginning of its own part of it.
    void expect(const void* begin, size_t bytes) {
        expected_begin_.store(static_cast<const char*>(begin), std::memory_order_relaxed);
        expected_bytes_.store(bytes, std::memory_order_relaxed);
    }

   private:
    using Call = void (*)(const void*, int64_t, int64_t, int);
    struct Workers;
    struct Fetched {  // how far a worker has come with what is expected
        const char* begin = nullptr;
        size_t bytes = 0;
    };

    void run_job(int64_t items, int64_t grain, const void* body, Call call);
    void start();
    void work(Workers& shared, int thread);
    void fetch_expected(const Workers& shared, uint32_t job, int thread, Fetched& fetched);

    const int size_;
    uint32_t generation_of_process_ = 0;
    std::atomic<const char*> expected_begin_{nullptr};
    std::atomic<size_t> expected_bytes_{0};
    std::mutex one_job_;
    std::unique_ptr<Workers> workers_;
};

}  // namespace cellmd
