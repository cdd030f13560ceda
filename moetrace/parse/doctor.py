"""What a run's trace can and cannot answer, why, and how to capture it so that it can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moetrace.errors import RunError
from moetrace.parse.batches import UNMARKED
from moetrace.parse.remedies import command, remedy
from moetrace.parse.summary import summary
from moetrace.run import GENERATING, Run

YES, PARTLY, NO = "yes", "partly", "no"
_COLUMNS = ("rank", "device", "family", "dur_ns", "launch_ns", "graph", "op_source")
_MOST, _HALF = 0.95, 0.5  # shares of device time that count as answered, and as answered in part
_FEW = 3  # decode steps below which nothing is known of how they vary


@dataclass(frozen=True, slots=True)
class Answer:
    """One question: whether the trace answers it, why not, what is lacking (a key of the remedies), what to do."""

    question: str
    answer: str
    why: str = ""
    lacking: str = ""
    fix: str = ""


@dataclass(slots=True)
class _Shares:
    """Device time in ns: all, with shapes, with some dims, of replays, of those without shapes, without a launch."""

    total: int = 0
    shaped: int = 0
    sized: int = 0
    replayed: int = 0
    bare: int = 0
    unlaunched: int = 0
    communicated: int = 0

    def of(self, part: int) -> float:
        return part / max(1, self.total)


def diagnose(run: Run, engine: str | None = None) -> dict[str, Any]:
    """A JSON-able list of questions with their answers (yes, partly, no), and what to do about those that are not yes.

    `engine` takes the place of the one that the trace shows. `whole` is true where every answer is yes.
    """
    if run.meta.kind != "measured":
        raise RunError(f"a {run.meta.kind} run: nothing was recorded of it, so there is no trace to ask")
    facts = summary(run)
    shares, holders = _shares(run)
    engine = engine or _known(run.meta.engine)
    nsys = "kernels" in run.meta.facts
    found = [
        *_time(run, facts), *_steps(run, facts), *_layers(run, facts), *_sizes(run, shares, facts),
        *_machine(run, shares, holders), *_asked_for(run, shares), *_whole(run),
    ]  # fmt: skip
    answers = [
        Answer(a.question, a.answer, a.why, a.lacking, remedy(a.lacking, engine, nsys) if a.lacking else "")
        for a in found
    ]
    whole = all(a.answer == YES for a in answers)
    return {
        "schema": "moetrace.doctor/1",
        "run": facts["run"],
        "engine": engine,
        "recorded_by": "nsys" if nsys else "torch.profiler",
        "whole": whole,
        "answers": [asdict(a) for a in answers],
        "capture": None if whole else command(engine, nsys),
        "notes": facts["notes"],
    }


def _known(engine: str | None) -> str | None:
    return "transformers" if engine and engine.startswith("transformers") else engine


def _shares(run: Run) -> tuple[_Shares, int]:
    """(shares of device time, number of ranks or devices that the run holds)."""
    sums, holders = _Shares(), set[tuple[int, int]]()
    for part in run.parts(_COLUMNS):
        dur, graph = part.numpy("dur_ns"), part.numpy("graph") >= 0
        code, names = part.codes("op_source")
        family, families = part.codes("family")
        known = {name: i for i, name in enumerate(names)}
        shaped = np.isin(code, [known.get(name, -2) for name in ("shapes", "capture", "annotation")])
        sized = shaped | np.isin(code, [known.get(name, -2) for name in ("model", "period")])
        copied = family == (families.index("copy") if "copy" in families else -2)
        talks = family == (families.index("communication") if "communication" in families else -2)
        work = ~copied & ~talks
        sums.total += int(dur[work].sum())
        sums.shaped += int(dur[work & shaped].sum())
        sums.sized += int(dur[work & sized].sum())
        sums.replayed += int(dur[work & graph].sum())
        sums.bare += int(dur[work & graph & ~shaped].sum())
        sums.unlaunched += int(dur[work & (part.numpy("launch_ns") < 0)].sum())
        sums.communicated += int(dur[talks].sum())
        holders |= set(zip(part.numpy("rank").tolist(), part.numpy("device").tolist(), strict=True))
    return sums, max(len(holders), run.meta.facts.get("ranks", 0))


def _graded(question: str, share: float, why: str, lacking: str) -> Answer:
    if share >= _MOST:
        return Answer(question, YES)
    return Answer(question, PARTLY if share >= _HALF else NO, why.format(f"{100 * share:.0f} %"), lacking)


def _time(run: Run, facts: dict[str, Any]) -> Iterator[Answer]:
    question = "Where does the device's time go?"
    replays = run.meta.facts.get("whole_graphs", 0)
    if any("of which only the host was recorded" in note for note in run.meta.notes):
        yield Answer(
            question, NO, "the GPU's kernels were not recorded, only the host's operators", "host_only"
        )
    elif replays:
        yield Answer(question, NO, f"{replays:,} graph replays were recorded without their kernels", "graph")
    else:
        named = facts["coverage"]["named_share"]
        yield _graded(question, named, "{} of it has a name that moetrace knows", "names")


def _steps(run: Run, facts: dict[str, Any]) -> Iterator[Answer]:
    steps = run.meta.steps
    question = "What does a decode step take (TPOT)?"
    decodes, verifying = ([s for s in steps if s.phase == phase] for phase in GENERATING)
    if run.meta.facts.get("only_aside"):
        why = "all of it ran in ranges of a graph's capture, of warm-up or of dummy runs: no step of a request is in it"
        yield Answer(question, NO, why, "requests")
    elif not any(s.phase for s in steps):
        whole = any(note.startswith(UNMARKED) for note in run.meta.notes)
        begin = "no annotation says where a step begins and which phase it is"
        which = f"{len(steps):,} step(s) are annotated, none as prefill or decode"
        yield Answer(question, NO, begin if whole else which, "steps")
    elif verifying and not decodes:
        why = f"{len(verifying)} step(s) verify drafted tokens: how many were accepted is not recorded"
        yield Answer(question, PARTLY, why, "accepted")
    elif not decodes:
        phases = " and ".join(sorted({s.phase for s in steps if s.phase}))
        yield Answer(question, NO, f"the trace holds {phases} steps, no decode step", "few_steps")
    elif len(decodes) < _FEW:
        yield Answer(
            question, PARTLY, f"{len(decodes)} decode step(s): how they vary is not known", "few_steps"
        )
    else:
        yield Answer(question, YES)
    if decodes := decodes + verifying:
        told = sum(s.kv_tokens is not None for s in decodes) / len(decodes)
        yield _graded(
            "How much KV cache does a step read?", told, "{} of decode steps say how long sequences are", "kv"
        )


def _layers(run: Run, facts: dict[str, Any]) -> Iterator[Answer]:
    question, share = "What does each layer cost?", facts["coverage"]["layer_share"]
    # Embedding, head and sampling lie outside of layers: half of the time is enough to tell them.
    if share >= _HALF:
        order = any("order" in part.codes("layer_source")[1] for part in run.parts(["layer_source"]))
        why = "layers are concluded from the order of kernels, not recorded" if order else ""
        yield Answer(question, PARTLY if order else YES, why, "layers" if order else "")
    else:
        yield Answer(question, NO, f"{100 * share:.0f} % of the time has a layer", "layers")


def _sizes(run: Run, shares: _Shares, facts: dict[str, Any]) -> Iterator[Answer]:
    yield _graded(
        "Which sizes does each op have?", shares.of(shares.shaped),
        "{} of the time has recorded shapes"
        + (f", {100 * shares.of(shares.sized):.0f} % with those that the model tells" if run.meta.model else ""),
        "graph" if shares.bare > shares.total * (1 - _MOST) else "shapes",
    )  # fmt: skip
    if shares.replayed:
        share = 1 - shares.bare / shares.replayed
        yield _graded(
            "What does each kernel of a replayed graph do?",
            share,
            "graph replays carry no shapes: {} have them",
            "graph",
        )
    share = facts["coverage"]["bytes_share"]
    yield _graded("Is it bound by memory or compute?", share, "{} of the time has bytes and FLOPs", "bytes")
    model = run.meta.model
    if (model is not None and model.experts) or any(f["family"] == "experts" for f in facts["families"]):
        guessed = run.meta.routing.startswith(("uniform", "none"))
        how = (
            "distinct experts are estimated as if choices were uniform" if model else "nor is the model known"
        )
        why = f"no routing was recorded: {how}" if guessed else ""
        yield Answer(
            "How many experts does a step touch?", NO if guessed else YES, why, "experts" if guessed else ""
        )


def _machine(run: Run, shares: _Shares, holders: int) -> Iterator[Answer]:
    if run.meta.device_class == "gpu":
        share = 1 - shares.of(shares.unlaunched)
        yield _graded(
            "Does the device wait for the host?",
            share,
            "the launch was recorded for {} of the time",
            "launches",
        )
    missing = run.meta.gpus - holders
    if shares.communicated or missing > 0:  # ranks that are all there and share nothing do not wait
        why = f"{holders} of {run.meta.gpus} ranks: a collective's wait cannot be told from its transfer"
        question = "Do ranks wait for each other?"
        alone = missing > 0 or holders < 2
        yield Answer(question, NO if alone else YES, why if alone else "", "ranks" if alone else "")
    if run.meta.hardware is None:
        why = f"the machine is not known ({run.meta.device or 'the trace names no device'})"
        yield Answer("How far is it from the machine's limits?", NO, why, "hardware")
    else:
        yield Answer("How far is it from the machine's limits?", YES)


def _asked_for(run: Run, shares: _Shares) -> Iterator[Answer]:
    """Whether steps compute only what requests asked for; warm-up, dummy batches and captures are left out of them already.

    Not asked where nothing tells requests' steps from others.
    """
    if not any(s.phase for s in run.meta.steps):
        return
    wide = [s for s in run.meta.steps if s.padded_tokens]
    left = run.meta.facts.get("steps_left_out", 0)
    question = "Do steps compute only what requests asked for?"
    if not wide and shares.bare > shares.total * (1 - _MOST):
        why = "graphs were replayed: how many tokens each was captured for, only its capture tells"
        yield Answer(question, PARTLY, why, "graph")
        return
    if not wide:
        said = f"{left:,} step(s) of warm-up, dummy batches or graph captures are left out" if left else ""
        yield Answer(question, YES, said)
        return
    rows = sum(s.padded_tokens or 0 for s in wide)
    share = 1 - sum(s.tokens or 0 for s in wide) / rows
    steps = f"{len(wide):,} of {len(run.meta.steps):,} steps"
    why = f"{steps} ran a graph for more tokens: {100 * share:.0f} % of its rows are padding"
    yield Answer(question, PARTLY, why, "padding")


def _whole(run: Run) -> Iterator[Answer]:
    count = run.meta.facts
    lost = [
        said
        for key, said in (
            ("damaged", "{:,} events are damaged"), ("lost_bytes", "{:,} bytes of JSON could not be read"),
            ("unread_bytes", "the packed file's last {:,} bytes could not be read"), ("unclosed", "{:,} ranges never ended"),
        )
        if count.get(key)
        for said in [said.format(count[key])]
    ]  # fmt: skip
    lost += ["the file is cut off"] if count.get("cut_off") else []
    cut = count.get("cut_off") or count.get("packed_damage")
    yield Answer(
        "Is the trace whole?",
        (NO if cut else PARTLY) if lost else YES,
        "; ".join(lost),
        "whole" if lost else "",
    )
    costs = []
    if count.get("python_calls"):
        costs.append(f"{count['python_calls']:,} Python calls were recorded, which slows the host")
    if count.get("profiler_overheads"):
        costs.append(f"the profiler itself reports {count['profiler_overheads']:,} pauses of its own")
    question = "Are the times those of a run that is not profiled?"
    yield Answer(question, PARTLY if costs else YES, "; ".join(costs), "overhead" if costs else "")
