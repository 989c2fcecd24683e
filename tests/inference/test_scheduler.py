"""The scheduler alone: fairness, budgets, slots. Token ids are plain numbers here."""

import pytest

from localllm.inference.engine.scheduler import MIN_TOKENS_TO_COPY, Scheduler
from localllm.inference.engine.sequence import Sequence
from localllm.inference.types import SamplingParams


def sequence(tokens, owner="alice", num_shared=0):
    return Sequence(list(tokens), SamplingParams(), 0, 100, lambda event: None, owner, num_shared)


def admitted(scheduler):
    admissions = list(scheduler.admit())
    for admission in admissions:
        admission.seq.num_computed = admission.num_reused
    return admissions


def computed(scheduler, *seqs):
    """Admit, compute and finish each, one after the other."""
    for seq in seqs:
        scheduler.add(seq)
        admitted(scheduler)
        for piece in scheduler.schedule():
            scheduler.advance(piece, [0])
        scheduler.finish(seq)


def test_everybodys_first_request_goes_before_anybodys_second():
    scheduler = Scheduler(1, 512)
    first, second, other = sequence([1]), sequence([2]), sequence([3], owner="bob")
    for seq in (first, second, other):
        scheduler.add(seq)
    assert scheduler.line() == [first, other, second]


def test_a_running_request_counts_as_its_owners_first():
    scheduler = Scheduler(1, 512)
    scheduler.add(sequence([1]))
    admitted(scheduler)
    again, other = sequence([2]), sequence([3], owner="bob")
    scheduler.add(again)
    scheduler.add(other)
    assert scheduler.line() == [other, again]


def test_running_answers_go_before_a_long_prompt():
    scheduler = Scheduler(2, 64)
    answer, prompt = sequence([1]), sequence(range(100), owner="bob")
    scheduler.add(answer)
    scheduler.add(prompt)
    admitted(scheduler)
    assert [(piece.seq, piece.count) for piece in scheduler.schedule()] == [(answer, 1), (prompt, 63)]


@pytest.mark.parametrize(("length", "count"), [(128, 128), (129, 64)])
def test_what_is_left_of_a_prompt_is_not_cut_in_two(length, count):
    scheduler = Scheduler(3, 512)
    answer = sequence([1])
    scheduler.add(answer)
    admitted(scheduler)
    scheduler.advance(scheduler.schedule()[0], [5])
    scheduler.add(sequence(range(length), owner="bob"))
    scheduler.add(sequence(range(200), owner="carol"))
    admitted(scheduler)
    assert [piece.count for piece in scheduler.schedule(max_prefill_tokens=64)] == [1, count]


def test_prompts_get_little_of_a_step_while_others_decode_and_all_of_it_alone():
    scheduler = Scheduler(2, 512)
    answer = sequence([1])
    scheduler.add(answer)
    admitted(scheduler)
    scheduler.advance(scheduler.schedule()[0], [5])
    prompt = sequence(range(1000), owner="bob")
    scheduler.add(prompt)
    admitted(scheduler)
    assert [piece.count for piece in scheduler.schedule(max_prefill_tokens=32)] == [1, 32]
    scheduler.finish(answer)
    assert [piece.count for piece in scheduler.schedule(max_prefill_tokens=32)] == [512]


def test_a_follow_up_takes_its_conversations_slot_back():
    scheduler = Scheduler(2, 512)
    computed(scheduler, sequence(range(50)), sequence(range(100, 150)))
    scheduler.add(sequence(range(60)))
    (admission,) = admitted(scheduler)
    assert admission.slot == admission.source and admission.num_reused == 50


def test_at_least_one_token_is_computed_so_that_there_is_something_to_sample():
    scheduler = Scheduler(1, 512)
    computed(scheduler, sequence(range(50)))
    scheduler.add(sequence(range(50)))
    (admission,) = admitted(scheduler)
    assert admission.num_reused == 49


def test_another_owner_gets_only_what_comes_before_the_first_user_message():
    scheduler = Scheduler(2, 512)
    computed(scheduler, sequence(range(50), num_shared=20))
    scheduler.add(sequence(range(50), owner="bob", num_shared=20))
    (admission,) = admitted(scheduler)
    assert admission.num_reused == 20


