"""How a chat template frames a text, written down: rendered once around a mark, without a prompt and with each.

What stands before and after the mark is kept, and so are the tokens in which a text ends again after it was cut. A
template whose frame depends on the text or on the time cannot be written down so, and is refused; one that branches on
a text in another way gives other tokens than its frame, which `asking.check_tokens` finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from matexport.errors import ParentError, one_line
from matexport.export.parents.folder.loading import Opened
from matexport.spec.inputs import ChatFacts, Frame

#: Stands for a text when a chat template is rendered. Letters only: no template looks for it.
_MARK = "matexportmark"

#: What no chat template may use: a family's frames are written once.
_CLOCKS = ("strftime_now", "datetime")

#: Arguments of a chat template's call that have nothing to do with its text.
_SIZES = ("truncation", "max_length", "padding", "return_tensors", "restore_suffix")


def is_chat(first: Any) -> bool:
    """Whether a parent's first module renders its texts through a chat template."""
    return "message" in (getattr(first, "modality_config", None) or {})


def learn_chat(opened: Opened, prompts: Mapping[str, str], plain: Tokenizer, source: str) -> ChatFacts:
    """The frame that a parent's chat template puts around a text, without a prompt and with each.

    Args:
        prompts: name -> text.
        plain: the parent's tokenizer, which neither pads nor cuts.
        source: the parent, in messages.

    Raises:
        ParentError: the template cannot be rendered, or what it puts around a text is not always the same.
    """
    first: Any = opened.first
    template = getattr(first.processor, "chat_template", None) or getattr(first.tokenizer, "chat_template", None)
    if any(clock in str(template) for clock in _CLOCKS):
        raise ParentError(f"the chat template of {source} asks for the time, so its tokens are others tomorrow")
    if getattr(first, "_chat_template_declares_task", lambda: False)():
        raise ParentError(
            f"the chat template of {source} looks at the task of a text, which is not supported: export the parent "
            "with one template for each task"
        )
    frames, strips = {}, set()
    for name, prompt in {"": "", **prompts}.items():
        ends = _render(first, f" \n{_MARK}\t ", prompt, source).split(_MARK)
        left, right = not ends[0].endswith(" \n"), not ends[-1].startswith("\t ")
        strips.add("both" if left and right else "left" if left else "right" if right else "")
        parts = _render(first, _MARK, prompt, source).split(_MARK)
        if len(parts) != 2:
            raise ParentError(f"the chat template of {source} holds a text {len(parts) - 1} times, and not once")
        frames[name] = Frame(parts[0], parts[1])
    if len(strips) > 1:
        raise ParentError(f"the chat template of {source} takes white space off a text with some prompts alone")
    return _add_endings(ChatFacts(frames, strips.pop()), plain, first)


def _render(first: Any, text: str, prompt: str, source: str) -> str:
    options = {
        key: value for key, value in first.processing_kwargs.get("chat_template", {}).items() if key not in _SIZES
    }
    try:
        _, inputs = first.input_formatter.batch_to_message("text", {"text": [text]})
        messages = inputs["message"]
        if prompt:
            messages = first.input_formatter.prepend_prompt_to_messages(messages, prompt)
        rendered = first.processor.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # Jinja's and transformers' own, of every kind
        raise ParentError(f"the chat template of {source} cannot be rendered: {one_line(error)}") from error
    only: str = rendered[0] if isinstance(rendered, list) else rendered
    if _MARK not in only:
        raise ParentError(f"the chat template of {source} leaves the text out")
    return only


def _add_endings(chat: ChatFacts, plain: Tokenizer, first: Any) -> ChatFacts:
    """The tokens in which a text that was cut ends again: sentence-transformers writes a template's end back.

    They are those that two renderings of different texts have in common at their ends (`_chat_template_suffix_ids`).
    """
    if not first.processing_kwargs.get("chat_template", {}).get("restore_suffix", True):
        return chat
    if not hasattr(first, "_restore_chat_template_suffix"):
        return chat
    frames = {}
    for name, frame in chat.frames.items():
        one, two = (
            plain.encode(frame.before + filler + frame.after, add_special_tokens=False).ids
            for filler in ("0", "1 2 3 4")
        )
        count = next(
            (place for place, (left, right) in enumerate(zip(one[::-1], two[::-1], strict=False)) if left != right),
            min(len(one), len(two)),
        )
        ending = tuple(one[len(one) - count :]) if 0 < count < min(len(one), len(two)) else ()
        frames[name] = Frame(frame.before, frame.after, ending)
    return ChatFacts(frames, chat.strips)
