// All kernels of one instruction set, from the vector functions included before, as one table.
#include "math.inl"
#include "quantise.inl"
#include "gemm_tile16.inl"
#include "gemv_tile16.inl"
#include "gemm_row.inl"
#include "gemm_float.inl"
#include "lookup.inl"
#include "rows.inl"
#include "elementwise.inl"
#include "vocabulary.inl"
#include "attention.inl"
#include "encode.inl"
#include "yardsticks.inl"

static_assert(kQueryRows <= kMaxQueryRows);

template <Once kOnce>
constexpr KernelTable table_named(const char* name) {
    return {.name = name,
            .token_block = kTokenBlock,
            .code_columns = padded_columns(1),
            .query_rows = kQueryRows,
            .quantise = quantise,
            .quantise_lanes = quantise_lanes,
            .gemm_scratch = gemm_scratch,
            .gemm_int4 = gemm_tile16<true>,
            .gemm_int8 = gemm_tile16<false>,
            .gemm_int4_geglu = gemm_int4_geglu,
            .gemv_int4 = gemv_tile16<true, kOnce>,
            .gemv_int8 = gemv_tile16<false, kOnce>,
            .gemv_int4_geglu = gemv_int4_geglu<kOnce>,
            .gemm_int4_geglu_codes = gemm_int4_geglu_codes,
            .gemm_row_int4 = gemm_row<true>,
            .gemm_row_int8 = gemm_row<false>,
            .gemm_float = gemm_float,
            .lookup = lookup,
            .rms_norm = rms_norm,
            .layer_norm = layer_norm,
            .add_norm = add_norm,
            .add = add,
            .scale = scale,
            .affine = affine,
            .clamp = clamp,
            .geglu = geglu,
            .silu = silu,
            .glu = glu,
            .softcap = softcap,
            .multiply_add = multiply_add,
            .rope = rope,
            .largest = largest,
            .exp_sum = exp_sum,
            .attend = attend,
            .merge = merge,
            .narrow = narrow,
            .relative = relative,
            .encode_row = encode_row,
            .read = read,
            .multiply = multiply};
}
