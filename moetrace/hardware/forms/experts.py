"""The parameters of MoE modules. The formula: machines/forms/experts."""

from __future__ import annotations

from dataclasses import replace

from moetrace.hardware.forms.base import ETA_BW, ETA_FLOPS, Parameter, Schema

EXPERTS = Schema.of(
    "experts",
    Parameter(
        "t0_s", "s/module", 0, 1e-3, 15e-6, 0, "floor of the module, a sixth for each of its launches", 0.5
    ),
    Parameter("per_expert_s", "s/expert", 0, 1e-5, 1e-8, 0, "routing kernels, per expert of the layer"),
    Parameter(
        "routed_experts",
        "experts",
        0,
        1e6,
        0,
        0,
        "up to so many experts of the layer a kernel of the engine's own routes (0: always); of the kernel, not fitted",
        given=True,
    ),
    Parameter("operators_s", "s/module", 0, 1e-3, 1e-5, 0, "routing more, by the framework's operators", 2.0),
    Parameter(
        "per_local_expert_s",
        "s/expert",
        0,
        1e-5,
        1e-8,
        0,
        "per expert that the rank holds, touched or not",
        2.0,
    ),
    Parameter(
        "per_row_s", "s/row", 0, 1e-5, 1e-9, 0, "sorting and combining, per token and chosen expert", 2.0
    ),
    Parameter(
        "serial_s", "s/byte", 0, 1e-8, 1.2e-11, 0, "per byte that one thread block streams in its K loop"
    ),
    replace(ETA_BW, low=0.05, start=0.93, spread=0.1),
    replace(ETA_FLOPS, low=0.02, spread=0.7),
    Parameter(
        "tuned_flops",
        "share",
        0,
        1,
        0.6,
        0,
        "share of the peak that an engine's tuned tiles reach (0: eta_flops)",
        0.7,
    ),
    Parameter(
        "overlap", "share", 0, 1, 0.3, 0, "of what weights and arithmetic could hide of each other", 1.5
    ),
    Parameter(
        "by_cycles",
        "flag",
        0,
        1,
        0,
        0,
        "1: on another chip arithmetic takes as many cycles of a processor, whatever its peak; of the kernel, not fitted",
        given=True,
    ),
    Parameter(
        "act_passes",
        "passes",
        1,
        50,
        3,
        1,
        "how often activations cross memory, of once in and out of each op",
    ),
    Parameter(
        "remote_passes",
        "passes",
        0,
        20,
        1,
        0,
        "how often rows of choices that other ranks' experts take cross memory all the same",
    ),
    Parameter(
        "crowded_rows",
        "rows",
        0,
        1024,
        0,
        0,
        "rows of a tile where more tokens than experts on the rank find none that was tuned (0: 16 as ever); of the "
        "kernel, not fitted",
        given=True,
    ),
    Parameter(
        "per_block_s",
        "s/block",
        0,
        1e-4,
        8e-7,
        0,
        "what a block of the down GEMM takes a multiprocessor, beside streaming",
    ),
    Parameter(
        "wide_tokens",
        "tokens",
        0,
        1e6,
        0,
        0,
        "above them blocks have 128 columns instead of 64 (0: never)",
        given=True,
    ),
    Parameter("block_wide", "share", 0.1, 5, 0.8, 1, "of a block's time, a wide one takes this"),
    Parameter("above_wide", "share", 0, 1, 0.05, 0, "weights and FLOPs in wide blocks take so much longer"),
    Parameter(
        "wide_serial",
        "share",
        0,
        5,
        0.5,
        0,
        "what one wide block streams in its K loop takes so much longer",
        1.5,
    ),
    Parameter(
        "misaligned",
        "share",
        0,
        20,
        3,
        0,
        "of per_block_s, a block of the down GEMM takes more where 16 does not divide the width",
        0.5,
    ),
    Parameter(
        "cached", "share", 0.05, 1, 0.6, 1, "of their streaming time, weights in a warm cache take this", 0.5
    ),
    Parameter(
        "untuned_ranks",
        "ranks",
        0,
        1e6,
        0,
        0,
        "from so many on the benchmark ran kernels that were not tuned (0: never); of the benchmark, not fitted",
        given=True,
    ),
    Parameter("untuned", "share", 0.01, 1, 0.17, 1, "of the datasheet bandwidth, these reach this"),
    terms=(
        "launch",
        "experts",
        "rows",
        "serial",
        "blocks",
        "weights",
        "few",
        "untuned",
        "activations",
        "remote",
        "compute",
    ),
)
