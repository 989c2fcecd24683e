"""The engine on a real GGUF: batching, reuse, sampling, cancelling."""

import resource
import threading
import time

import llama_cpp
import numpy as np
import pytest

from localllm.inference.engine import engine as engine_module
from localllm.inference.engine import runner as runner_module
from localllm.inference.engine.scheduler import Slice
from localllm.inference.engine.sequence import Sequence
from localllm.inference.errors import ProviderError, QueueFull
from localllm.inference.types import Chunk, Prefill, SamplingParams, Started, Waiting
from tests.inference.engine_on_starter import StarterEngine, prompt

QUESTIONS = [
    "Who are you?",
    "What can you do?",
    "What is a GGUF file?",
    "What is a token?",
    "What is a slot?",
    "What is prefill?",
    "Hello!",
    "What is LocalLLM?",
    "How do I stop an answer?",
    "What is a schema?",
]


@pytest.fixture(scope="module")
def ten_slots():
    return StarterEngine(num_slots=10)


@pytest.fixture
def starter():
    return StarterEngine()


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_type": "q8_0"},
        {"kv_type": "q4_0"},
        {"flash_attention": "on"},
        {"flash_attention": "off"},
        {"use_mmap": False},
        {"use_mlock": True},
        {"use_mlock": True, "use_mmap": False},
    ],
)
def test_it_answers_however_it_is_loaded(settings):
    starter = StarterEngine(**settings)
    reader = starter.ask(prompt("Who are you?"))
    starter.run()
    assert reader.text.startswith("I'm LocalLLM's small starter model")


def cache_bytes(kv_type):
    starter = StarterEngine(kv_type=kv_type)
    starter.ask(prompt("Who are you?"))
    starter.run()
    return llama_cpp.llama_state_seq_get_size(starter.runner._context, 0)


def test_a_quantised_cache_is_smaller():
    assert cache_bytes("q4_0") < 0.7 * cache_bytes("q8_0") < 0.5 * cache_bytes("f16")


@pytest.fixture
def no_locking():
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def test_it_is_loaded_where_the_system_lets_nothing_be_locked_in_memory(no_locking):
    starter = StarterEngine(use_mlock=True)
    reader = starter.ask(prompt("Who are you?"))
    starter.run()
    assert reader.text.startswith("I'm LocalLLM's small starter model")


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_it_reads_and_writes_beyond_the_trained_window_where_positions_are_scaled(scaling):
    starter = StarterEngine(n_ctx=1500, num_slots=1, rope_scaling=scaling, rope_scale=2.0)
    assert starter.runner.window == 1500
    reader = starter.ask(prompt("word " * 1200), max_tokens=5)
    starter.run()
    assert reader.finished.usage.prompt_tokens > 1024 and reader.text


def test_each_scaling_of_positions_computes_numbers_of_its_own():
    scalings = [{}, *({"rope_scaling": each, "rope_scale": 2.0} for each in ("linear", "yarn"))]
    none, linear, yarn = (forced_logits(StarterEngine(**each), [prompt("Who are you?")])[0] for each in scalings)
    assert min(abs(none - linear).max(), abs(none - yarn).max(), abs(linear - yarn).max()) > 0.5


def test_it_answers_as_the_model_card_says(starter):
    reader = starter.ask(prompt("Who are you?"))
    starter.run()
    assert reader.text.startswith("I'm LocalLLM's small starter model")
    assert reader.finished.reason == "stop"


def forced_logits(starter, texts):
    """Feed each text to a slot of its own in one batch; return the logits after its last token."""
    starter.runner.clear()
    slices = []
    for slot, text in enumerate(texts):
        tokens = starter.runner.tokenize(text, special=True)
        seq = Sequence(tokens, SamplingParams(temperature=0), 0, 1, lambda event: None, slot=slot)
        seq.sampler = starter.runner.sampler(seq.params, 0, [])
        slices.append(Slice(seq, len(tokens)))
    starter.runner.run(slices)
    ends = [sum(s.count for s in slices[: i + 1]) - 1 for i in range(len(slices))]
    return [starter.runner.logits(end).copy() for end in ends]


