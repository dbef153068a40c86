// What is read from memory once, and what comes after it.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

namespace cellmd {

struct Stretch {
    const void* begin = nullptr;
    size_t bytes = 0;
};

// Two stretches of which each thread of a pool reads its own part, side by side. The second may be empty.
using Reads = std::array<Stretch, 2>;

// What was read with a matrix the last time, and after it. A guess: it is only ever fetched, never looked at.
struct Reading : std::enable_shared_from_this<Reading> {
    Reads reads;
    std::weak_ptr<Reading> next;
};

}  // namespace cellmd
