#include <immintrin.h>

#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_avx512.inl"
#include "../kernels/blocks_vector.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable avx512vnni_kernels = table_named<Once::IntoCaches>("avx512vnni");
const KernelTable avx512vnni_kernels_of_amd = table_named<Once::PastCaches>("avx512vnni");

}  // namespace cellmd
