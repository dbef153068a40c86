#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>
#include <utility>

namespace cellmd {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMappedFrom = size_t{1} << 18;  // larger blocks are mapped: what is released really goes back

std::byte* map_pages(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return static_cast<std::byte*>(p);
}

// Pages for one block, in large pages where the system has them: a row of activations is then not a page of its own, and
// there are fewer to be taken.
constexpr size_t kLargePage = size_t{1} << 21;
std::byte* map_block(size_t bytes) {
    if (bytes < kLargePage) return map_pages(bytes);
    std::byte* const mapped = map_pages(bytes + kLargePage);
    const size_t before = (kLargePage - reinterpret_cast<uintptr_t>(mapped) % kLargePage) % kLargePage;
    if (before > 0) munmap(mapped, before);
    munmap(mapped + before + bytes, kLargePage - before);
#if defined(MADV_HUGEPAGE)
    madvise(mapped + before, bytes, MADV_HUGEPAGE);
#endif
    return mapped + before;
}

// Where a product writes a part of every row first, all pages of its output are taken at once: those of a block from this
// size on are taken before, some at a time.
constexpr size_t kTakenBefore = size_t{1} << 25;
constexpr size_t kPage = 4096;
void take_pages(std::byte* begin, size_t bytes) {
    for (size_t at = 0; at < bytes; at += kPage) begin[at] = std::byte{0};
}

thread_local uint64_t n_taken = 0;

std::byte* allocate(size_t bytes) {
    void* p = std::aligned_alloc(kAlignment, bytes);
    if (!p) throw std::bad_alloc();
    return static_cast<std::byte*>(p);
}

// Sizes that blocks come in: a power of two in four steps, so that at most a fifth is wasted.
size_t block_size(size_t bytes) {
    if (bytes <= 4 * kAlignment) return (bytes + kAlignment - 1) / kAlignment * kAlignment + (bytes ? 0 : kAlignment);
    const size_t step = std::bit_floor(bytes) / 4;
    return (bytes + step - 1) / step * step;
}

}  // namespace

Block::Block(std::byte* data, size_t bytes, bool mapped, std::shared_ptr<MemoryPool> pool)
    : data_(data), bytes_(bytes), mapped_(mapped), pool_(std::move(pool)) {}

BlockRef::~BlockRef() {
    if (block_ && block_->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const std::shared_ptr<MemoryPool> pool = std::move(block_->pool_);
        pool->give_back(block_);
    }
}

uint64_t blocks_taken() { return n_taken; }

BlockRef MemoryPool::take(size_t bytes) {
    n_taken++;
    const size_t size = block_size(bytes);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = free_.find(size);
        if (found != free_.end() && !found->second.empty()) {
            Block* block = found->second.back();
            found->second.pop_back();
            block->references_.store(1, std::memory_order_relaxed);
            block->pool_ = shared_from_this();
            return BlockRef(block);
        }
    }
    const bool mapped = size >= kMappedFrom;
    BlockRef block(new Block(mapped ? map_block(size) : allocate(size), size, mapped, shared_from_this()));
    held_bytes_ += size;
    for (size_t at = 0; size >= kTakenBefore && at < size; at += kLargePage) {
        check_interrupt_();
        take_pages(block.data() + at, std::min(kLargePage, size - at));
    }
    return block;
}

void MemoryPool::give_back(Block* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    block->last_pass_ = pass_;
    free_[block->bytes_].push_back(block);
}

void MemoryPool::release(Block* block) {
    held_bytes_ -= block->bytes_;
    if (block->mapped_)
        munmap(block->data_, block->bytes_);
    else
        std::free(block->data_);
    delete block;
}

void MemoryPool::next_pass() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [size, blocks] : free_)
        std::erase_if(blocks, [&](Block* block) {
            if (block->last_pass_ + 1 >= pass_) return false;
            release(block);
            return true;
        });
    pass_++;
}

MemoryPool::~MemoryPool() {
    for (auto& [size, blocks] : free_)
        for (Block* block : blocks) release(block);
}

LazyZeros::LazyZeros(size_t bytes) : data_(map_pages(bytes)), bytes_(bytes) {}
LazyZeros::~LazyZeros() { munmap(data_, bytes_); }

float* scratch(size_t floats) {
    struct Free {
        void operator()(std::byte* p) const { std::free(p); }
    };
    thread_local std::unique_ptr<std::byte, Free> memory;
    thread_local size_t size = 0;
    if (floats > size) {
        memory.reset();
        size = 0;
        memory.reset(allocate((floats * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment));
        size = floats;
    }
    return reinterpret_cast<float*>(memory.get());
}

}  // namespace cellmd
