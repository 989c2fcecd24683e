"""One loaded model: batch, decode, samplers, KV cache. Beside quantise.py the only file that imports llama_cpp.

Knows token ids and slots; knows nothing of requests, text formats, queues or threads. Everything here
is called from one thread, except `tokenize` and `piece`, which only read the vocabulary.
Works on llama.cpp's low-level functions: `llama_cpp.Llama` decodes one request at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

from localllm.inference.engine.constraint import Constraint, Vocabulary
from localllm.inference.engine.gguf import Pooling, pooling_of
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence
from localllm.inference.engine.settings import EngineSettings, num_available_cpus
from localllm.inference.errors import ConstraintError, ModelRefused, ProviderError
from localllm.inference.types import ModelInfo, SamplingParams, TokenLogprob

ENGINE_BUILD = f"llama-cpp-python {llama.__version__}"
MIN_BYTES_PER_THREAD = 32 << 20  # of weights; the 3 MB starter is faster on one thread than on two
PENALTY_WINDOW = 64  # tokens that the repeat, frequency and presence penalties look back on
KV_TYPES = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0, "q4_0": llama.GGML_TYPE_Q4_0}
ROPE_TYPES = {
    "none": -1,
    "linear": llama.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": llama.LLAMA_ROPE_SCALING_TYPE_YARN,
}
POOLING_TYPES: dict[Pooling, int] = {
    "mean": llama.LLAMA_POOLING_TYPE_MEAN,
    "cls": llama.LLAMA_POOLING_TYPE_CLS,
    "last": llama.LLAMA_POOLING_TYPE_LAST,
}
TEXTS_PER_BATCH = 64  # of an embedding model; llama.cpp takes 256 sequences at most
FLASH_TYPES = {"auto": -1, "off": 0, "on": 1}
COLUMNS = 1024  # of the table in which the likeliest tokens are looked for
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
LOG_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR; the bindings do not export it
DEVICE_TYPE_GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU, one with memory of its own
ABORTED = 2  # of llama_decode
# On a CPU llama.cpp's attention goes by tiles of 64 rows, and for fewer row by row: after 1,500 tokens 61 more
# took 611 ms and 64 took 468 ms, after 200 tokens 320 and 315.
ATTENTION_TILE = 64
MAX_PADDING = 8  # rows; computing more of them would cost more than the tile saves
# llama.cpp computes slots that follow each other in one pass over the weights, and those behind a gap in another: with
# four sequences in slots 0, 1, 2 and 9 a step took 86 ms instead of 57. One row that closes a gap takes 6 to 10 ms, and
# beginning a pass 8 to 29. It is computed over all that its slot holds, and is to hold little more than the others.
MAX_FILLER_LEAD = 1024  # tokens


class Interrupted(Exception):
    """The batch was given up half-way; its sequence must leave the cache."""


def gpu_memory() -> tuple[int, int]:
    """Free and total bytes of all GPUs together; zeros for a build that cannot use one."""
    if not llama.llama_supports_gpu_offload():
        return 0, 0
    library = llama.llama_cpp._lib  # the bindings have no names for devices
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    free, total = [], []
    for number in range(library.ggml_backend_dev_count()):
        device = ctypes.c_void_p(library.ggml_backend_dev_get(ctypes.c_size_t(number)))
        if library.ggml_backend_dev_type(device) == DEVICE_TYPE_GPU:
            sizes = ctypes.c_size_t(), ctypes.c_size_t()
            library.ggml_backend_dev_memory(device, *map(ctypes.byref, sizes))
            free.append(sizes[0].value)
            total.append(sizes[1].value)
    return sum(free), sum(total)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was chosen at the end of a slice: one token, and after it those that a constraint forces.

    `error` says why none could be chosen.
    """

    tokens: list[int]
    logprobs: tuple[TokenLogprob, ...] = ()
    error: ConstraintError | None = None


@dataclass(frozen=True, slots=True)
class Spare:
    """Rows that are computed for nothing, behind all that a slot holds, and removed: a batch is quicker with them.

    They fill the last tile of a prompt, or the gap between two slots.
    """

    slot: int
    position: int
    count: int


