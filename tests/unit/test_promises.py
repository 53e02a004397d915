"""What `docs/why.md` promises for each topology, and the tests that show it."""
from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

#: A part of each sentence, and where it is shown.  The soak holds several servers to all of them at once.
PROMISES = [
    # what each topology can lose
    (r"a queue may hand out a task (a second time|twice)", "faults/test_ledger.py::test_the_queue_is_judged"),
    (r"until its next renewal", "faults/test_ledger.py::test_a_holder_that_does_not_learn_that_its_lock_is_lost_is_found"),
    (r"mostly milliseconds",
     "faults/test_several_servers.py::test_callers_receive_no_wrong_answer"),
    (r"connections ask the Sentinels again",
     "integration/test_sentinel.py::test_client_of_a_master_that_steps_down_connects_to_the_next"),
    (r"(written to the next|go to the new) master",
     "integration/test_sentinel.py::test_writes_under_way_when_the_master_is_killed_reach_the_next_one"),
    (r"copies are dropped",
     "integration/test_sentinel.py::test_copy_is_not_valid_after_a_failover"),
    (r"copies are dropped",
     "unit/reading/test_listener_elsewhere.py::test_what_is_read_from_another_server_than_the_listeners_is_not_kept"),
    (r"subscriptions (look|read) again",
     "integration/test_sentinel.py::test_writes_under_way_when_the_master_is_killed_reach_the_next_one"),
    (r"`min-replicas-to-write 1`", "integration/test_sentinel.py::test_writes_wait_for_a_master_that_has_lost_its_replicas"),
    (r"the slot map is read again after (any|each) failure",
     "integration/test_cluster_in_trouble.py::test_writes_under_way_when_a_master_is_killed_reach_the_next_one"),
    (r"What is on other nodes goes on|other slots continue",
     "integration/test_cluster_node_away.py::"
     "test_entries_on_other_nodes_are_written_while_one_hangs"),
    (r"cluster-require-full-coverage no",
     "integration/test_cluster_in_trouble.py::"
     "test_other_nodes_go_on_until_a_killed_master_is_replaced_if_not_all_slots_are_needed"),
    (r"`memsync_lock_replicas`",
     "integration/test_sentinel.py::test_a_lock_that_replicas_have_is_held_over_a_failover_and_its_fences_go_on_growing"),
    (r"whose clock is behind", "integration/test_failover_clocks.py::test_a_failover_to_another_clock_breaks_no_order"),
    # what is weaker in a cluster
    (r"in one slot", "integration/test_cluster_store.py::test_tasks_spread_over_the_nodes_and_all_of_one_is_in_one_slot"),
    (r"No write, lock or read of an entry waits for it",
     "integration/test_cluster_node_away.py::test_nothing_but_lists_waits_for_the_node_of_the_indexes"),
    (r"killed between the two",
     "integration/test_cluster_weaker.py::"
     "test_a_task_of_a_process_that_is_killed_between_the_two_writes_is_listed_with_its_next_stage"),
    (r"counters may be too low",
     "integration/test_cluster_store.py::test_tasks_written_without_an_answer_are_listed"),
    (r"a round trip behind|one round trip behind",
     "integration/test_cluster_store.py::test_late_index_update_does_not_restore_a_removed_task"),
    (r"`force_sync` raises and names one of them",
     "integration/test_cluster_node_away.py::"
     "test_entries_on_other_nodes_are_written_while_one_hangs"),
    (r"[Qq]ueue and (the )?counters raise `StoreUnavailable`",
     "integration/test_cluster_node_away.py::test_nothing_but_lists_waits_for_the_node_of_the_indexes"),
    (r"up to 16 MiB", "unit/store/test_index_queue.py::test_the_oldest_are_dropped_and_logged_when_there_are_too_many"),
    (r"nothing is kept|never cached",
     "integration/test_cluster_weaker.py::test_nothing_that_is_read_from_a_cluster_is_kept"),
    (r"with the next change of that key", "faults/test_ledger.py::test_subscribers_are_judged"),
    (r"`FLUSHALL` of a node",
     "integration/test_cluster_weaker.py::test_that_a_node_was_emptied_is_found_out_when_an_entry_is_read"),
    (r"1 for each node", "integration/test_cluster_node_away.py::test_nodes_are_read_at_the_same_time"),
    (r"half of that",
     "integration/test_cluster_in_trouble.py::"
     "test_entries_of_other_nodes_are_read_while_the_index_node_hangs"),
    (r"refused", "unit/test_urls.py::test_a_wrong_url_of_several_servers_is_named_without_its_password"),
    (r"a slot that is (being moved|migrated)",
     "integration/test_cluster_moving.py::test_entries_of_one_slot_on_two_nodes_are_written_together"),
    (r"every (two|2) seconds", "integration/test_cluster_moving.py::test_a_waiter_gets_a_lock_whose_slot_is_being_moved"),
    (r"such as `\{shop\}`", "integration/test_cluster_weaker.py::test_a_namespace_with_a_tag_is_on_one_node"),
    # clocks
    (r"each node (of a cluster )?has its own clock",
     "integration/test_cluster_clocks.py::test_everything_on_a_node_with_another_clock_is_as_on_the_others"),
    (r"`celery memsync doctor` shows", "integration/test_cluster_clocks.py::test_doctor_names_a_node_with_another_clock"),
]


@pytest.mark.parametrize("sentence, test", PROMISES)
def test_a_promise_of_a_topology_is_made_and_shown(sentence, test):
    page = " ".join((ROOT / "docs" / "why.md").read_text().split())
    file, _, name = test.partition("::")

    assert re.search(sentence, page, re.I)
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()
