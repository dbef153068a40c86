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
constexpr size_t kFetchBytes = size_t{256} << 10;  // of each of two stretches: half of a usual second-level cache
constexpr size_t kFetchStep = 512;
constexpr auto kWatch = std::chrono::microseconds(250);

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

}  // namespace

// What one thread fetches, and how far it has come.
class ThreadPool::Fetcher {
   public:
    Fetcher(const Expected& expected, int thread, int threads)
        : expected_(&expected), thread_(static_cast<size_t>(thread)), threads_(static_cast<size_t>(threads)) {}

    // Asks for a little more, unless enough has come already.
    void fetch() {
        if (const uint32_t version = expected_->version.load(std::memory_order_acquire); version != version_) begin(version);
        size_t fetched = 0;
        for (Part& part : parts_) {
            if (part.done < part.bytes && fetched + part.done < kFetchBytes) {
                for (const char* const begin : part.begin)
                    for (size_t line = part.done; begin && line < part.done + kFetchStep; line += 64)
                        __builtin_prefetch(begin + line, 0, 2);
                part.done += kFetchStep;
                return;
            }
            fetched += part.done;
        }
    }

   private:
    struct Part {
        std::array<const char*, 2> begin{};
        size_t bytes = 0, done = 0;  // of each
    };

    void begin(uint32_t version) {
        version_ = version;
        const auto before = parts_;
        for (size_t i = 0; i < parts_.size(); i++) {
            Part part;
            for (size_t side = 0; side < part.begin.size(); side++) {
                const Expected::Part& all = expected_->reads[i][side];
                const char* const first = all.begin.load(std::memory_order_relaxed);
                const size_t bytes = all.bytes.load(std::memory_order_relaxed) / threads_;
                if (bytes == 0) continue;
                part.begin[side] = first + bytes * thread_;
                part.bytes = std::max(part.bytes, bytes);
            }
            for (const Part& other : before)
                if (other.begin == part.begin) part.done = other.done;
            parts_[i] = part;
        }
    }

    const Expected* expected_;
    size_t thread_, threads_;
    uint32_t version_ = 0;
    std::array<Part, kExpectedReads> parts_;
};

namespace {

// Waits until value is no longer `old`: watching first, and calling `meanwhile`, then asleep.
template <typename Meanwhile>
void await_change(const std::atomic<uint32_t>& value, uint32_t old, const Meanwhile& meanwhile) {
    const auto begin = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < 32; i++) {
            if (value.load(std::memory_order_acquire) != old) return;
            meanwhile();
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
    Fetcher callers;  // for the calling thread

    Workers(int size, const Expected& expected) : owned(static_cast<size_t>(size)), callers(expected, 0, size) {}

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
    workers_ = std::make_unique<Workers>(size_, expected_);
    for (int i = 1; i < size_; i++) workers_->threads.emplace_back([this, shared = workers_.get(), i] { work(*shared, i); });
}

void ThreadPool::work(Workers& shared, int thread) {
    Fetcher fetcher(expected_, thread, size_);
    for (uint32_t seen = 0;;) {
        await_change(shared.job, seen, [&] { fetcher.fetch(); });
        seen = shared.job.load(std::memory_order_acquire);
        if (shared.stop.load(std::memory_order_relaxed)) return;
        shared.take_part(seen, thread);
    }
}

void ThreadPool::expect(const std::array<Reads, kExpectedReads>& reads) {
    for (size_t i = 0; i < reads.size(); i++)
        for (size_t side = 0; side < reads[i].size(); side++) {
            expected_.reads[i][side].begin.store(static_cast<const char*>(reads[i][side].begin), std::memory_order_relaxed);
            expected_.reads[i][side].bytes.store(reads[i][side].bytes, std::memory_order_relaxed);
        }
    expected_.version.fetch_add(1, std::memory_order_release);
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
    for (uint32_t left; (left = shared.unfinished.load(std::memory_order_acquire)) != 0;)
        await_change(shared.unfinished, left, [&] { shared.callers.fetch(); });
}

}  // namespace cellmd
