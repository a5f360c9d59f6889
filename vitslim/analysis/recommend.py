"""Which layers' attention to reuse, chosen from the figures of an analysis."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from vitslim.analysis.result import AnalysisReport, Recommendation, Replacement, Table
from vitslim.errors import ConfigError


@dataclass(frozen=True)
class _Evidence:
    """One figure per layer (None: not known) and the CKA table of Z."""

    changes: list[float | None]
    r2: Sequence[float | None]
    cka: Table
    unit: str

    def price(self, source: int, layer: int) -> float | None:
        change = self.changes[layer]
        if change is None:
            return None
        return change * (1 + _lack(self.r2[layer])) * (1 + _lack(self.cka[source][layer]))


def recommend(
    replacement: Sequence[Replacement],
    linear_r2: Sequence[float | None],
    cka_z: Table,
    *,
    max_layers: int | None = None,
    max_kl: float | None = None,
    reads_class_token: bool = False,
) -> Recommendation:
    """Choose the layers that cost the output least when they reuse the attention output of an earlier layer.

    The rule. Layer l in the set reuses its source s, the nearest lower layer outside the set; layer 0 has none and
    always stays. Its price is

        change(l) · (2 - R²(l)) · (2 - CKA_Z(s, l))        with R² and CKA held to 0..1, 0 where unknown

    ``change(l)``, the measured change of the output with the better of the two stand-ins (Z_{l-1} itself, a linear map
    of it), is the true damage and leads. It was measured one layer at a time with an exact Z_{l-1}; the other two
    factors charge, each up to twice, for what it leaves out: a layer that its predecessor explains badly gives a
    trained skip function less to start from, and inside a run the source lies further back than l - 1 and looks less
    alike. Of all sets of a given size the one with the least summed price is found exactly (dynamic programming over
    layers; the price of a layer depends on its source alone), so runs and gaps both come out where they pay.
    The sum ranks sets; it is not a forecast. ``Recommendation.measured`` says what the set really does.

    Args:
        replacement: both kinds for every layer but the first.
        linear_r2: entry l is R² of Z_{l-1} → Z_l.
        cka_z: CKA of Z between all layers.
        max_layers: size of the set; default half of the depth, as the paper's 6 of 12. Smaller only where layers
            have no measured change, or where ``max_kl`` binds.
        max_kl: most that the summed price may be, in nats (without a classifier: relative feature change).
        reads_class_token: whether only the class token reaches the output. A skip function leaves the class row alone,
            so behind the last layer that attends no patch reaches the output; the reason says so.

    Raises:
        ConfigError: ``max_layers`` outside 0 .. depth - 1, or a negative ``max_kl``.
    """
    depth = len(linear_r2)
    budget = depth // 2 if max_layers is None else max_layers
    if not 0 <= budget < max(depth, 1):
        raise ConfigError(f"max_layers={budget}: block 0 has nothing to reuse, so choose from 0..{depth - 1}")
    if max_kl is not None and max_kl < 0:
        raise ConfigError(f"max_kl={max_kl}: a change of the output is never negative; choose 0 or more")
    evidence = _Evidence(_changes(replacement, depth), linear_r2, cka_z, _unit(replacement))
    price, layers = _best(_cheapest_sets(evidence, budget), max_kl)
    reason = _reason(evidence, layers, price) if layers else _why_none(evidence, budget, max_kl)
    if reads_class_token and depth - 1 in layers:
        reason += (
            f" Only the class token is read, and behind block {_sources(layers)[depth - 1]} no patch reaches it: there "
            "skip functions serve dense features, and the classifier does without (identity=True)."
        )
    return Recommendation(layers=list(layers), reason=reason, max_layers=budget, max_kl=max_kl, estimated_change=price)


def by_preference(report: AnalysisReport) -> list[int]:
    """The layers that could be reused: the recommended ones, then the others, each time the least change first.

    The change is that of the output when the layer alone is replaced; where none was measured the layer is left out.
    """
    sizes = {
        layer: size for layer, size in enumerate(_changes(report.replacement, len(report.layers))) if size is not None
    }
    return sorted(sizes, key=lambda layer: (layer not in report.recommended.layers, sizes[layer]))


def _changes(replacement: Sequence[Replacement], depth: int) -> list[float | None]:
    """Per layer the smaller change of the two stand-ins."""
    changes: list[float | None] = [None] * depth
    for effect in replacement:
        former = changes[effect.layer]
        if effect.size is not None and (former is None or effect.size < former):
            changes[effect.layer] = effect.size
    return changes


def _cheapest_sets(evidence: _Evidence, budget: int) -> list[tuple[float, tuple[int, ...]]]:
    """For each size up to ``budget`` that exists: the least summed price and the set that has it."""
    # A state is (source, layers reused so far); what came before the source no longer matters.
    states: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, ())}
    for layer in range(1, len(evidence.changes)):
        following: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (source, count), (price, layers) in states.items():
            _keep_cheaper(following, (layer, count), (price, layers))
            extra = evidence.price(source, layer)
            if extra is not None and count < budget:
                _keep_cheaper(following, (source, count + 1), (price + extra, (*layers, layer)))
        states = following
    by_size: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
    for (_, count), candidate in states.items():
        _keep_cheaper(by_size, (0, count), candidate)
    return [by_size[key] for key in sorted(by_size)]


def _keep_cheaper(
    table: dict[tuple[int, int], tuple[float, tuple[int, ...]]],
    key: tuple[int, int],
    candidate: tuple[float, tuple[int, ...]],
) -> None:
    if key not in table or candidate < table[key]:
        table[key] = candidate


def _best(sets: list[tuple[float, tuple[int, ...]]], max_price: float | None) -> tuple[float, tuple[int, ...]]:
    """The largest set that the budget allows; the empty one costs nothing and is always there."""
    return [entry for entry in sets if max_price is None or entry[0] <= max_price][-1]


def _reason(evidence: _Evidence, layers: tuple[int, ...], price: float) -> str:
    sources = _sources(layers)
    chosen = [change for layer in layers if (change := evidence.changes[layer]) is not None]
    known = [change for change in evidence.changes if change is not None]
    others = [(change, layer) for layer, change in enumerate(evidence.changes) if change and layer not in layers]
    parts = [
        f"{'Blocks' if len(layers) > 1 else 'Block'} {_spans(layers)} of {len(evidence.changes)} "
        f"{'are' if len(layers) > 1 else 'is'} the cheapest to reuse: replaced alone, each changes the output by "
        f"{_range(chosen, '.3g')} {evidence.unit} (median of all blocks {median(known):.3g})"
    ]
    if r2 := [value for layer in layers if (value := evidence.r2[layer]) is not None]:
        parts.append(f"a linear map of the block before explains {_range(r2, '.0%')} of the variance (R²)")
    if alike := [value for layer in layers if (value := evidence.cka[sources[layer]][layer]) is not None]:
        parts.append(f"CKA with the block it reuses is {_range(alike, '.2f')}")
    parts.append(f"summed price {price:.3g} {evidence.unit}")
    sentence = "; ".join(parts) + "."
    if others:
        change, layer = max(others)
        sentence += f" Of those kept, block {layer} would cost most ({change:.3g} {evidence.unit})."
    return sentence


def _why_none(evidence: _Evidence, budget: int, max_kl: float | None) -> str:
    if budget == 0:
        return "No block: max_layers is 0, or the model is too shallow to give one up."
    prices = [
        price for layer in range(1, len(evidence.changes)) if (price := evidence.price(layer - 1, layer)) is not None
    ]
    if not prices or max_kl is None:
        return "No block: no replacement gave a finite change of the output."
    return f"No block: the cheapest costs {min(prices):.3g} {evidence.unit}, more than max_kl={max_kl:g} allows."


def _sources(layers: tuple[int, ...]) -> dict[int, int]:
    """Per reused layer the nearest lower one outside the set."""
    sources: dict[int, int] = {}
    for layer in layers:
        sources[layer] = sources.get(layer - 1, layer - 1)
    return sources


def _lack(value: float | None) -> float:
    """What is missing to 1, held to 0..1; everything where nothing is known."""
    return 1.0 if value is None else 1 - min(max(value, 0.0), 1.0)


def _unit(replacement: Sequence[Replacement]) -> str:
    return "nats" if any(effect.kl is not None for effect in replacement) else "of the features' length"


def _range(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _spans(layers: tuple[int, ...]) -> str:
    """Runs as ``3-8``, single layers as they are."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
