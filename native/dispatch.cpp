#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "isa/tables.h"

#if defined(CELLMD_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(CELLMD_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace cellmd {
namespace {

#if defined(CELLMD_X86)
bool has_f16c() {  // which older compilers cannot be asked for by name
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avxvnni() {  // leaf 7, second part: EAX
    constexpr unsigned kAvxVnni = 1u << 4;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
}
bool has_avx512vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
// Tiles are 8 kB of a thread's state: a process has to ask for them, for the threads that it starts from then on.
bool has_amx() {
#if defined(__linux__)
    constexpr unsigned kTilesAndInt8 = 3u << 24;  // AMX-TILE, AMX-INT8: leaf 7, EDX
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return has_avx512vnni() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
           (edx & kTilesAndInt8) == kTilesAndInt8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif
#if defined(CELLMD_ARM64)
bool has_dotprod() {
#if defined(__linux__)
    constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
    return true;  // every other 64-bit Arm system that a compiler of today targets
#endif
}
#endif

}  // namespace

std::vector<const KernelTable*> available_kernels() {
    std::vector<const KernelTable*> tables;
#if defined(CELLMD_X86)
    __builtin_cpu_init();
    const bool amd = __builtin_cpu_is("amd") != 0;
    if (has_amx()) tables.push_back(&amx_kernels);
    if (has_avx512vnni()) tables.push_back(amd ? &avx512vnni_kernels_of_amd : &avx512vnni_kernels);
    if (has_avxvnni()) tables.push_back(&avxvnni_kernels);
    if (has_avx2()) tables.push_back(amd ? &avx2_kernels_of_amd : &avx2_kernels);
#endif
#if defined(CELLMD_ARM64)
    if (has_dotprod()) tables.push_back(&neon_dotprod_kernels);
#endif
#if defined(CELLMD_PLAIN_TILES)
    tables.push_back(&plain_tiles_kernels);
#endif
    tables.push_back(&scalar_kernels);
    return tables;
}

const KernelTable& chosen_kernels() {
    const auto tables = available_kernels();
    const char* wanted = std::getenv("CELLMD_ISA");
    if (!wanted || !*wanted) return *tables.front();
    std::string names;
    for (const KernelTable* table : tables) {
        if (std::string(table->name) == wanted) return *table;
        names += (names.empty() ? "" : ", ") + std::string(table->name);
    }
    throw std::runtime_error("CELLMD_ISA is '" + std::string(wanted) + "'; this machine runs: " + names);
}

}  // namespace cellmd
