// Memory of tensors and caches.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace cellmd {

class MemoryPool;

// A piece of memory that tensors share. It returns to its pool with its last tensor.
class Block {
   public:
    std::byte* data() const { return data_; }

   private:
    friend class MemoryPool;
    friend class BlockRef;
    Block(std::byte* data, size_t bytes, bool mapped, std::shared_ptr<MemoryPool> pool);

    std::byte* data_;
    size_t bytes_;
    bool mapped_;
    std::atomic<int> references_{1};
    uint64_t last_pass_ = 0;
    std::shared_ptr<MemoryPool> pool_;  // empty while the block is free
};

class BlockRef {
   public:
    BlockRef() = default;
    explicit BlockRef(Block* block) : block_(block) {}  // takes over one reference
    BlockRef(const BlockRef& other) : block_(other.block_) {
        if (block_) block_->references_.fetch_add(1, std::memory_order_relaxed);
    }
    BlockRef(BlockRef&& other) noexcept : block_(other.block_) { other.block_ = nullptr; }
    BlockRef& operator=(BlockRef other) noexcept {
        std::swap(block_, other.block_);
        return *this;
    }
    ~BlockRef();
    std::byte* data() const { return block_->data_; }

   private:
    Block* block_ = nullptr;
};

// Blocks are kept when they are given back and handed out again, by size: a decoding step asks the system for nothing.
// What two passes in a row had no use for goes back to the system.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
   public:
    // check_interrupt throws if the user wants to stop; it is called while the pages of a large block are taken.
    explicit MemoryPool(void (*check_interrupt)()) : check_interrupt_(check_interrupt) {}
    ~MemoryPool();
    MemoryPool(const MemoryPool&) = delete;
    MemoryPool& operator=(const MemoryPool&) = delete;

    BlockRef take(size_t bytes);  // 64-byte aligned; content undefined; throws std::bad_alloc
    void next_pass();
    size_t held_bytes() const { return held_bytes_; }  // of the system's, in use or not

   private:
    friend class BlockRef;
    void give_back(Block* block);
    void release(Block* block);

    void (*check_interrupt_)();
    std::mutex mutex_;
    std::map<size_t, std::vector<Block*>> free_;
    std::atomic<size_t> held_bytes_{0};
    uint64_t pass_ = 0;
};

// Blocks that this thread has taken from any pool.
uint64_t blocks_taken();

// Zeros that take memory as they are written, page by page, and not before.
class LazyZeros {
   public:
    explicit LazyZeros(size_t bytes);  // throws std::bad_alloc
    ~LazyZeros();
    LazyZeros(const LazyZeros&) = delete;
    LazyZeros& operator=(const LazyZeros&) = delete;
    std::byte* data() const { return data_; }

   private:
    std::byte* data_;
    size_t bytes_;
};

// At least `floats` float32 of this thread's own, 64-byte aligned, valid until this thread's next call.
float* scratch(size_t floats);

}  // namespace cellmd
