"""What travels between the floors: requests down, events up. Frozen, typed, and nothing else."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "closed", "cancelled", "error"]


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation as the model sees it."""

    role: Role
    content: str


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. `temperature` 0 takes the likeliest; `seed` None draws one."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None  # None: as many as the window still holds
    clips_max_tokens: bool = False  # max_tokens yields to what the window still holds, instead of being refused
    num_logprobs: int | None = None  # alternatives per token; 0: only the chosen token's own

    @property
    def has_penalties(self) -> bool:
        return self.repeat_penalty != 1 or bool(self.frequency_penalty or self.presence_penalty)


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """JSON by a schema: `schema` for providers that read it, the rest for the engine that decodes by it.

    `digest` names the grammar; `examples` are texts that fit its patterns.
    """

    schema: str
    digest: str
    grammar: str
    examples: tuple[str, ...] = ()


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation to be answered.

    `prefix` is the beginning of the answer when it is to be continued, `reasoning` what a thinking model
    wrote before it. `owner` says whose request it is: the queue is fair between owners, and only one
    owner's own prompts share a cache beyond the tokens before the first user message. With
    `response_format` the answer is decoded by its schema. With `was_accepted` it was accepted before its
    engine or server ended: it goes on, so a full queue does not refuse it, and a text that has come to the
    end of the window is an answer, not an error.
    """

    messages: tuple[Message, ...]
    params: SamplingParams = SamplingParams()
    prefix: str = ""
    reasoning: str = ""
    owner: str = ""
    response_format: ResponseFormat | None = None
    was_accepted: bool = False


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The model is being loaded; `fraction` runs from 0 to 1."""

    fraction: float


class Waiting(msgspec.Struct, frozen=True, tag=True):
    """In the queue: `place` 1 is next; `wait_s` is an estimate in seconds, None before any was measured."""

    place: int
    wait_s: float | None


class Started(msgspec.Struct, frozen=True, tag=True):
    """The request got its slot. `num_reused` of the prompt's tokens were in the cache."""

    prompt_ids: tuple[int, ...]
    num_reused: int


class Prefill(msgspec.Struct, frozen=True, tag=True):
    """The prompt is being computed: `num_computed` of `num_tokens` so far."""

    num_computed: int
    num_tokens: int


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token with its natural-log probability before temperature and filters."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class Chunk(msgspec.Struct, frozen=True, tag=True):
    """The next piece of the answer. `text` is empty while half a character or stop string is held back.

    `reasoning` is what a thinking model writes before its answer; `logprobs` are those of the answer only.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""

    def __add__(self, more: Chunk) -> Chunk:
        """Both as one piece; `more` came later."""
        return Chunk(
            self.text + more.text,
            self.token_ids + more.token_ids,
            self.logprobs + more.logprobs,
            self.reasoning + more.reasoning,
        )


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation took. Times in seconds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    duration_s: float = 0.0
    window: int = 0  # tokens the context window of one conversation holds


class Finished(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The last event of every stream that did not raise."""

    reason: FinishReason
    usage: Usage
    seed: int


Event = Loading | Waiting | Started | Prefill | Chunk | Finished


class Embedding(msgspec.Struct, frozen=True):
    """A text as a vector of length 1."""

    vector: tuple[float, ...]
    num_tokens: int  # of the text, with those that the model puts around it


class Speed(msgspec.Struct, frozen=True):
    """Of one conversation, in tokens per second; 0 where it was not measured."""

    prefill_per_s: float
    decode_per_s: float


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model turned out to be. Sizes in bytes, lengths in tokens."""

    description: str
    build: str
    window: int
    trained_window: int
    num_slots: int
    num_threads: int
    vocab_size: int
    num_parameters: int
    model_bytes: int
    embedding_length: int  # numbers of a vector
    is_embedding: bool  # makes vectors of texts, no answers
    chat_template: str
    bos: str
    eos: str
    special_tokens: tuple[str, ...]
