// The tables that isa/*.cpp define; which of them are built is decided in CMakeLists.txt.
#pragma once

#include "../kernels.h"

namespace cellmd {

extern const KernelTable scalar_kernels;
#if defined(CELLMD_X86)
extern const KernelTable avx2_kernels;
extern const KernelTable avx2_kernels_of_amd;
extern const KernelTable avxvnni_kernels;
extern const KernelTable avx512vnni_kernels;
extern const KernelTable avx512vnni_kernels_of_amd;
extern const KernelTable amx_kernels;
#endif
#if defined(CELLMD_ARM64)
extern const KernelTable neon_dotprod_kernels;
#endif

#if defined(CELLMD_PLAIN_TILES)
extern const KernelTable plain_tiles_kernels;
#endif

}  // namespace cellmd