class Runner:
    """Loads `path` and computes batches on it. Raises ModelRefused when llama.cpp cannot load it.

    With `can_cut` the KV cache can be cut behind any token, and nothing of what follows is left in it.
    """

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        self._log = _Log()
        self._load_model(path, settings, on_progress)
        self._pooling = self._read_pooling()
        self.window = self._useful_window(settings)
        self.num_slots = settings.num_slots
        self.num_threads = settings.n_threads or self._useful_threads()
        self.vocab_size = llama.llama_vocab_n_tokens(self._vocab)
        self._open_context(settings)
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        self._batch = _Batch(max(settings.n_batch, self.window if self._pooling else 0))
        self._candidates = np.zeros(self.vocab_size, TOKEN_DATA)
        self._num_swa = llama.llama_model_n_swa(self._model)
        self._remembers = llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model)
        self.can_cut = not (self._num_swa or self._remembers)
        self._pads = self.can_cut and settings.n_batch >= ATTENTION_TILE

    def _load_model(self, path: Path, settings: EngineSettings, on_progress: Callable[[float], None]) -> None:
        llama.llama_backend_init()
        if settings.numa:
            llama.llama_numa_init(llama.GGML_NUMA_STRATEGY_DISTRIBUTE)

        def report(fraction: float, _: Any) -> bool:
            on_progress(fraction)
            return True

        params = llama.llama_model_default_params()
        params.progress_callback = llama.llama_progress_callback(report)
        params.n_gpu_layers = settings.n_gpu_layers
        no_devices = (ctypes.c_void_p * 1)()
        if not settings.n_gpu_layers:  # else llama.cpp would still begin with the GPU, and have buffers there
            params.devices = ctypes.addressof(no_devices)
        params.load_mode = {
            (False, False): llama.LLAMA_LOAD_MODE_NONE,
            (True, False): llama.LLAMA_LOAD_MODE_MMAP,
            (False, True): llama.LLAMA_LOAD_MODE_MLOCK,
            (True, True): llama.LLAMA_LOAD_MODE_MMAP_MLOCK,
        }[settings.use_mmap, settings.use_mlock]
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ModelRefused(f"llama.cpp cannot load {path.name}: {self._log.last_error}")
        self._vocab = llama.llama_model_get_vocab(self._model)

    def _read_pooling(self) -> Pooling:
        architecture = self._metadata("general.architecture")
        number = self._metadata(f"{architecture}.pooling_type")
        return pooling_of(architecture, int(number) if number.isdecimal() else None) or ""

    def _metadata(self, key: str) -> str:
        text = ctypes.create_string_buffer(256)
        llama.llama_model_meta_val_str(self._model, key.encode(), text, len(text))
        return text.value.decode("utf-8", "replace")

    def _useful_window(self, settings: EngineSettings) -> int:
        trained: int = llama.llama_model_n_ctx_train(self._model)
        window = settings.window(trained)
        # Positions that were learned one by one cannot be stretched.
        has_rope = llama.llama_model_rope_type(self._model) != llama.LLAMA_ROPE_TYPE_NONE
        return window if has_rope or not self._pooling else min(window, trained)

    def _useful_threads(self) -> int:
        """The available CPUs, but fewer for a model so small that its threads would mostly wait for each other."""
        useful = int(llama.llama_model_size(self._model)) // MIN_BYTES_PER_THREAD
        return max(1, min(num_available_cpus(), useful))

    def _open_context(self, settings: EngineSettings) -> None:
        params = llama.llama_context_default_params()
        # Every slot has a cache of its own: attention then runs over as many cells as the longest conversation of
        # a pass has, not over those of all together (docs/decisions.md, "kv_unified").
        params.kv_unified = False
        params.n_ctx = self.window * self.num_slots
        params.n_seq_max = self.num_slots
        params.n_batch = params.n_ubatch = settings.n_batch
        params.n_outputs_max = max(self.num_slots, 1)
        params.n_threads = params.n_threads_batch = self.num_threads
        params.flash_attn_type = FLASH_TYPES[settings.flash_attention]
        params.type_k = params.type_v = KV_TYPES[settings.kv_type]
        params.rope_scaling_type = ROPE_TYPES[settings.rope_scaling]
        if settings.rope_scaling != "none":
            params.rope_freq_scale = 1 / settings.rope_scale
        params.no_perf = True
        if self._pooling:
            self._ask_for_embeddings(params)
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelRefused(f"llama.cpp cannot make a context of {params.n_ctx} tokens: {self._log.last_error}")
        self._memory = llama.llama_get_memory(self._context)

    def _ask_for_embeddings(self, params: Any) -> None:
        """Every batch begins with nothing and holds whole texts, one after the other in one cache, if there is any."""
        params.embeddings = True
        params.pooling_type = POOLING_TYPES[self._pooling]
        params.kv_unified = True
        params.n_seq_max = TEXTS_PER_BATCH
        # An encoder computes all its tokens at once, and each of them is an output.
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = self.window

    def close(self) -> None:
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    # The vocabulary

    @property
    def info(self) -> ModelInfo:
        template = llama.llama_model_chat_template(self._model, None)
        text = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self._model, text, len(text))
        return ModelInfo(
            description=text.value.decode("utf-8", "replace"),
            build=ENGINE_BUILD,
            window=self.window,
            trained_window=llama.llama_model_n_ctx_train(self._model),
            num_slots=self.num_slots,
            num_threads=self.num_threads,
            vocab_size=self.vocab_size,
            num_parameters=llama.llama_model_n_params(self._model),
            model_bytes=llama.llama_model_size(self._model),
            embedding_length=llama.llama_model_n_embd_out(self._model),
            is_embedding=bool(self._pooling),
            chat_template=template.decode("utf-8", "replace") if template else "",
            bos=self._text(llama.llama_vocab_bos(self._vocab)),
            eos=self._text(llama.llama_vocab_eos(self._vocab)),
            special_tokens=tuple(self._special_tokens()),
        )

    def _special_tokens(self) -> list[str]:
        """Spellings that the tokenizer would turn into a control token."""
        wanted = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        tokens = range(self.vocab_size)
        return [text for t in tokens if llama.llama_vocab_get_attr(self._vocab, t) & wanted and (text := self._text(t))]

    def _text(self, token: int) -> str:
        return llama.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def adds_bos(self) -> bool:
        return bool(llama.llama_vocab_get_add_bos(self._vocab))

    @property
    def bos_token(self) -> int:
        return int(llama.llama_vocab_bos(self._vocab))

    @property
    def max_piece_bytes(self) -> int:
        return max(len(self.piece(token)) for token in range(self.vocab_size))

    def is_end(self, token: int) -> bool:
        """Does this token end a turn?"""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, special: bool, is_whole: bool = False) -> list[int]:
        """Token ids of `text`. Only with `special` do spellings such as <|im_end|> become control tokens.

        With `is_whole` the tokens that the model wants at the beginning and the end of a text are put there.
        """
        data = text.encode()
        size = len(data) + 8
        ids = (llama.llama_token * size)()
        count = llama.llama_tokenize(self._vocab, data, len(data), ids, size, is_whole, special)
        if count < 0:
            raise ProviderError(f"llama.cpp could not tokenize a text of {len(data)} bytes.", permanent=True)
        return ids[:count]

    def show(self, tokens: Iterable[int]) -> None:
        """Let these control tokens stand for their spelling."""
        for token in tokens:
            self._pieces[token] = _bytes(self._vocab, token, special=True)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; control tokens stand for none, unless they are shown."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = _bytes(self._vocab, token, special=False)
        return piece

    def spell(self, tokens: Iterable[int]) -> str:
        """The text of some tokens as it was computed with: control tokens are spelled out."""
        return _spell(self._vocab, tokens)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as constraints see them. Some tenths of a second for a large vocabulary."""
        not_text = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN | llama.LLAMA_TOKEN_ATTR_UNUSED
        tokens = range(self.vocab_size)
        special = [token for token in tokens if llama.llama_vocab_get_attr(self._vocab, token) & not_text]
        end = [token for token in special if self.is_end(token)]
        if not end:
            raise ConstraintError("This model has no token that ends an answer, so it cannot write by a schema.")
        pieces = [_bytes(self._vocab, token, special=True) for token in tokens]
        # A tokenizer that puts a blank before every text is no help in the middle of one.
        is_faithful = b"".join(pieces[token] for token in self.tokenize("{", special=False)) == b"{"
        return Vocabulary(
            pieces,
            end_ids=end,
            special_ids=special,
            tokenize=(lambda text: self.tokenize(text, special=False)) if is_faithful else None,
        )

    # The KV cache

    def reuse(self, slot: int, source: int, count: int) -> int:
        """Make `slot` hold the first `count` tokens of `source`, and nothing else.

        Returns the number it really holds: 0 where the cache cannot be cut (recurrent models, or a
        sliding window that has moved on).
        """
        if count and slot != source:
            self.copy(source, slot)
        if count and self._reaches_back(slot, count) and llama.llama_memory_seq_rm(self._memory, slot, count, -1):
            return count
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return 0

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds. Whole buffers are moved: any other range aborts the process."""
        llama.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def _reaches_back(self, slot: int, count: int) -> bool:
        if not self._num_swa:
            return True
        return bool(llama.llama_memory_seq_pos_min(self._memory, slot) <= max(0, count - self._num_swa))

    def clear(self) -> None:
        llama.llama_memory_clear(self._memory, True)

    # Computing

    def sampler(self, params: SamplingParams, seed: int, history: list[int]) -> Any:
        """A sampler chain; `history` is what the penalties look back on. Free it with `free_sampler`."""
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            llama.llama_sampler_chain_add(chain, sampler)

        if params.has_penalties:
            add(
                llama.llama_sampler_init_penalties(
                    self.vocab_size,
                    PENALTY_WINDOW,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if params.temperature <= 0:
            add(llama.llama_sampler_init_greedy())
        else:
            if params.top_k > 0:
                add(llama.llama_sampler_init_top_k(params.top_k))
            add(llama.llama_sampler_init_top_p(params.top_p, 1))
            add(llama.llama_sampler_init_min_p(params.min_p, 1))
            add(llama.llama_sampler_init_temp(params.temperature))
            add(llama.llama_sampler_init_dist(seed))
        for token in history[-PENALTY_WINDOW:]:
            llama.llama_sampler_accept(chain, token)
        return chain

    def free_sampler(self, sampler: Any) -> None:
        llama.llama_sampler_free(sampler)

    def run(self, slices: list[Slice]) -> list[Sample | None]:
        """Compute the batch, which comes by slot; for each slice that reaches its sequence's end, the next token.

        Raises ProviderError when llama.cpp cannot compute it; the cache is then in an unknown state.
        """
        spare = self._useful_padding(slices) if len(slices) == 1 else self._useful_fillers(slices)
        rows = self._batch.fill(slices, spare)
        code = llama.llama_decode(self._context, self._batch.struct)
        if code == ABORTED:
            raise Interrupted
        if code:
            raise ProviderError(f"llama.cpp could not compute a batch (code {code}): {self._log.last_error}")
        for each in spare:
            llama.llama_memory_seq_rm(self._memory, each.slot, each.position, -1)
        return [self._sample(piece, rows[piece.slot]) if piece.slot in rows else None for piece in slices]

    def _useful_padding(self, slices: list[Slice]) -> list[Spare]:
        """What fills the last tile of the only slice."""
        (only,) = slices
        end = only.seq.num_computed + only.count
        count = ATTENTION_TILE - only.count
        is_useful = self._pads and 0 < count <= min(MAX_PADDING, self.window - end)
        return [Spare(only.slot, end, count)] if is_useful else []

    def _useful_fillers(self, slices: list[Slice]) -> list[Spare]:
        """A row for each single slot between those that compute one token; more tokens are several passes anyway."""
        single = [piece for piece in slices if piece.count == 1]
        if self._remembers or not single:
            return []
        gaps = [
            left.slot + 1
            for left, right in pairwise(slices)
            if single[0].slot <= left.slot and right.slot <= single[-1].slot and right.slot == left.slot + 2
        ]
        ends = [(slot, llama.llama_memory_seq_pos_max(self._memory, slot) + 1) for slot in gaps]
        limit = min(self.window, max(piece.seq.num_computed for piece in single) + MAX_FILLER_LEAD)
        room = self._batch.size - sum(piece.count for piece in slices)
        return [Spare(slot, end, 1) for slot, end in ends if end < limit][:room]

    def embed(self, texts: list[list[int]]) -> list[tuple[float, ...]]:
        """A vector of length 1 for each text: at most TEXTS_PER_BATCH of them, and `window` tokens together.

        Raises ProviderError when llama.cpp cannot compute them.
        """
        self._batch.fill_with_texts(texts)
        if self._memory:
            llama.llama_memory_clear(self._memory, False)
        code = llama.llama_decode(self._context, self._batch.struct)
        if code == ABORTED:
            raise Interrupted
        if code:
            raise ProviderError(f"llama.cpp could not compute embeddings (code {code}): {self._log.last_error}")
        return [self._vector(seq_id) for seq_id in range(len(texts))]

    def _vector(self, seq_id: int) -> tuple[float, ...]:
        pointer = llama.llama_get_embeddings_seq(self._context, seq_id)
        size = llama.llama_model_n_embd_out(self._model)
        vector = np.ctypeslib.as_array(pointer, shape=(size,)).astype(np.float64)
        length = float(np.linalg.norm(vector))
        if not length > 0 or not np.isfinite(length):
            raise ProviderError("The model makes no vector of this text: it computes to no number.", permanent=True)
        return tuple((vector / length).tolist())

    @contextmanager
    def interruptible(self, is_wanted: Callable[[], bool]) -> Iterator[None]:
        """Within the block, `run` raises Interrupted soon after `is_wanted`, which is asked all the time."""
        callback = llama.ggml_abort_callback(lambda _: is_wanted())
        llama.llama_set_abort_callback(self._context, callback, None)
        try:
            yield
        finally:
            llama.llama_set_abort_callback(self._context, llama.ggml_abort_callback(), None)

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """Raw logits, shape (vocab_size,), of one row of the last batch. Valid until the next `run`."""
        pointer = llama.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))

    def probabilities(self, row: int) -> npt.NDArray[np.float64]:
        """Of all tokens, shape (vocab_size,), after one row of the last batch: without temperature and filters."""
        return np.exp(_log_softmax(self.logits(row)))

    def _sample(self, piece: Slice, row: int) -> Sample:
        seq = piece.seq
        if seq.constraint is not None:
            return self._sample_allowed(seq, seq.constraint, self.logits(row))
        logits = self.logits(row)
        ids = _likeliest(logits, _num_needed(seq.params))
        if len(ids):
            token = self._choose(seq.sampler, ids, logits[ids])
            llama.llama_sampler_accept(seq.sampler, token)
        else:
            token = int(llama.llama_sampler_sample(seq.sampler, self._context, row))
        count = seq.params.num_logprobs
        return Sample([token], () if count is None else (self._logprob(token, logits, count),))

    def _sample_allowed(self, seq: Sequence, constraint: Constraint, logits: npt.NDArray[np.float32]) -> Sample:
        """The same sampler chain over the tokens that the constraint allows, and what it forces after them."""
        try:
            token = self._choose(seq.sampler, *constraint.candidates(logits))
            tokens = constraint.accept(token)
        except ConstraintError as exc:
            return Sample([], error=exc)
        for each in tokens:
            llama.llama_sampler_accept(seq.sampler, each)
        count = seq.params.num_logprobs
        if count is None:
            return Sample(tokens)
        num_chosen = int(tokens[:1] == [token])  # none where the answer was closed instead
        chosen = tuple(self._logprob(each, logits, count) for each in tokens[:num_chosen])
        return Sample(tokens, chosen + self.certain(tokens[num_chosen:]))

    def _choose(self, sampler: Any, ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> int:
        """Sample one of `ids`, which have these `logits`."""
        size = len(ids)
        self._candidates["id"][:size] = ids
        self._candidates["logit"][:size] = logits
        array = llama.llama_token_data_array(
            data=self._candidates.ctypes.data_as(llama.llama_token_data_p), size=size, selected=-1, sorted=False
        )
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(self._candidates["id"][array.selected])

    def certain(self, tokens: list[int]) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of tokens that were not chosen but forced."""
        return tuple(TokenLogprob(self.piece(token), 0.0) for token in tokens)

    def _logprob(self, token: int, logits: npt.NDArray[np.float32], count: int) -> TokenLogprob:
        logprobs = _log_softmax(logits)
        best = np.argpartition(logprobs, -count)[-count:] if count else np.empty(0, np.int64)
        best = best[np.argsort(-logprobs[best])]
        return TokenLogprob(
            self.piece(token),
            float(logprobs[token]),
            tuple((self.piece(int(t)), float(logprobs[t])) for t in best),
        )


def _num_needed(params: SamplingParams) -> int:
    """How many of the greatest logits the samplers look at; 0 for all of them."""
    if params.has_penalties:
        return 0
    return params.top_k if params.temperature > 0 else 1


def _likeliest(logits: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int32]:
    """Ids, ascending, among which are those of the `count` greatest logits; few more, but all that equal the least.

    None where it would not pay, or the logits are no numbers. llama.cpp's samplers begin with a table of the whole
    vocabulary, which takes four times as long. Here the logits are laid out in columns: the `count` greatest maxima of
    columns are `count` logits, so what is less than the least of them is not needed.
    """
    if not 0 < count <= COLUMNS // 4 or len(logits) < COLUMNS:
        return np.empty(0, np.int32)
    whole = len(logits) // COLUMNS * COLUMNS
    maxima = logits[:whole].reshape(-1, COLUMNS).max(axis=0)
    bound = np.partition(maxima, COLUMNS - count)[COLUMNS - count]
    return np.flatnonzero(logits >= bound).astype(np.int32)


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exact = logits.astype(np.float64)
    peak = float(exact.max())
    return exact - (peak + float(np.log(np.exp(exact - peak).sum())))


def spell(path: Path, *texts: tuple[int, ...]) -> tuple[str, ...]:
    """Texts of token ids, control tokens spelled out. Loads no more of the file than its vocabulary."""
    log = _Log()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelRefused(f"llama.cpp cannot load the vocabulary of {path.name}: {log.last_error}")
    vocab = llama.llama_model_get_vocab(model)
    return tuple(_spell(vocab, tokens) for tokens in texts)


def _spell(vocab: Any, tokens: Iterable[int]) -> str:
    size = llama.llama_vocab_n_tokens(vocab)
    known = (token for token in tokens if 0 <= token < size)  # any other id makes llama.cpp abort
    return b"".join(_bytes(vocab, token, special=True) for token in known).decode("utf-8", "replace")


def _bytes(vocab: Any, token: int, *, special: bool) -> bytes:
    buffer = ctypes.create_string_buffer(64)
    size = llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, special)
    return buffer.raw[:size]


class _Batch:
    """A llama_batch over arrays of our own, so that whole slices are written at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._token = np.zeros(size, np.int32)
        self._pos = np.zeros(size, np.int32)
        self._num_seq_ids = np.ones(size, np.int32)
        self._seq_id = np.zeros(size, np.int32)
        self._logits = np.zeros(size, np.int8)
        start, step = self._seq_id.ctypes.data, self._seq_id.itemsize
        pointer = ctypes.POINTER(llama.llama_seq_id)
        self._seq_ids = (pointer * size)(*(ctypes.cast(start + i * step, pointer) for i in range(size)))
        self.struct = llama.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(ctypes.POINTER(llama.llama_token)),
            pos=self._pos.ctypes.data_as(ctypes.POINTER(llama.llama_pos)),
            n_seq_id=self._num_seq_ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._seq_ids,
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, slices: list[Slice], spare: list[Spare]) -> dict[int, int]:
        """Write the rows by slot; return, by slot, the rows whose logits will be sampled."""
        rows: dict[int, int] = {}
        pieces: list[Slice | Spare] = sorted([*slices, *spare], key=lambda piece: piece.slot) if spare else [*slices]
        end = 0
        for piece in pieces:
            start, end = end, end + piece.count
            # One token, as in nearly every step of a running answer, is written without slices.
            at = start if piece.count == 1 else slice(start, end)
            self._seq_id[at] = piece.slot
            self._logits[at] = 0
            if isinstance(piece, Spare):
                self._token[at] = 0  # which one does not matter
                first = piece.position
            else:
                first = piece.seq.num_computed
                tokens = piece.seq.tokens
                self._token[at] = tokens[first] if piece.count == 1 else tokens[first : first + piece.count]
                if piece.samples:
                    self._logits[end - 1] = 1
                    rows[piece.slot] = end - 1
            self._pos[at] = first if piece.count == 1 else np.arange(first, first + piece.count)
        self.struct.n_tokens = end
        return rows

    def fill_with_texts(self, texts: list[list[int]]) -> None:
        """Write each text as a sequence of its own, all of whose tokens are outputs."""
        end = 0
        for seq_id, tokens in enumerate(texts):
            start, end = end, end + len(tokens)
            self._token[start:end] = tokens
            self._pos[start:end] = np.arange(len(tokens))
            self._seq_id[start:end] = seq_id
        self._logits[:end] = 1
        self.struct.n_tokens = end


class _Log:
    """llama.cpp's own messages: silent, but the last error is kept to explain a failure."""

    # Said after every failure to load; the line before it says why.
    SAYS_NOTHING = "failed to load model"

    def __init__(self) -> None:
        self.last_error = "it gave no reason"
        self._receive = llama.llama_log_callback(self._note)  # llama.cpp keeps the pointer: it must outlive this
        llama.llama_log_set(self._receive, ctypes.c_void_p(0))

    def _note(self, level: int, text: bytes, _: Any) -> None:
        message = text.decode("utf-8", "replace").strip()
        if level == LOG_LEVEL_ERROR and message and not message.endswith(self.SAYS_NOTHING):
            self.last_error = message