def test_it_keeps_ten_concurrent_requests_apart(ten_slots):
    texts = [prompt(question) for question in QUESTIONS]
    together = forced_logits(ten_slots, texts)
    alone = [forced_logits(ten_slots, [text])[0] for text in texts]
    assert max(abs(a - b).max() for a, b in zip(together, alone, strict=True)) < 0.5


def test_the_comparison_sees_two_crossed_slots(ten_slots):
    texts = [prompt(question) for question in QUESTIONS]
    together = forced_logits(ten_slots, texts)
    together[0], together[1] = together[1], together[0]
    alone = [forced_logits(ten_slots, [text])[0] for text in texts[:2]]
    assert all(abs(a - b).max() > 0.5 for a, b in zip(together, alone, strict=False))


def test_it_answers_more_requests_than_it_has_slots(starter):
    readers = [starter.ask(prompt(question), owner=question) for question in QUESTIONS]
    starter.run()
    assert all(reader.finished.reason == "stop" and reader.text for reader in readers)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_it_repeats_itself_alone_and_cold_with_the_same_seed(temperature):
    texts = []
    for _ in range(2):
        cold = StarterEngine()
        reader = cold.ask(prompt("Tell me about yourself."), seed=7, temperature=temperature)
        cold.run()
        texts.append(reader.text)
    assert texts[0] == texts[1]


SAMPLERS = [
    {"temperature": 0.0},
    {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0},
    {"temperature": 1.5, "top_k": 200, "min_p": 0.0},
    {"temperature": 1.5, "top_k": 400},
    {"temperature": 1.5, "top_k": 0, "top_p": 0.9},
    {"temperature": 1.0, "frequency_penalty": 0.5},
]


@pytest.mark.parametrize("params", SAMPLERS, ids=str)
def test_it_chooses_what_llama_cpp_would_choose_from_the_whole_vocabulary(starter, monkeypatch, params):
    texts = []
    for count in (runner_module._num_needed, lambda params: 0):
        monkeypatch.setattr(runner_module, "_num_needed", count)
        readers = [starter.ask(prompt("hm"), seed=seed, **params) for seed in range(4)]
        starter.run()
        starter.runner.clear()
        starter.scheduler.forget()
        texts.append([reader.text for reader in readers])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("count", [1, 40, 256])
@pytest.mark.parametrize("size", [1024, 4096, 151_936])
def test_the_likeliest_tokens_are_found_without_sorting_all(size, count):
    logits = np.random.default_rng(size + count).normal(size=size).astype(np.float32)
    ids = runner_module._likeliest(logits, count)
    assert set(np.argsort(-logits)[:count]) <= set(ids) and list(ids) == sorted(ids)
    assert len(ids) <= 2 * count + 2


def test_logits_that_are_all_the_same_or_no_numbers_are_left_to_llama_cpp():
    assert len(runner_module._likeliest(np.zeros(4096, np.float32), 40)) == 4096
    assert len(runner_module._likeliest(np.full(4096, np.nan, np.float32), 40)) == 0


def test_it_answers_otherwise_with_another_seed(starter):
    readers = [starter.ask(prompt("hm"), seed=seed, temperature=2.0, top_p=1.0, min_p=0.0) for seed in (1, 2)]
    starter.run()
    assert readers[0].text != readers[1].text


@pytest.mark.parametrize("count", [55, 56, 61, 64])
def test_it_computes_the_same_in_a_batch_that_is_filled_up_to_a_tile(starter, count):
    tokens = starter.runner.tokenize(prompt("What is a token? " * 20), special=True)[:count]
    seq = Sequence(tokens, SamplingParams(temperature=0), 0, 1, lambda event: None, slot=0)
    seq.sampler = starter.runner.sampler(seq.params, 0, [])
    starter.runner.run([Slice(seq, count)])
    whole = starter.runner.logits(count - 1).copy()
    assert llama_cpp.llama_memory_seq_pos_max(starter.runner._memory, 0) == count - 1
    starter.runner.clear()
    starter.runner.run([Slice(seq, 30)])
    seq.num_computed = 30
    starter.runner.run([Slice(seq, count - 30)])
    assert abs(whole - starter.runner.logits(count - 31)).max() < 0.5


