"""Packed pairs: every token once, every position scored once for its sequence, nothing leaks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hialign.engine.packing import pack, plan
from hialign.engine.tokens import TokenPair, Tokens


@st.composite
def pairs(draw: st.DrawFn) -> TokenPair:
    """Few different tokens, so that sequences share beginnings by chance too; any start."""
    token = st.integers(0, 2)
    shared = draw(st.lists(token, max_size=6))
    both = [shared + draw(st.lists(token, min_size=1, max_size=6)) for _ in range(2)]
    start = draw(st.integers(0, len(shared) + 1))
    chosen, rejected = (Tokens(tuple(ids), min(start, len(ids))) for ids in both)
    return chosen, rejected


some = st.lists(pairs(), min_size=1, max_size=5)


@given(some)
@settings(deadline=None)
def test_each_scored_position_predicts_its_own_sequences_token(
    given_pairs: list[TokenPair],
) -> None:
    """What a position has seen, by the attention rule, is exactly its sequence up to there."""
    import torch

    from hialign.engine.decoder import Layout

    packed = pack(given_pairs)
    layout = Layout(packed, torch.device("cpu"))
    n = len(packed)
    seen = np.zeros((n, n), bool)
    if n:
        q, k = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        seen = layout.rule(None, torch.device("cpu"))(0, 0, q, k).numpy()
    flat = [tokens for pair in given_pairs for tokens in pair]
    scored = [
        (packed.scored[p], packed.targets[p], s)
        for p, s in zip(packed.prediction, packed.sequence, strict=True)
    ]
    assert set(packed.prediction) == set(range(len(packed.scored)))
    assert len(set(zip(packed.scored, packed.targets, strict=True))) == len(packed.scored)
    wanted = {
        (number, at): tokens.ids[at]
        for number, tokens in enumerate(flat)
        for at in range(max(tokens.start, 1), len(tokens.ids))
    }
    found = {}
    for place, target, number in scored:
        visible = np.flatnonzero(seen[place])
        history = [packed.ids[i] for i in visible]
        assert [packed.positions[i] for i in visible] == list(range(len(visible)))
        assert tuple(history) == flat[number].ids[: len(history)]
        found[number, len(history)] = target
    assert found == wanted
    assert len(scored) == len(wanted)


@given(some)
def test_a_row_holds_each_beginning_once(given_pairs: list[TokenPair]) -> None:
    packed = pack(given_pairs)
    flat = [tokens.ids[:-1] for pair in given_pairs for tokens in pair]
    beginnings = {ids[:n] for ids in flat for n in range(1, len(ids) + 1)}
    assert len(packed) == len(beginnings)
    assert [node.begin for node in packed.nodes[1:]] == [node.end for node in packed.nodes[:-1]]
    assert all(node.path[-1] == number for number, node in enumerate(packed.nodes))


@given(some, st.one_of(st.none(), st.integers(1, 6)))
@settings(deadline=None)
def test_attention_by_pair_is_attention_under_the_rule(
    given_pairs: list[TokenPair], window: int | None
) -> None:
    import torch
    import torch.nn.functional as F

    from hialign.engine.decoder import Layout

    layout = Layout(pack(given_pairs), torch.device("cpu"))
    n = len(layout.pack)
    if n == 0:
        return
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, n, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(1, 2, n, 8, generator=generator, dtype=torch.float64) for _ in "kv")
    module = torch.nn.Identity()
    found = layout.attend(module, query, key, value, window, scaling=0.3, dropout=0.0)
    q, k = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    mask = layout.rule(window, torch.device("cpu"))(0, 0, q, k)
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-9, atol=1e-9)


@given(st.lists(pairs(), max_size=12), st.integers(1, 60))
def test_a_plan_takes_each_pair_once_and_keeps_the_limit(
    given_pairs: list[TokenPair], limit: int
) -> None:
    groups = plan(given_pairs, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(given_pairs)))
    for group in groups:
        assert len(pack([given_pairs[i] for i in group])) <= limit or len(group) == 1
    assert groups == plan(given_pairs, limit)


def test_a_plan_keeps_what_begins_alike_together_in_rows_of_equal_length() -> None:
    same = [(Tokens((7, 7, 7, i, 1, 2), 3), Tokens((7, 7, 7, i, 3, 4), 3)) for i in range(8)]
    other = [(Tokens((9, 9, 9, i, 1, 2), 3), Tokens((9, 9, 9, i, 3, 4), 3)) for i in range(8)]
    mixed = [pair for two in zip(same, other, strict=True) for pair in two]
    groups = plan(mixed, 32)
    assert [len(group) for group in groups] == [8, 8]
    assert {i % 2 for i in groups[0]} == {0}
    assert [len(pack([mixed[i] for i in group])) for group in groups] == [27, 27]
