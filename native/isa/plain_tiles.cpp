// For tests: products with tiles on any processor.
#include "../kernels.h"
#include "tables.h"

namespace cellmd {
namespace {
#include "../kernels/prelude.inl"
#include "vec_scalar.inl"
#include "tiles_plain.inl"
#include "../kernels/blocks_tiles.inl"
#include "../kernels/table.inl"
}  // namespace

const KernelTable plain_tiles_kernels = table_named<Once::IntoCaches>("plain_tiles");

}  // namespace cellmd
