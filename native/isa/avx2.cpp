#include <immintrin.h>

#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_avx2.inl"
#include "dot_avx2.inl"
#include "../kernels/blocks_vector.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable avx2_kernels = table_named<Once::IntoCaches>("avx2");
const KernelTable avx2_kernels_of_amd = table_named<Once::PastCaches>("avx2");

}  // namespace cellmd
