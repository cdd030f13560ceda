"""Routing: which experts the tokens went to, and how many distinct ones a layer touches.

`distinct`, formulas: the distinct experts expected of uniform or of popular routing, and on the worst of several
ranks. `recorded`: counts by step, layer, expert and rank of choice, which answer the same for what really
happened. `pruned`: what fewer experts leave of it. `logs`: other tools' logs of it. `load`: experts and rows on the
busiest rank of a stated routing; `limited`: the same of a router of groups in public tables. `drawn`: expert ids made to
follow a distribution. `tokens`: which token chose what, kept on request.
Not supported: pairs of experts.
"""

from __future__ import annotations

from moetrace.routing.builder import RoutingBuilder
from moetrace.routing.distinct import (
    ep_blocks,
    ep_max_distinct,
    own_block,
    popularity_distinct,
    uniform_distinct,
    uniform_spread,
)
from moetrace.routing.drawn import dealt_ids, drawn_ids, power_law_counts
from moetrace.routing.load import (
    RankLoad,
    Ties,
    balanced_counts,
    padded_rows,
    rank_load,
    read_loads,
    save_loads,
    uniform_counts,
)
from moetrace.routing.logs import RoutingLog, read_log
from moetrace.routing.recorded import (
    ROUTING_COLUMNS,
    ROUTING_SCHEMA,
    ROUTING_VERSION,
    Routing,
)

__all__ = [
    "ROUTING_COLUMNS", "ROUTING_SCHEMA", "ROUTING_VERSION", "RankLoad", "Routing", "RoutingBuilder", "RoutingLog", "Ties",

    "balanced_counts", "dealt_ids", "drawn_ids", "ep_blocks", "ep_max_distinct", "own_block", "padded_rows",
    "popularity_distinct", "power_law_counts", "rank_load", "read_loads", "read_log", "save_loads", "uniform_counts",
    "uniform_distinct", "uniform_spread",
]  # fmt: skip