def decoding(runner, slots):
    """One step of an answer in each of these slots, whose prompt is known."""
    slices = []
    for slot in slots:
        tokens = runner.tokenize(prompt(QUESTIONS[slot]), special=True)
        seq = Sequence(tokens, SamplingParams(temperature=0), 0, 1, lambda event: None, slot=slot)
        seq.sampler = runner.sampler(seq.params, 0, [])
        runner.reuse(slot, slot, 0)
        runner.run([Slice(seq, len(tokens))])
        seq.num_computed = len(tokens)
        seq.tokens.append(tokens[-1])
        slices.append(Slice(seq, 1))
    return slices


def num_nodes(runner, slices):
    """How many nodes of graphs llama.cpp computes for this batch; as many again for each pass."""
    calls = []
    with runner.interruptible(lambda: calls.append(None) is not None):
        runner.run(slices)
    return len(calls)


def test_answers_with_a_free_slot_between_them_are_computed_in_one_pass(ten_slots):
    runner = ten_slots.runner
    side_by_side, with_gap, far_apart = (
        num_nodes(runner, decoding(runner, slots)) for slots in ([0, 1, 2], [0, 1, 3], [0, 1, 7])
    )
    assert with_gap == pytest.approx(side_by_side, rel=0.1) and far_apart > 1.5 * side_by_side


def test_a_free_slot_between_answers_keeps_what_it_holds_and_changes_nothing(ten_slots):
    runner = ten_slots.runner
    (free,) = decoding(runner, [1])
    slices = decoding(runner, [0, 2])
    assert [spare.slot for spare in runner._useful_fillers(slices)] == [1]
    runner.run(slices)
    answers = [runner.logits(row).copy() for row in (0, 2)]
    assert llama_cpp.llama_memory_seq_pos_max(runner._memory, 1) == free.seq.num_computed - 1
    for piece, logits in zip(slices, answers, strict=True):
        runner.reuse(piece.slot, piece.slot, piece.seq.num_computed)
        runner.run([piece])
        assert abs(runner.logits(0) - logits).max() < 0.5
    runner.run([free])
    beside = runner.logits(0).copy()
    runner.run(decoding(runner, [1]))
    assert abs(runner.logits(0) - beside).max() < 0.5


def test_a_full_slot_between_answers_is_left_alone():
    runner = StarterEngine(num_slots=3, n_ctx=128).runner
    text = runner.tokenize(prompt("word " * 200), special=True)[:128]
    full = Sequence(text, SamplingParams(temperature=0), 0, 1, lambda event: None, slot=1)
    full.sampler = runner.sampler(full.params, 0, [])
    runner.run([Slice(full, 128)])
    slices = decoding(runner, [0, 2])
    assert not runner._useful_fillers(slices)
    assert all(sample.tokens for sample in runner.run(slices))


def test_a_batch_that_is_full_of_a_prompt_has_no_row_for_a_free_slot():
    runner = StarterEngine(num_slots=4, n_batch=64).runner
    first, last = decoding(runner, [0, 2])
    tokens = runner.tokenize(prompt("word " * 100), special=True)[:63]
    reading = Sequence(tokens, SamplingParams(temperature=0), 0, 1, lambda event: None, slot=3)
    assert [spare.slot for spare in runner._useful_fillers([first, last, Slice(reading, 61)])] == [1]
    assert not runner._useful_fillers([first, last, Slice(reading, 62)])
    assert [bool(sample) for sample in runner.run([first, last, Slice(reading, 62)])] == [True, True, False]


