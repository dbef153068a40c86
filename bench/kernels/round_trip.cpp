// How long a number takes from one processor to another and back, in nanoseconds: what a piece of shared work costs at least.
//
//     g++ -O2 -std=c++20 -pthread bench/kernels/round_trip.cpp -o round_trip && ./round_trip 0 1
//
// Linux. Both processors must be idle.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

constexpr int kTrips = 200'000;

alignas(64) std::atomic<int> there{0};
alignas(64) std::atomic<int> back{0};

void pin(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0) {
        std::fprintf(stderr, "this process may not use processor %d\n", processor);
        std::exit(1);
    }
}

void await(const std::atomic<int>& number, int value) {
    while (number.load(std::memory_order_acquire) != value) {
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s PROCESSOR PROCESSOR\n", argv[0]);
        return 2;
    }
    pin(std::atoi(argv[1]));
    std::thread other([processor = std::atoi(argv[2])] {
        pin(processor);
        for (int i = 1; i <= kTrips; i++) {
            await(there, i);
            back.store(i, std::memory_order_release);
        }
    });
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 1; i <= kTrips; i++) {
        there.store(i, std::memory_order_release);
        await(back, i);
    }
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
    other.join();
    std::printf("%.0f ns\n", taken.count() / kTrips);
}
