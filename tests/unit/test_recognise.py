"""Kernel names as engines write them -> kinds; and names that look alike but are something else."""

from __future__ import annotations

import re

import pytest

from moetrace import ops

# Names seen in traces of real engines, by engine. Template arguments are shortened.
VLLM_CUTLASS = {
    "void fused_moe::run_global<cutlass::Fused_Moe_Kernel_sm80<cutlass::bfloat16_t, 16, 128, 64, 4>>(args)": "moe_gate_up",
    "_ZN7cutlass6KernelINS_4gemm6kernel9MoeFCGemmINS1_11threadblock13DqMmaMultistageE": "moe_down",
    "void tensorrt_llm::kernels::cutlass_kernels::finalizeMoeRoutingKernel<__nv_bfloat16>(args)": "moe_combine",
    "tensorrt_llm::kernels::cutlass_kernels::fusedBuildExpertMapsSortFirstTokenKernel<256, 9>": "moe_align",
    "void tensorrt_llm::kernels::cutlass_kernels::expandInputRowsKernel<__nv_bfloat16>(args)": "moe_align",
    "void vllm::moe::topkGating<8, 64, 4, 16, 32, int, __nv_bfloat16>(args)": "topk",
    "memcpy32_post": "elementwise",
}
VLLM_TRITON = {
    "fused_moe_kernel": "moe_gemm",
    "void vllm::moe::topkGating<8, 64, 4>(args)": "topk",
    "void vllm::moe::moe_align_block_size_kernel<int>(args)": "moe_align",
    "void vllm::moe::count_and_sort_expert_tokens_kernel<int>(args)": "moe_align",
    "void vllm::moe::moe_sum_vec_kernel<c10::BFloat16, 8>(args)": "moe_combine",
    "void vllm::act_and_mul_kernel<c10::BFloat16, &vllm::silu_kernel, true>(args)": "activation",
    "void vllm::segmented_max_reduction_strided<c10::BFloat16>(args)": "elementwise",
    "void vllm::scaled_fp8_quant_kernel_strided_dynamic<c10::BFloat16>(args)": "quantize",
    "_gemma4_routing_kernel": "topk",
    "triton_red_fused__to_copy_moe_forward_mul_1": "moe_align",
}
TRT_LLM_GEN = {
    "bmm_MxE4m3_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_et128x16_TN_transOut_biasM_tma_clmp_swiGlu_dynBatch_sm100f": "moe_gate_up",
    "bmm_Bfloat16_MxE2m1MxE4m3_Fp32_t128x16x256u2_s3_et128x16_TN_transOut_biasM_tma_clmp_dynBatch_sm100f": "moe_down",
    "void moe::dev::routing::routingRenormalize::routingIndicesHistogramScoresKernel<KernelParams<128>>": "topk",
    "void moe::dev::routing::routingIndicesHistogramKernel<routingRenormalize::KernelParams<128>>": "moe_align",
    "void moe::dev::routing::routingIndicesOffsetsKernel<routingRenormalize::KernelParams<128>>": "moe_align",
    "void moe::dev::finalize::finalizeKernelVecLoad<moe::dev::finalize::KernelParams<bfloat16_t>>": "moe_combine",
}
TRITON_KERNELS = {
    "_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1_swiglu": "moe_gate_up",
    "_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1": "moe_down",
    "_topk_forward": "topk",
    "_combined_routing_memset": "moe_align",
    "_combined_routing_compute": "moe_align",
    "_finalize_matmul_scatter_bf16": "moe_combine",
}
DEEPSEEK = {
    "void dpsk::ep::internode::dispatch<false, 8, true>(args)": "moe_dispatch",
    "void dpsk::ep::internode::notify_dispatch<false, 8>(args)": "moe_dispatch",
    "void dpsk::ep::internode::combine<false, 8>(args)": "moe_collect",
    "void dpsk::ep::internode::cached_notify<false>(args)": "moe_collect",
    "void dpsk::ep::cuda::get_dispatch_layout<256, 32, 8>(args)": "moe_align",
    "void cutlass::device_kernel<dpsk::grouped_gemm::cuda::fp8_ptp128c::GemmKernel<int>>": "gemm",
    "void cutlass::device_kernel<dpsk::grouped_gemm::cuda::m_grouped_fp8_ptp128c::GemmKernel<int>>": "moe_gemm",
    "void cutlass::device_kernel<dpsk::grouped_gemm::cuda::fp8_dptp128c_acc::GemmKernel<int>>": "moe_gemm",
    "void cuda::topk_sum_and_topk_idx<16, 64>(args)": "topk",
    "void cuda::clean_and_count_expert<512>(args)": "moe_align",
    "void cuda::per_token_cast_to_fp8_with_channels<128>(args)": "quantize",
}
SINGLE_KERNELS = {
    "dsv3_fused_a_gemm_kernel": "gemm",
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3": "norm",
    "triton_poi_fused_add_mul_1": "elementwise",
    "triton_tem_fused_addmm_0": "gemm",
    "triton_poi_fused_addmm_relu_2": "elementwise",
    "aiter::fmoe_bf16_pertokenFp8_g1u1_vs_silu_1tg_32x64": "moe_experts",
    "aiter::fmoe_stage1_bf16_pertokenFp8_g1u1_64x128": "moe_gate_up",
    "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<args>>>": "attention",
    "void cutlass::device_kernel<flash::FlashAttnFwdCombine<args>>": "attention_reduce",
    "void tensorrt_llm::kernels::cutlass_kernels::doGatedActivationKernel<args>": "moe_act",
    "void moe::permuteKernel<args>": "moe_align",
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<int>>>": "moe_gemm",
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<int>>>": "gemm",
    "void deep_gemm::sm90_fp8_gemm_1d2d_impl<128u, (deep_gemm::GemmType)1>": "moe_gemm",
    "void deep_gemm::sm90_fp8_gemm_1d2d_impl<128u, (deep_gemm::GemmType)0>": "gemm",
    "void cublasLt::splitKreduce_kernel<32, 16, int>": "gemm_reduce",
    "void vllm::rms_norm_dynamic_per_token_quant_kernel<args>": "norm",
    "_per_token_group_quant_8bit_colmajor": "quantize",
}
COLLECTIVES = {
    "void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>(args)": "all_reduce",
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all_gather",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)": "send_recv",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all_reduce",
    "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(args)": "reduce_scatter",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(args)": "all_reduce",
}
REST_OF_THE_STEP = {
    "kernel_unified_attention_3d": "attention",
    "kernel_unified_attention_2d": "attention",
    "reduce_segments": "attention_reduce",
    "void flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128>>": "attention",
    "void flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128>>": "attention_reduce",
    "fmhaSm100aKernel_QkvE4m3OBfloat16H64PagedKvCausalP16VarSeqQ128Kv128PersistentContext": "attention",
    "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16, unsigned char>(args)": "kv_write",
    "void vllm::rotary_embedding_kernel<c10::BFloat16, true>(args)": "rope",
    "void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>(args)": "norm",
    "_ZN7ck_tile6kentryILi1ENS_12Rmsnorm2dFwdINS_27Rmsnorm2dFwdPipelineOnePassE": "norm",
    "Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT32x32x256_MI16x16x1_SN": "gemm",
    "nvjet_tst_64x64_64x16_2x1_2cta_v_bz_bias_TNT": "gemm",
    "Memcpy DtoD (Device -> Device)": "memcpy",
    "Memset (Device)": "memset",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>": "sampling",
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>>": "elementwise",
}
TABLES = (
    VLLM_CUTLASS,
    VLLM_TRITON,
    TRT_LLM_GEN,
    TRITON_KERNELS,
    DEEPSEEK,
    SINGLE_KERNELS,
    COLLECTIVES,
    REST_OF_THE_STEP,
)
NAMES = {name: kind for table in TABLES for name, kind in table.items()}
MOE = {"topk", "moe_align", "moe_gemm", "moe_gate_up", "moe_down", "moe_experts", "moe_act", "moe_combine"}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_every_name_has_its_kind_with_and_without_an_operator(name: str, kind: str) -> None:
    assert ops.kernel_kind(name) == kind
    assert ops.recognise(name, "") == kind
    assert ops.recognise(name, "some::unheard_of_operator") == kind