def test_a_free_slot_that_holds_much_more_than_the_answers_around_it_is_left_alone(monkeypatch):
    runner = StarterEngine(num_slots=3).runner
    (longest, *_) = decoding(runner, [1])
    slices = decoding(runner, [0, 2])
    lead = longest.seq.num_computed - max(piece.seq.num_computed for piece in slices)
    monkeypatch.setattr(runner_module, "MAX_FILLER_LEAD", lead)
    assert not runner._useful_fillers(slices)
    monkeypatch.setattr(runner_module, "MAX_FILLER_LEAD", lead + 1)
    assert [spare.slot for spare in runner._useful_fillers(slices)] == [1]


def test_where_tokens_were_forced_a_free_slot_would_only_make_one_more_pass(ten_slots):
    slices = decoding(ten_slots.runner, [0, 2])
    for piece in slices:
        piece.seq.tokens += piece.seq.tokens[:5]
    assert not ten_slots.runner._useful_fillers([Slice(piece.seq, 6) for piece in slices])


def test_what_the_next_turn_begins_with_is_computed_where_the_conversation_has_gone():
    six = StarterEngine(num_slots=6)
    answers = []
    for i, question in enumerate(QUESTIONS[:4]):
        answers.append(six.ask(prompt(question), owner=str(i), next_prompt=lambda: []))
        six.run()
    answered = six.engine._answered[1]
    assert six.scheduler.slot_that_holds(answered).index == 1
    for i in (0, 3):
        six.ask(prompt(QUESTIONS[i], answers[i].text, "Hello!"), owner=str(i))
    six.step()
    assert six.scheduler.slot_that_holds(answered).index == 4


def test_conversations_that_move_between_slots_keep_their_words():
    six = StarterEngine(num_slots=6)
    names = ("Ada", "Bob", "Eve", "Tom")
    answers = []
    for name in names:
        answers.append(six.ask(prompt(f"My name is {name}."), owner=name))
        six.run()

    def ask_for_name(name):
        turns = (f"My name is {name}.", answers[names.index(name)].text, "What is my name?")
        return six.ask(prompt(*turns), owner=name)

    readers = {name: ask_for_name(name) for name in ("Ada", "Tom")}  # in slots 0 and 3: Tom comes to 1, and Bob goes
    six.step(2)
    assert sorted(seq.slot for seq in six.scheduler.running) == [0, 1]
    readers |= {name: ask_for_name(name) for name in ("Bob", "Eve")}
    six.run()
    for name, reader in readers.items():
        assert name in reader.text and reader.finished.usage.reused_tokens > 20


def test_it_computes_only_the_new_tokens_of_a_follow_up_turn(starter):
    first = starter.ask(prompt("My name is Ada."))
    starter.run()
    follow_up = prompt("My name is Ada.", first.text, "What is my name?")
    second = starter.ask(follow_up)
    starter.run()
    num_old = len(starter.runner.tokenize(prompt("My name is Ada."), special=True)) + len(first.token_ids)
    assert second.finished.usage.reused_tokens >= num_old - 2  # the last sampled token was never computed
    assert "Ada" in second.text


def test_it_shares_a_known_system_prompt_with_another_owner_and_nothing_more(starter):
    starter.ask(prompt("What is a token?"), owner="alice")
    starter.run()
    stranger = starter.ask(prompt("What is a token?"), owner="bob")
    starter.run()
    assert stranger.finished.usage.reused_tokens == starter.last.num_shared


def test_it_copies_a_prefix_from_a_slot_that_is_still_decoding(starter):
    starter.ask(prompt("What is a token?"), owner="alice")
    starter.step(3)
    stranger = starter.ask(prompt("Who are you?"), owner="bob")
    starter.run()
    assert stranger.finished.usage.reused_tokens > 0
    assert stranger.text.startswith("I'm LocalLLM's small starter model")


