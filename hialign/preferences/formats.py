"""Turns a row of a preference set, in any format in use, into messages.

A pair is `{"id", "objective", "prompt", "chosen", "rejected"}` in TRL's conversational preference
format, with messages (`[{"role", "content"}]`) in the last three.
"""

import re
from collections.abc import Sequence
from typing import Any

from hialign.study.digest import json_sha256

Message = dict[str, str]
Pair = dict[str, Any]

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
# A prompt that is a transcript without its last answer
CUT = re.compile(r"\s*Human:.*\n\nAssistant:\s*$", re.DOTALL)
# What ShareGPT and LLaMA-Factory call the roles
SPEAKERS = {"human": "user", "gpt": "assistant"} | {r: r for r in ("user", "assistant", "system")}
NO_PROMPT = "no common prompt"


class UnusablePair(ValueError):
    """A pair that is well-formed but expresses no preference. The message is a category to count."""


def prompt_id(prompt: Sequence[Message]) -> str:
    """A stable short name for a prompt, 12 hexadecimal digits of its sha256."""
    return json_sha256(list(prompt), 12)


def conversation_id(prompt: Sequence[Message]) -> str:
    """A stable short name for the conversation that a prompt belongs to, 12 hexadecimal digits.

    Conversations are told apart by their first user turn, in which case and white space do not count.
    hh-rlhf has many pairs that were cut from one dialogue at different turns.
    """
    first = next((m for m in prompt if m["role"] == "user"), prompt[0])
    return json_sha256(" ".join(first["content"].split()).casefold(), 12)


def parse_transcript(text: str) -> list[Message]:
    """An hh-rlhf transcript as messages. Consecutive turns of one speaker become one.

    Raises UnusablePair if it does not begin with the human and end with the assistant.
    """
    messages: list[Message] = []
    for role, content in _turns(text):
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    if messages[0]["role"] != "user" or messages[-1]["role"] != "assistant":
        raise UnusablePair("not a transcript")
    return messages


def _turns(text: str) -> list[tuple[str, str]]:
    """The turns of a transcript as they are written: (role, content)."""
    head, *parts = TURN.split(text)
    if head.strip() or not parts:
        raise UnusablePair("not a transcript")
    return [(ROLES[s], c.strip()) for s, c in zip(parts[::2], parts[1::2], strict=True)]


def to_pair(row: dict[str, Any]) -> tuple[list[Message], list[Message], list[Message]]:
    """`prompt, chosen, rejected` as messages from a row in one of these formats.

    - TRL's preference formats, with or without a separate prompt, as strings or messages. Messages
      may have ShareGPT's keys (`from`, `value`) in place of `role` and `content`.
    - hh-rlhf's transcripts.
    - LLaMA-Factory's formats. `conversations` (or `messages`) hold the prompt and `chosen` and
      `rejected` one message each, or `instruction` and `input` hold the prompt. Both may have
      `system`.

    Raises UnusablePair for a row that expresses no preference, and TypeError or KeyError for a row in
    another format.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = _prompt(row)
    if isinstance(chosen, str) and not isinstance(rejected, str) and prompt is None:
        raise TypeError(f"`rejected` is {rejected!r:.40}")
    if isinstance(prompt, str) and isinstance(chosen, str) and CUT.match(prompt):
        chosen, rejected = prompt + chosen, prompt + rejected
        prompt = None
    if prompt is None and isinstance(chosen, str) and _is_transcript(chosen):
        chosen, rejected = (f"\n\n{side.lstrip()}" for side in (chosen, rejected))
        turns = _turns(chosen), _turns(rejected)
        chosen, rejected = parse_transcript(chosen), parse_transcript(rejected)
        # Compared before turns are merged, as a side with one more assistant turn has another prompt
        if turns[0][:-1] != turns[1][:-1]:
            raise UnusablePair(NO_PROMPT)
    if prompt is None and isinstance(chosen, str):
        prompt, chosen, rejected = _common_beginning(chosen, rejected)
    if prompt is not None:
        prompt = _messages("prompt", prompt, "user")
    sides = []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        side = _messages(name, side, "assistant")
        if prompt is None or (side[: len(prompt)] == prompt and len(side) > len(prompt)):
            sides.append((side[:-1], side[-1:]))
        else:
            sides.append((prompt, side))
    (prompt, chosen), (other_prompt, rejected) = sides
    if prompt != other_prompt or not prompt:
        raise UnusablePair(NO_PROMPT)
    if any(re.search("[\ud800-\udfff]", m["content"]) for m in prompt + chosen + rejected):
        raise UnusablePair("half a Unicode character")
    if not chosen or not rejected or any(not m["content"].strip() for m in chosen + rejected):
        raise UnusablePair("an empty response")
    if chosen == rejected:
        raise UnusablePair("identical responses")
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise UnusablePair("the last turn is not the assistant's")
    return prompt, chosen, rejected


def _prompt(row: dict[str, Any]) -> Any:
    """The separate prompt of a row in TRL's or LLaMA-Factory's format. None if it has none."""
    if row.get("prompt") is not None:
        return row["prompt"]
    if isinstance(row["chosen"], list) and len(row["chosen"]) > 1:
        return None  # `chosen` and `rejected` are whole conversations
    before = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for key in ("conversations", "messages"):
        if row.get(key):
            return before + _messages(key, row[key], "user")
    if row.get("instruction") is None:
        return None
    for question, answer in row.get("history") or []:
        before += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return [*before, {"role": "user", "content": question}]


def _messages(key: str, value: Any, role: str) -> list[Message]:
    """Messages from a text (spoken by `role`), from one message or from several."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, (dict, list)):
        raise TypeError(f"`{key}` is {value!r:.40}")
    messages = []
    for message in [value] if isinstance(value, dict) else value:
        if not isinstance(message, dict) or not message.keys() & {"role", "from"}:
            raise TypeError(f"`{key}` holds {message!r:.60}")
        if message.get("role") is not None:
            speaker, content = message["role"], message["content"]
        else:
            speaker, content = SPEAKERS.get(message["from"]), message["value"]
            if speaker is None:
                raise TypeError(f"`{key}` has a message from {message['from']!r:.40}")
        if content is None:
            raise UnusablePair("a message without text")
        if not isinstance(speaker, str) or not isinstance(content, str):
            raise TypeError(f"`{key}` has a message whose content is {content!r:.40}")
        messages.append({"role": speaker, "content": content})
    return messages


def _is_transcript(text: str) -> bool:
    """Whether a text is a transcript of hh-rlhf. Some tables lack the blank line at its beginning."""
    return bool(TURN.match(text)) or (
        text.lstrip().startswith("Human:") and "\n\nAssistant:" in text
    )


def _common_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two plain texts share, up to a whole word, and the rest of each."""
    both = enumerate(zip(chosen, rejected, strict=False))
    same = next((i for i, (a, b) in both if a != b), min(len(chosen), len(rejected)))
    shared = re.sub(r"\S+$", "", chosen[:same])
    if not shared.strip():
        raise UnusablePair(NO_PROMPT)
    return shared.strip(), chosen[len(shared) :].strip(), rejected[len(shared) :].strip()


def transcript(messages: list[Message]) -> str:
    """A conversation as text. Several turns get the speakers' names, a single one does not."""
    if len(messages) == 1:
        return messages[0]["content"]
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "\n\n".join(f"{names.get(m['role'], m['role'])}: {m['content']}" for m in messages)
