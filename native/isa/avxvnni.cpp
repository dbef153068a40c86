#include <immintrin.h>

#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_avx2.inl"
#include "dot_avxvnni.inl"
#include "../kernels/blocks_vector.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable avxvnni_kernels = table_named<Once::IntoCaches>("avxvnni");

}  // namespace cellmd