def test_every_kind_has_a_family_that_is_named() -> None:
    for kind in {*NAMES.values(), *ops.KINDS}:
        assert ops.family(kind) in set(ops.FAMILY_NAMES) - {ops.OTHER}, kind
    assert ops.family("moe_gemm") == "experts" == ops.family("moe_down")
    assert ops.family("never heard of") == ops.family(ops.OTHER) == ops.OTHER
    assert ops.kernel_kind("never heard of") is None and ops.recognise("never heard of", "") == ops.OTHER


@pytest.mark.parametrize(
    ("kernel", "operator"),
    [
        ("void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>(args)", "aten::topk"),
        ("void at::native::mbtopk::radixFindKthValues<float>(args)", "aten::topk"),
        ("void at::native::radixSortKVInPlace<2, -1, 16, 2, float>(args)", "aten::sort"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>(args)", "aten::_softmax"),
        ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<args>", "aten::sort"),
    ],
)
def test_the_sampler_s_own_top_k_is_not_the_router_s(kernel: str, operator: str) -> None:
    assert ops.recognise(kernel, operator) == "sampling"


@pytest.mark.parametrize(
    ("kernel", "operator"),
    [
        ("", "autograd::engine::evaluate_function: MmBackward0"),
        ("", "torch::autograd::AccumulateGrad"),
        ("", "c10d::dispatch_key_set"),
        ("", "aten::_dispatch_sdp_choice"),
        ("at::dispatch_table_kernel", "autograd::dispatch"),
        ("at::native::grouped_conv2d_nhwc", "aten::convolution"),
        ("void cudnn::cnn::conv2d_grouped_direct_kernel<false>", "aten::cudnn_convolution"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor>", "aten::mul"),
        ("void at::native::unrolled_elementwise_kernel<at::native::CUDAFunctorOnSelf_add<int>>", "aten::add"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 7>", "aten::softmax"),
        ("combine_bitonic_kernel", ""),
        ("expert", ""),
    ],
)
def test_names_that_only_sound_like_moe_are_not(kernel: str, operator: str) -> None:
    found = ops.recognise(kernel, operator)
    assert found not in MOE and ops.family(found) not in ("experts", "routing", "communication")


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "gemm"),
        ("aten::linear", "gemm"),
        ("aten::_grouped_mm", "moe_gemm"),
        ("aten::topk", "topk"),
        ("aten::scaled_dot_product_attention", "attention"),
        ("aten::embedding", "embedding"),
        ("aten::silu", "activation"),
        ("aten::add", "elementwise"),
        ("vllm::all_reduce", "all_reduce"),
        ("c10d::allreduce_", "all_reduce"),
        ("aten::argmax", "sampling"),
        ("vllm::unified_kv_cache_update", "kv_write"),
        ("aten::rms_norm", "norm"),
    ],
)
def test_operators_say_what_a_cpu_op_or_a_generic_kernel_is(operator: str, kind: str) -> None:
    assert ops.operator_kind(operator) == kind == ops.recognise("", operator)
    # A bias or the like: no multiply is an element-wise kernel.
    beside = "gemm_reduce" if kind == "gemm" else kind
    assert ops.recognise("void at::native::vectorized_elementwise_kernel<4>", operator) == beside
    assert ops.recognise("nvjet_tst_64x64", operator) == "gemm"  # a kernel with a name of its own decides


