#include <arm_neon.h>

#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_neon.inl"
#include "../kernels/blocks_vector.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable neon_dotprod_kernels = table_named<Once::IntoCaches>("neon_dotprod");

}  // namespace cellmd