def test_it_says_the_same_from_a_reused_prefix(starter):
    first = starter.ask(prompt("Who are you?"))
    starter.run()
    second = starter.ask(prompt("Who are you?"))
    starter.run()
    assert second.finished.usage.reused_tokens > 0
    assert first.text == second.text


def test_it_goes_on_decoding_while_a_long_prompt_is_read(starter):
    talker = starter.ask(prompt("Who are you?"), owner="alice", max_tokens=60)
    starter.step(2)
    starter.engine._prefill_rate = 200  # a slow machine: 50 tokens a step
    starter.ask(prompt("word " * 600), owner="bob", max_tokens=1)
    num_before = len(talker.token_ids)
    starter.step(5)
    assert len(talker.token_ids) == num_before + 5


def test_it_tells_how_far_a_long_prompt_is_read():
    small_batches = StarterEngine(n_batch=64)
    reader = small_batches.ask(prompt("word " * 200), max_tokens=1)
    small_batches.run()
    steps = [event.num_computed for event in reader.events if isinstance(event, Prefill)]
    assert steps == sorted(steps) and len(steps) >= 3


def requested(starter, text):
    return Sequence(starter.runner.tokenize(text, special=True), SamplingParams(), 1, 8, lambda event: None)


def test_an_idle_engine_reads_what_came_together_at_once(starter, monkeypatch):
    monkeypatch.setattr(engine_module, "GATHER_S", 20.0)
    first, second = (requested(starter, prompt(question)) for question in QUESTIONS[:2])
    coming = [second]

    def prepare_second():
        time.sleep(0.05)
        starter.engine.submit(coming.pop())

    starter.engine._is_more_coming = lambda: bool(coming)
    starter.engine.submit(first)
    tokenizer = threading.Thread(target=prepare_second)
    tokenizer.start()
    starter.engine._receive()
    tokenizer.join()
    assert starter.scheduler.waiting == [first, second]


def test_an_idle_engine_does_not_wait_for_what_is_long_in_coming(starter):
    starter.engine._is_more_coming = lambda: True
    starter.engine.submit(first := requested(starter, prompt("Who are you?")))
    starter.engine._receive()
    assert starter.scheduler.waiting == [first]


def test_it_frees_the_slot_of_a_cancelled_request_before_the_next_step(starter):
    readers = [starter.ask(prompt("Who are you?"), owner=str(i)) for i in range(4)]
    starter.step(2)
    cancelled = starter.scheduler.running[0]
    starter.engine.cancel(cancelled)
    waiting = starter.ask(prompt("Hello!"), owner="next")
    starter.step()
    assert cancelled not in starter.scheduler.running
    assert isinstance(waiting.events[0], Started)
    assert sum(bool(r.events and getattr(r.events[-1], "reason", "") == "cancelled") for r in readers) == 1


def test_it_drops_a_request_that_is_cancelled_in_the_queue():
    one_slot = StarterEngine(num_slots=1)
    one_slot.ask(prompt("Who are you?"))
    one_slot.step()
    waiting = one_slot.ask(prompt("Hello!"))
    one_slot.engine.cancel(one_slot.last)
    one_slot.step()
    assert waiting.finished.reason == "cancelled" and not waiting.text


def test_it_tells_the_place_in_the_line_and_serves_in_that_order():
    one_slot = StarterEngine(num_slots=1)
    readers = [one_slot.ask(prompt("Hello!"), owner=str(i)) for i in range(3)]
    one_slot.run()
    assert readers[0].places == [] and readers[1].places == [1] and readers[2].places == [2, 1]


def test_it_tells_how_long_the_wait_will_be_as_soon_as_a_request_has_ended():
    one_slot = StarterEngine(num_slots=1)
    _, before = [one_slot.ask(prompt("Hello!"), owner=str(i)) for i in range(2)]
    one_slot.run()
    _, second, third = [one_slot.ask(prompt("Hello!"), owner=str(i)) for i in range(3)]
    one_slot.step()
    assert [each.wait_s for each in before.events if isinstance(each, Waiting)] == [None]
    assert 0 < second.events[0].wait_s == pytest.approx(third.events[0].wait_s / 2)
    one_slot.run()


