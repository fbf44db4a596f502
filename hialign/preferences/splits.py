"""Which pairs are trained on and which are held out. Pairs of one conversation stay on one side."""

import numpy as np

from hialign.preferences.formats import Pair, conversation_id
from hialign.study.errors import HialignError
from hialign.study.settings import PreferenceSettings


def split_pairs(
    usable: dict[str, list[Pair]], settings: PreferenceSettings
) -> tuple[list[Pair], list[Pair]]:
    """Shuffled training and held-out pairs that share no conversation.

    Two pairs are of one conversation if their dialogues begin with the same user turn. A source with
    both splits keeps them, and training drops the conversations that are held out. A source with one
    split is divided by conversation. `settings.draw` reorders the whole pool of training pairs.
    """
    rng = np.random.default_rng(settings.seed)

    def shuffled(pairs: list[Pair]) -> list[Pair]:
        return [pairs[i] for i in rng.permutation(len(pairs))]

    if len(usable) == 2:
        held_out = shuffled(usable["test"])
        taken = {conversation_id(p["prompt"]) for p in held_out[: settings.evaluation]}
        train = [p for p in shuffled(usable["train"]) if conversation_id(p["prompt"]) not in taken]
        check_size(held_out, "evaluation", settings, "usable ones in its test split")
        left_out = len(usable["train"]) - len(train)
        check_size(
            train,
            "train",
            settings,
            "usable ones in its train split"
            + (f" outside the {left_out} whose conversation is held out" if left_out else ""),
        )
        return drawn(train, settings), held_out
    (pairs,) = usable.values()
    conversations: dict[str, list[Pair]] = {}
    for pair in shuffled(pairs):
        conversations.setdefault(conversation_id(pair["prompt"]), []).append(pair)
    wanted = settings.evaluation if settings.evaluation is not None else len(pairs) // 10
    train = []
    held_out = []
    for group in conversations.values():
        (held_out if len(held_out) < wanted else train).extend(group)
    _check_one_split(train, held_out, len(conversations), settings)
    return drawn(train, settings), held_out


def training_seed(settings: PreferenceSettings) -> int:
    """What decides the order of the training pairs: `draw`, or else `seed`."""
    return settings.seed if settings.draw is None else settings.draw


def drawn(train: list[Pair], settings: PreferenceSettings) -> list[Pair]:
    """All training pairs in the order of `settings.draw`, or as they are if there is none."""
    if settings.draw is None:
        return train
    return [train[i] for i in np.random.default_rng(settings.draw).permutation(len(train))]


def exchanged(train: list[Pair], settings: PreferenceSettings) -> tuple[list[Pair], int]:
    """The training pairs with chosen and rejected exchanged in a random half, and in how many.

    A pair's place decides, so that more training pairs leave the first ones as they were.
    """
    # The 1 keeps this stream apart from the one that orders the pairs
    coins = np.random.default_rng([training_seed(settings), 1]).random(len(train)) < 0.5
    pairs = [
        pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} if coin else pair
        for pair, coin in zip(train, coins, strict=True)
    ]
    return pairs, int(coins.sum())


def check_size(pairs: list[Pair], name: str, settings: PreferenceSettings, kind: str) -> None:
    """Refuse a split that has fewer `pairs` than `preferences.<name>` asks for, or none."""
    wanted = getattr(settings, name)
    if pairs and len(pairs) >= (wanted or 1):
        return
    asks = f"asks for {wanted} pairs" if wanted else "(null) takes all pairs"
    advice = f"set preferences.{name} to at most {len(pairs)}, or to null for all of them"
    if not pairs:
        advice = (
            "set preferences.evaluation lower, or give a source whose splits share no conversations"
        )
    raise HialignError(
        f"preferences.{name} {asks}, but {settings.source} has {len(pairs)} {kind}: {advice}"
    )


def _check_one_split(
    train: list[Pair], held_out: list[Pair], conversations: int, settings: PreferenceSettings
) -> None:
    """Refuse a source with one split that is too small for what is asked of it."""
    usable = len(train) + len(held_out)
    wanted = (settings.train or 1) + (settings.evaluation or usable // 10)
    if len(train) >= (settings.train or 1) and len(held_out) >= (settings.evaluation or 1):
        return
    asks = (
        f"preferences.train asks for {settings.train or 'all'} pairs and preferences.evaluation for "
        f"{settings.evaluation or 'a tenth'}"
    )
    if settings.train and settings.evaluation:
        asks += f", {wanted} together"
    if conversations < 2:
        advice = (
            ", all of one conversation, which cannot be in both: give a source with more "
            "conversations"
        )
    elif not held_out:
        advice = ", a tenth of which is none: set preferences.evaluation to a number"
    elif usable < wanted:
        most = settings.train or usable
        train_at_most = most if most < usable else usable - max(1, usable // 10)
        advice = (
            f": set both to at most {usable} together, such as train: {train_at_most} and "
            f"evaluation: {usable - train_at_most}"
        )
    else:
        advice = (
            f" of {conversations} conversations, and pairs that begin with the same user turn stay "
            f"together, so that {len(train)} are left for training: ask for fewer in "
            "preferences.train or preferences.evaluation"
        )
    raise HialignError(
        f"{asks}, but {settings.source} has {usable} usable pairs in its only split{advice}"
    )
