#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_scalar.inl"
#include "../kernels/blocks_vector.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable scalar_kernels = table_named<Once::IntoCaches>("scalar");

}  // namespace cellmd
