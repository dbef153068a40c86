#include <immintrin.h>

#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_avx512.inl"
#include "tiles_amx.inl"
#include "../kernels/blocks_tiles.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable amx_kernels = table_named<Once::IntoCaches>("amx");

}  // namespace cellmd
