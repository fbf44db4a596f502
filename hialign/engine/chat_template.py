"""Chat templates: a conversation as the text or the tokens that a model is given.

The whole package renders through these functions. The error about a broken template is therefore
always one line that names the model, the template and the conversation.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hialign.study.errors import HialignError

Message = dict[str, str]


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    what: str = "",
    **options: Any,
) -> str:
    """`messages` as text, by the tokenizer's chat template.

    Args:
        tokenizer: as `hialign.engine.models.load_tokenizer` gives it.
        messages: the turns, each with a `role` and its `content`.
        what: the name of the conversation in an error, such as `pair 17`. The beginning of the
            first message by default.
        options: those of transformers' `apply_chat_template`, such as `add_generation_prompt`.

    Raises HialignError if the template is broken, raises or renders nothing.
    """
    return str(_render(tokenizer, messages, what, tokenize=False, **options))


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    what: str = "",
    **options: Any,
) -> list[int]:
    """`messages` as token ids. In all else it is like `chat_text`."""
    options = {"tokenize": True, "return_dict": True, **options}
    return list(_render(tokenizer, messages, what, **options)["input_ids"])


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that cannot render a question, or renders all questions alike."""
    questions = [[{"role": "user", "content": word}] for word in ("zebra", "quartz")]
    one, other = (chat_text(tokenizer, q, add_generation_prompt=True) for q in questions)
    if one == other:
        raise HialignError(
            f"{template_name(tokenizer)} ignores the messages: it renders {one[:80]!r} whatever "
            "the user asks. Correct the template, or name another file as the model's chat_template"
        )


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """What errors call the tokenizer's template. `load_tokenizer` gives it a name of its own."""
    own = f"the chat template of {tokenizer.name_or_path or 'the tokenizer'}"
    return str(getattr(tokenizer, "template_name", own))


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], what: str, **options: Any
) -> Any:
    try:
        rendered = tokenizer.apply_chat_template(list(messages), **options)
        empty = not (rendered["input_ids"] if options["tokenize"] else rendered.strip())
    except Exception as error:  # a template is a program: it may raise anything
        line = f" in line {error.lineno}" if hasattr(error, "lineno") else ""
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise HialignError(
            f"{template_name(tokenizer)} cannot render {what or _beginning(messages)}: "
            f"{type(error).__name__}{line}: {reason}. "
            "Correct the template, or name another file as the model's chat_template"
        ) from None
    if empty:
        raise HialignError(
            f"{template_name(tokenizer)} renders nothing for {what or _beginning(messages)}. "
            "Correct the template, or name another file as the model's chat_template"
        )
    return rendered


def _beginning(messages: Sequence[Message]) -> str:
    return f"the conversation that begins {str(messages[0]['content'])[:60]!r}"