@pytest.mark.parametrize(
    "name", ["view", "reshape", "t", "empty", "empty_strided", "to", "slice", "zeros_like", "item"]
)
def test_views_and_allocations_are_no_work(name: str) -> None:
    assert ops.is_view(f"aten::{name}") and ops.operator_kind(f"aten::{name}") is None
    assert not ops.is_view(f"my::{name}") and not ops.is_view(f"aten::_{name}_backward")


def test_tables_are_sound() -> None:
    known = {*ops.KINDS, "moe_gemm"}
    for module in ops.FAMILIES:
        for pattern, kind in (*module.KERNELS, *module.OPERATORS):
            assert kind in known, kind
            assert not re.search(pattern, ""), pattern  # an empty alternative would match everything
        for kind in module.KINDS:
            assert kind.family in ops.FAMILY_NAMES
    assert len(ops.KINDS) == sum(len(module.KINDS) for module in ops.FAMILIES)  # no name twice


def test_a_long_number_in_a_name_tells_nothing() -> None:
    tables = [p for module in ops.FAMILIES for table in (module.KERNELS, module.OPERATORS) for p, _ in table]
    assert len(tables) > 50 and not [p for p in tables if ops.LONG_NUMBER.search(p) or re.search(r"\{\d", p)]
    for name, kind in {**VLLM_CUTLASS, **VLLM_TRITON}.items():
        assert ops.kernel_kind(f"{name} 1234567") == ops.kernel_kind(f"{name} 7654321") == kind, name