def test_a_shared_head_is_copied_and_the_conversation_it_came_from_is_kept():
    scheduler = Scheduler(2, 512)
    computed(scheduler, sequence(range(500), num_shared=20))
    scheduler.add(sequence([*range(20), 999], owner="bob", num_shared=20))
    (admission,) = admitted(scheduler)
    assert (admission.source, admission.slot) == (0, 1)
    assert len(scheduler.slots[0].cached) == 500


def test_a_prefix_too_short_to_be_worth_a_copy_is_computed_anew():
    scheduler = Scheduler(2, 512)
    computed(scheduler, sequence(range(500)))
    scheduler.add(sequence([*range(MIN_TOKENS_TO_COPY - 1), 999]))
    (admission,) = admitted(scheduler)
    assert admission.num_reused == 0


def test_the_slot_unused_for_longest_is_taken_first():
    scheduler = Scheduler(3, 512)
    old, new = sequence(range(50)), sequence(range(100, 150))
    for seq in (old, new, third := sequence(range(200, 250))):
        scheduler.add(seq)
    admitted(scheduler)
    for seq in (old, new, third):
        scheduler.finish(seq)
    scheduler.add(sequence(range(300, 350)))
    (admission,) = admitted(scheduler)
    assert admission.slot == 0


def with_conversations(num_slots, num_conversations):
    """Slot i holds the fifty tokens from 100 i on; the first was used first."""
    scheduler = Scheduler(num_slots, 512)
    computed(scheduler, *(sequence(range(100 * i, 100 * i + 50)) for i in range(num_conversations)))
    return scheduler


def ask_again(scheduler, i):
    scheduler.add(sequence([*range(100 * i, 100 * i + 50), 9999]))
    (admission,) = admitted(scheduler)
    return admission


def begin(scheduler):
    scheduler.add(sequence(range(5000, 5050), owner="bob"))
    (admission,) = admitted(scheduler)
    return admission


def test_a_batch_comes_by_slot_because_llama_cpp_computes_only_ascending_neighbours_together():
    scheduler = Scheduler(3, 512)
    for count in (3, 1, 2):
        scheduler.add(sequence(range(count)))
    admitted(scheduler)
    assert [(piece.slot, piece.count) for piece in scheduler.schedule()] == [(0, 3), (1, 1), (2, 2)]


def test_a_new_conversation_goes_beside_a_running_one_and_what_was_there_into_the_oldest_slot():
    scheduler = with_conversations(6, 6)
    ask_again(scheduler, 4)
    admission = begin(scheduler)
    assert (admission.slot, admission.refuge, admission.num_reused) == (3, 0, 0)
    assert scheduler.slots[0].cached == list(range(300, 350))
    assert ask_again(scheduler, 5).slot == 5  # it is a neighbour already


def test_a_conversation_moves_with_its_cache_beside_a_running_one():
    scheduler = with_conversations(6, 4)
    ask_again(scheduler, 0)
    admission = ask_again(scheduler, 3)
    assert (admission.slot, admission.source, admission.refuge, admission.num_reused) == (1, 3, 4, 50)
    assert scheduler.slots[4].cached == list(range(100, 150)) and not scheduler.slots[3].cached
    assert ask_again(scheduler, 1).num_reused == 50


def test_a_conversation_stays_where_it_is_when_its_place_would_cost_another_one_its_cache():
    scheduler = with_conversations(4, 4)
    ask_again(scheduler, 0)
    admission = ask_again(scheduler, 2)
    assert (admission.slot, admission.source, admission.refuge) == (2, 2, None)
    assert scheduler.slots[1].cached and scheduler.slots[3].cached


def test_an_empty_slot_beside_a_running_one_is_taken_before_one_that_has_to_be_cleared():
    scheduler = with_conversations(6, 4)
    ask_again(scheduler, 3)
    admission = begin(scheduler)
    assert (admission.slot, admission.refuge) == (4, None)


def test_alone_it_takes_the_oldest_slot_wherever_that_is():
    scheduler = with_conversations(4, 4)
    assert (begin(scheduler).slot, begin(with_conversations(4, 2)).slot) == (0, 2)