def test_it_refuses_a_request_when_the_queue_is_full():
    one_slot = StarterEngine(num_slots=1, max_waiting=2)
    for _ in range(2):
        one_slot.ask(prompt("Hello!"))
    refused = one_slot.ask(prompt("Hello!"))
    (error,) = refused.events
    assert isinstance(error, QueueFull) and error.retry_after_s > 0
    one_slot.run()


def test_a_full_queue_takes_what_was_accepted_before_its_engine_ended():
    one_slot = StarterEngine(num_slots=1, max_waiting=2)
    readers = [one_slot.ask(prompt("Hello!"), was_accepted=True) for _ in range(4)]
    one_slot.run()
    assert all(reader.finished.reason == "stop" for reader in readers)


def test_it_stops_at_a_stop_string_and_does_not_show_it(starter):
    reader = starter.ask(prompt("Who are you?"), stop=("starter",))
    starter.run()
    assert reader.text == "I'm LocalLLM's small "
    assert reader.finished.reason == "stop"


def test_it_stops_at_max_tokens(starter):
    reader = starter.ask(prompt("Who are you?"), max_tokens=3)
    starter.run()
    assert reader.finished.reason == "length"
    assert reader.finished.usage.completion_tokens == len(reader.token_ids) == 3


def test_it_gives_logprobs_of_the_chosen_token_and_its_rivals(starter):
    reader = starter.ask(prompt("Who are you?"), num_logprobs=5, max_tokens=4)
    starter.run()
    assert len(reader.logprobs) == 4
    for each in reader.logprobs:
        assert each.logprob <= 0 and len(each.top) == 5
        assert each.top[0] == (each.token, each.logprob)  # temperature 0 takes the likeliest


def test_a_negative_frequency_penalty_makes_it_repeat_itself(starter):
    plain = starter.ask(prompt("Who are you?"), owner="a")
    rewarded = starter.ask(prompt("Who are you?"), owner="b", frequency_penalty=-20.0)
    starter.run()
    assert most_frequent(rewarded.token_ids) > most_frequent(plain.token_ids) + 10


def most_frequent(ids):
    return max(ids.count(id) for id in ids)


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 1e9}, {"presence_penalty": 1000.0}])
def test_a_penalty_beyond_measure_leaves_no_token_twice(starter, penalty):
    plain = starter.ask(prompt("Who are you?"), owner="a", max_tokens=40)
    punished = starter.ask(prompt("Who are you?"), owner="b", max_tokens=40, **penalty)
    starter.run()
    assert most_frequent(plain.token_ids) > most_frequent(punished.token_ids) == 1


WILD = {"temperature": 1000.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.mark.parametrize("filter", [{"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}])
def test_a_filter_that_leaves_the_likeliest_token_is_greedy_at_any_temperature(starter, filter):
    greedy, wild, filtered = (
        starter.ask(prompt("Who are you?"), owner=str(params), **params) for params in ({}, WILD, WILD | filter)
    )
    starter.run()
    assert filtered.text == greedy.text != wild.text


def test_a_batch_that_cannot_be_computed_fails_its_requests_and_not_the_engine(starter):
    broken = starter.ask(prompt("Hello!"))
    starter.last.tokens[3] = 10**6  # no such token: llama_decode refuses the batch
    starter.step()
    assert isinstance(broken.events[-1], ProviderError)
    after = starter.ask(prompt("Who are you?"))
    starter.run()
    assert after.text.startswith("I'm LocalLLM's small starter model")


def test_text_of_chunks_is_whole_characters(starter):
    reader = starter.ask(prompt("héllo ✓ 日本語 🙂"), temperature=1.5, max_tokens=80)
    starter.run()
    assert all(isinstance(e.text, str) for e in reader.events if isinstance(e, Chunk))
