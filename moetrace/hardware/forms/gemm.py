"""The parameters of dense GEMMs. The formula: machines/forms/gemm."""

from __future__ import annotations

from dataclasses import replace

from moetrace.hardware.forms.base import BLEND, CACHED, ETA_BW, ETA_FLOPS, Parameter, Schema

GEMM = Schema.of(
    "gemm",
    Parameter("t0_s", "s/launch", 0, 1e-3, 3e-6, 0, "floor of a launch, its conversions of type included"),
    Parameter(
        "reach_s", "s", 0, 1e-5, 1e-7, 0, "later that a launch begins whose weights come from memory", 2.0
    ),
    replace(ETA_BW, start=0.85, spread=0.2),
    replace(ETA_FLOPS, start=0.7, spread=0.7),
    Parameter("per_k_s", "s/element", 0, 1e-7, 1e-9, 0, "serial time per element of one tile's reduction"),
    Parameter(
        "per_k_row_s",
        "s/element",
        0,
        1e-9,
        5e-12,
        0,
        "the same for each row of a tile of 128 columns, whose arithmetic it is",
        pace="arithmetic",
    ),
    Parameter("per_tile_s", "s/wave", 0, 1e-4, 1e-6, 0, "start and end of a tile of 128 x 128", 2.0),
    Parameter(
        "per_turn_s",
        "s/wave",
        0,
        1e-4,
        1e-6,
        0,
        "start and end of a further turn, of a library's tiles of 128 x 128",
        2.0,
    ),
    Parameter(
        "split_s", "s", 0, 1e-2, 3e-5, 1e-2, "cost of sharing a reduction out over idle processors", 2.0
    ),
    Parameter("split_tile_s", "s", 0, 1e-4, 2e-6, 0, "the same for partial sums of tiles of 128 x 128", 2.0),
    Parameter(
        "convert", "passes", 0, 100, 1, 0, "how often converting activations to the type crosses memory", 2.0
    ),
    Parameter(
        "alone", "share", 0, 10, 1, 0, "DeepGEMM's largest blocks take so much longer in a single turn", 1.5
    ),
    Parameter("uneven", "share", 0, 10, 0.1, 0, "its blocks of columns that do not divide 128, so much", 1.5),
    Parameter(
        "per_empty_s",
        "s/byte",
        0,
        1e-11,
        2e-13,
        0,
        "filling rows that tiles hold and the GEMM has not, of all tiles",
        1.5,
    ),
    Parameter("per_empty_tile_s", "s/byte", 0, 1e-9, 5e-12, 0, "the same of one tile, in series", 1.5),
    Parameter(
        "waits",
        "share",
        0,
        1,
        0.5,
        0,
        "of the tiles' loops, arithmetic waits for this and hides the rest",
        1.5,
    ),
    *(
        Parameter(name, unit, 0, high, value, value, f"{meaning}; of the kernel, not fitted", given=True)
        for name, unit, high, value, meaning in (
            (
                "picks",
                "choice",
                3,
                1,
                "1: of its tiles the one that takes least; 2: DeepGEMM's, 3: by its former rule; 0: by the rule below",
            ),
            ("chosen_for", "processors", 1e9, 132, "processors that DeepGEMM's choice counts"),
            ("splits", "flag", 1, 1, "1: it can share a reduction out"),
            ("least_rows", "rows", 1e9, 16, "the fewest of a tile that is picked"),
            ("few_rows", "rows", 1e9, 0, "rows up to which tiles have 16 of them"),
            ("few_columns", "columns", 1e9, 0, "columns up to which tiles of 64 have 16 rows too"),
            ("half_rows", "rows", 1e9, 0, "rows up to which tiles have 32 of them"),
            ("short_rows", "rows", 1e9, 0, "rows up to which tiles have 64 of them, 128 above"),
            ("narrow_rows", "rows", 1e9, 0, "rows up to which tiles have 64 columns, 128 above"),
            ("narrow_columns", "columns", 1e9, 0, "columns up to which tiles of 64 rows have 64 columns too"),
            ("paired_rows", "rows", 1e9, 0, "rows above which tiles come in pairs of them (0: never)"),
            ("pads", "flag", 1, 0, "1: rows that four does not divide are copied into place"),
            (
                "crowd",
                "tiles",
                1e9,
                0,
                "tiles from which on they are filled in full, none below half of it (0: none ever)",
            ),
        )
    ),
    Parameter(
        "copies",
        "copies",
        0,
        1e3,
        0,
        0,
        "of the weights that a benchmark calls in turn (0: never warm); of the benchmark, not fitted",
        given=True,
    ),
    Parameter(
        "misaligned_s",
        "s",
        0,
        1e-4,
        1e-7,
        0,
        "more where four does not divide the rows (a third of it for one row, half of it for k up to 128)",
    ),
    replace(BLEND, meaning="p of the p-norm that joins memory and serial work"),
    Parameter("blend_flops", "power", 1, 32, 6, 2, "q of the one that joins arithmetic"),
    CACHED,
    terms=("launch", "memory", "convert", "compute", "tiles", "split"),
)
