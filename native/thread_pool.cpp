#include "thread_pool.h"

#include <pthread.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cellmd {
namespace {

constexpr auto kWatch = std::chrono::microseconds(60);

std::atomic<uint32_t> process_generation{0};

void watch_forks() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { process_generation.fetch_add(1); });
    static_cast<void>(registered);
}

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until value is no longer `old`: watching first, then asleep.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < 32; i++) {
            if (value.load(std::memory_order_acquire) != old) return;
            relax();
        }
        if (std::chrono::steady_clock::now() - begin > kWatch) break;
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

// On cache lines of their own: what the caller writes for each job, and what the workers count down.
struct ThreadPool::Workers {
    alignas(64) std::atomic<uint32_t> job{0};
    Call call = nullptr;  // null: stop
    const void* body = nullptr;
    int64_t items = 0;
    int size = 0;
    alignas(64) std::atomic<uint32_t> running{0};
    std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads) : size_(threads) { watch_forks(); }

ThreadPool::~ThreadPool() {
    if (!workers_) return;
    if (generation_of_process_ != process_generation.load()) {
        // The threads are the parent's and do not exist here: there is nobody to stop or to wait for.
        for (std::thread& thread : workers_->threads) thread.detach();
        return;
    }
    workers_->call = nullptr;
    workers_->job.fetch_add(1, std::memory_order_release);
    workers_->job.notify_all();
    for (std::thread& thread : workers_->threads) thread.join();
}

void ThreadPool::start() {
    if (workers_) {
        for (std::thread& thread : workers_->threads) thread.detach();
        static_cast<void>(workers_.release());  // a forked child cannot tell in what state the parent's threads left it
    }
    generation_of_process_ = process_generation.load();
    workers_ = std::make_unique<Workers>();
    workers_->size = size_;
    for (int i = 1; i < size_; i++) workers_->threads.emplace_back([shared = workers_.get(), i] { work(*shared, i); });
}

void ThreadPool::work(Workers& shared, int thread) {
    for (uint32_t seen = 0;;) {
        await_change(shared.job, seen);
        seen++;
        if (!shared.call) return;
        shared.call(shared.body, shared.items * thread / shared.size, shared.items * (thread + 1) / shared.size, thread);
        if (shared.running.fetch_sub(1, std::memory_order_acq_rel) == 1) shared.running.notify_one();
    }
}

void ThreadPool::run_job(int64_t items, const void* body, Call call) {
    if (size_ == 1 || items <= 1) {
        if (items > 0) call(body, 0, items, 0);
        return;
    }
    const std::lock_guard<std::mutex> lock(one_job_);
    if (!workers_ || generation_of_process_ != process_generation.load(std::memory_order_relaxed)) start();
    Workers& shared = *workers_;
    shared.call = call;
    shared.body = body;
    shared.items = items;
    shared.running.store(static_cast<uint32_t>(size_ - 1), std::memory_order_relaxed);
    shared.job.fetch_add(1, std::memory_order_release);
    shared.job.notify_all();
    call(body, 0, items / size_, 0);
    for (uint32_t left; (left = shared.running.load(std::memory_order_acquire)) != 0;) await_change(shared.running, left);
}

}  // namespace cellmd
