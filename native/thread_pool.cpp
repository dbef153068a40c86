#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cellmd {
namespace {

constexpr int kChunksOfThread = 16;  // of at most 1,024 threads: a chunk's number fits 16 bits
constexpr size_t kFetchBytes = size_t{512} << 10;  // half of a usual second-level cache
constexpr size_t kFetchStep = 1024;
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

// A job is cut into chunks of items, and each thread owns a row of chunks. A chunk is claimed by advancing its owner's
// counter, which names the job and the end of the row: whoever comes late finds another job's name, or nothing left. While
// a claimed chunk is unfinished the job cannot end, so what describes it stays.
struct ThreadPool::Workers {
    struct alignas(64) Owned {
        std::atomic<uint64_t> row{0};  // job << 32 | end of the row << 16 | next chunk
        static uint64_t of(uint32_t job, uint64_t begin, uint64_t end) { return uint64_t{job} << 32 | end << 16 | begin; }
    };

    alignas(64) std::atomic<uint32_t> job{0};
    std::atomic<bool> stop{false};
    Call call = nullptr;
    const void* body = nullptr;
    int64_t items = 0;
    uint32_t chunks = 0;
    std::vector<Owned> owned;
    alignas(64) std::atomic<uint32_t> unfinished{0};
    std::vector<std::thread> threads;

    explicit Workers(int size) : owned(static_cast<size_t>(size)) {}

    // The number of a chunk of the job that `owner` still had, or -1.
    int64_t claim(Owned& owner, uint32_t of_job) const {
        uint64_t row = owner.row.load(std::memory_order_acquire);
        while (row >> 32 == of_job && (row & 0xFFFF) < (row >> 16 & 0xFFFF))
            if (owner.row.compare_exchange_weak(row, row + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                return static_cast<int64_t>(row & 0xFFFF);
        return -1;
    }

    void take_part(uint32_t of_job, int thread) {
        const size_t size = owned.size();
        for (size_t i = 0; i < size; i++) {
            Owned& owner = owned[(static_cast<size_t>(thread) + i) % size];
            uint32_t done = 0;
            for (int64_t chunk; (chunk = claim(owner, of_job)) >= 0; done++)
                call(body, items * chunk / chunks, items * (chunk + 1) / chunks, thread);
            if (done > 0 && unfinished.fetch_sub(done, std::memory_order_acq_rel) == done) unfinished.notify_one();
        }
    }
};

ThreadPool::ThreadPool(int threads) : size_(threads) { watch_forks(); }

ThreadPool::~ThreadPool() {
    if (!workers_) return;
    if (generation_of_process_ != process_generation.load()) {
        // The threads are the parent's and do not exist here: there is nobody to stop or to wait for.
        for (std::thread& thread : workers_->threads) thread.detach();
        return;
    }
    workers_->stop.store(true, std::memory_order_relaxed);
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
    workers_ = std::make_unique<Workers>(size_);
    for (int i = 1; i < size_; i++) workers_->threads.emplace_back([this, shared = workers_.get(), i] { work(*shared, i); });
}

void ThreadPool::work(Workers& shared, int thread) {
    Fetched fetched;
    for (uint32_t seen = 0;;) {
        await_change(shared.job, seen);
        seen = shared.job.load(std::memory_order_acquire);
        if (shared.stop.load(std::memory_order_relaxed)) return;
        shared.take_part(seen, thread);
        fetch_expected(shared, seen, thread, fetched);
    }
}

void ThreadPool::fetch_expected(const Workers& shared, uint32_t job, int thread, Fetched& fetched) {
    const char* const begin = expected_begin_.load(std::memory_order_relaxed);
    if (!begin) return;
    if (begin != fetched.begin) fetched = {begin, 0};
    const size_t bytes = expected_bytes_.load(std::memory_order_relaxed), parts = shared.owned.size();
    const char* const mine = begin + bytes / parts * static_cast<size_t>(thread);
    for (size_t& at = fetched.bytes; at < std::min(bytes / parts, kFetchBytes); at += kFetchStep) {
        if (shared.job.load(std::memory_order_relaxed) != job) return;
        for (size_t line = at; line < at + kFetchStep; line += 64) __builtin_prefetch(mine + line, 0, 2);
        relax();  // processors drop what is asked of them faster than memory answers
    }
}

void ThreadPool::run_job(int64_t items, int64_t grain, const void* body, Call call) {
    if (size_ == 1 || items <= 1) {
        if (items > 0) call(body, 0, items, 0);
        return;
    }
    const std::lock_guard<std::mutex> lock(one_job_);
    if (!workers_ || generation_of_process_ != process_generation.load(std::memory_order_relaxed)) start();
    Workers& shared = *workers_;
    const uint32_t job = shared.job.load(std::memory_order_relaxed) + 1;
    const auto chunks = static_cast<uint32_t>(std::clamp<int64_t>(items / grain, 1, int64_t{kChunksOfThread} * size_));
    shared.call = call;
    shared.body = body;
    shared.items = items;
    shared.chunks = chunks;
    shared.unfinished.store(chunks, std::memory_order_relaxed);
    for (int i = 0; i < size_; i++) {
        const uint64_t size = static_cast<uint64_t>(size_), at = static_cast<uint64_t>(i);
        const uint64_t row = Workers::Owned::of(job, chunks * at / size, chunks * (at + 1) / size);
        shared.owned[at].row.store(row, std::memory_order_release);
    }
    shared.job.store(job, std::memory_order_release);
    shared.job.notify_all();
    shared.take_part(job, 0);
    for (uint32_t left; (left = shared.unfinished.load(std::memory_order_acquire)) != 0;) await_change(shared.unfinished, left);
}

}  // namespace cellmd
