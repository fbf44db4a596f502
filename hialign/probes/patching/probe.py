"""Causal patching between a model and its tuned counterpart, after Alignment is Localized.

Let m(pair) = log p(chosen) - log p(rejected). How does m change if base gets one tuned layer, and if
the tuned model loses one? These `swaps` of weights are what the answer on where alignment happens rests
on. Their `effects` are signed, and `nulls` say what random changes of the same size do.

The published method patches activations, and is reconstructed here. What of the tuned model's states has
to be put into base so that m becomes the tuned model's, and the reverse? A whole residual stream that is
patched at a late layer says little, as everything below comes along with it. So the contributions of
single layers, of attention and of MLPs are patched too, and prompt positions and windows of layers. Even
a contribution depends on the tuned layers below it. `low_rank` decomposes the difference into directions.
`runs` has the patched passes, and `measurement` puts everything together.
"""

from typing import Any

from hialign.engine.models import identity, load_tokenizer
from hialign.probes.pairs import held_out
from hialign.probes.patching.measurement import Measurement, patching_settings
from hialign.probes.patching.two_models import both, tuned_source
from hialign.probes.record import Parts, measured
from hialign.study.errors import HialignError
from hialign.study.study import Cell


def patching(cell: Cell) -> dict[str, Any]:
    """Measure which layers carry what tuning did, between the cell's model and `patching.tuned`.

    Fields of the record, beside those of every record. Layers are counted from 0. The version of m is
    `summed` (nats) or `normalized` (each response's mean over its tokens). An estimate has `estimate`,
    `low`, `high` and `n`, with its interval over prompts. A direction is `tuned_into_base` (the tuned
    model's state in base) or `base_into_tuned`, and a kind is one of `runs.KINDS`.

    - `tuned`: the other model, its `kind` `adapter` or `model`, and `outside`, the parameters outside
      the layers in which the two differ. No patch of layers can recover these.
    - `swaps`, all in nats of m (summed), positive towards the human preference:
      - `pairs`: `id` and `prompt` of the pairs, in the order of every list of pairs here.
        `unswapped[side]`: m of each. `difference`: as below.
      - `put_in` and `leave_out`, each with `layers[pair][layer]` and `thirds[pair][third]`: the
        effect of that layer or whole third on the pair (`effects`).
      - `layers`: for each layer, an estimate of its effect by `put_in`, by `leave_out` and by `both`,
        the mean of the two. `p` is two-sided, among random adapters.
      - `thirds`: the same of the mean over a third's layers, one row per `third` and `way`. `whole` is
        the effect of the third swapped as a whole.
      - `nulls`: for each random adapter its `seed`, the mean `difference` of m, and the mean effects of
        its `layers`, by `put_in` and `leave_out`.
      - `passes`: as below, without the nulls, each of which takes nearly as many.
    - `layer_scores`: a layer's effect by `both`, or null with `layer_scores_reason`.

    The rest is about patched activations, of the `patched` pairs:

    - `pairs`: `id`, `prompt`, `chosen_tokens`, `rejected_tokens` of the `patched` pairs, in the order
      of every list of pairs below.
    - `difference[version]`: the mean of m_tuned - m_base over patched pairs, and `size`, that of its
      absolute value. `nothing`: why there is no recovery, if it is near zero.
    - `changes[direction][kind]`: an estimate per layer (or per window, with `start` and `stop`) of the
      signed change of m (summed, nats), see `recovery.change`.
    - `recovery[direction][kind][version]`: an estimate per layer or window, or null. It is the mean over
      pairs, weighted by what there is to recover: 1 is all of the donor's m, 0 none.
    - `kinds`: what the kinds are. `left_out[kind]`: why a kind is missing.
    - `unpatched[side][version]`: m of each pair.
    - `margins[direction][kind][version]`: m by layer and pair.
    - `window`: the layers of a window, whose contributions are summed.
    - `rank`: `layers`, each with `explained` by rank, `recovery[direction][variant]` by rank (summed;
      `low_rank.VARIANTS`; at the last rank, the width, the patch is whole) and the `margins` of the
      `tested` pairs, or a `reason`.
    - `passes`: the forward passes over all patched pairs that were run, in tokens times layers (two
      sequences per pair, unpadded, no beginning shared). `naive_passes`: those of a loop that runs the
      donor and the receiver once, and the receiver once more for each patch.

    Raises:
        HialignError: before anything is run, for a tuned model of another architecture or tokenizer,
            and for an adapter that is missing or is another base's.
    """
    settings = patching_settings(cell)
    source = tuned_source(cell, settings.tuned)
    tokenizer = load_tokenizer(cell.model)
    pairs, fingerprint = held_out(cell, tokenizer)
    empty = [p.id for p in pairs if any(len(t.ids) <= t.start for t in p.tokens)]
    if empty:
        raise HialignError(f"pair {empty[0]} has an empty response: there is nothing to patch")
    for name in ("swapped", "patched"):
        if (wanted := getattr(settings, name) or 0) > len(pairs):
            raise HialignError(
                f"probes.patching.{name} is {wanted}, but probes.pairs only {len(pairs)}: "
                "raise probes.pairs"
            )
    source.check_tokens(cell, pairs)
    came_from = {
        "model": identity(cell.model),
        "preferences": fingerprint,
        "tuned": source.identity,
    }

    def compute(parts: Parts) -> dict[str, Any]:
        with both(cell, source, pairs) as (sides, outside):
            tuned = {"name": settings.tuned, "kind": source.kind, "outside": outside}
            return {"tuned": tuned} | Measurement(cell, sides, pairs, parts).record()

    return measured(cell, "patching", came_from, compute)
