"""The rules of what exactly happens, each in a line of its own. Data for ``parity``."""

from __future__ import annotations

from docs.generator.parity import Rule

S, P = "semantics §", "protocols §"

RULES: tuple[Rule, ...] = (
    Rule(S + "1.1", "Code outside steps may run many times; finished steps give what was recorded."),
    Rule(
        S + "1.2",
        "A step's key is kind, name and a counter; `None` is a result like any other.",
        also=("tests/unit/workflow/test_replay.py::test_keys_count_per_kind_and_name",),
    ),
    Rule(S + "1.3", "A step's configuration is fixed when it first starts; a delay function is today's."),
    Rule(S + "1.4", "A step that failed for good raises the same error on every replay, without running."),
    Rule(S + "1.5", "Live and replay cannot be told apart; completions come in their recorded order."),
    Rule(
        S + "1.6",
        "Code that no longer fits blocks the instance, by name, and it goes on when code fits again.",
    ),
    Rule(S + "1.7", "`max_steps` counts `step.do`: exactly N are fine, N+1 raises `StepLimitExceeded`."),
    Rule(
        S + "2.1",
        "A body runs at least once, its record is made exactly once: old fences are discarded.",
        also=("tests/integration/test_store.py::test_a_claim_needs_the_fence",),
    ),
    Rule(
        S + "2.2",
        "Retries and their back-off; a waiting retry holds nothing.",
        also=("tests/unit/workflow/language/test_config.py::test_backoff",),
    ),
    Rule(
        S + "2.3",
        "The time-out is per attempt; async bodies are cancelled, sync ones told, processes killed.",
        also=(
            "tests/integration/test_attempts.py::test_an_async_body_is_cancelled_at_its_time_out",
            "tests/integration/test_prefork.py::test_killed_at_its_timeout",
        ),
    ),
    Rule(
        S + "2.4", "A delay function has 5 seconds; what goes wrong in it fails the step (`RetryDelayError`)."
    ),
    Rule(
        S + "2.5",
        "A lost worker's attempt is tried again and counted apart; an orderly one hands back.",
        also=(
            "tests/integration/test_liveness.py::test_the_steps_of_the_dead_are_handed_on",
            "tests/integration/test_shutdown.py::test_sigterm_under_load",
        ),
    ),
    Rule(
        S + "2.6",
        "Values are JSON by pydantic's rules; too large or not JSON fails the step, catchably.",
        also=(
            "tests/unit/workflow/test_codec.py::test_typed_values_round_trip",
            "tests/unit/workflow/test_codec.py::test_nan_and_infinities_are_refused_everywhere",
            "tests/integration/test_store.py::test_values_come_back_as_the_text_that_went_in",
        ),
    ),
    Rule(
        S + "2.7",
        "Errors come back as their class if it is known here, else as `StepFailed`; nothing is imported.",
        also=(
            "tests/integration/test_attempts.py::test_errors_come_back_as_their_class",
            "tests/unit/workflow/test_errors.py::test_only_given_classes_are_revived_and_without_init",
        ),
    ),
    Rule(
        S + "2.8",
        "`sensitive` values are shown nowhere, and the workflow gets them.",
        also=("tests/integration/test_client.py::test_sensitive_values_are_not_shown",),
    ),
    Rule(
        S + "3.1",
        "Sleeps: 365 days, the past refused once, never early, on time when the process dies.",
        also=(
            "tests/integration/test_alarms.py::test_a_wake_up_is_never_early_and_hardly_late",
            "tests/integration/test_alarms.py::test_the_death_of_the_holder_costs_a_second_and_a_half",
        ),
    ),
    Rule(
        S + "3.2",
        "Events are kept, served in order, one to each wait, in one transaction.",
        also=(
            "tests/integration/test_events.py::test_events_are_buffered_from_the_first_moment",
            "tests/integration/test_events.py::test_waiters_are_served_in_line",
        ),
    ),
    Rule(
        S + "3.3",
        "A wait's time-out is 1 second to 365 days, raises `EventTimeout`, is recorded.",
        also=("tests/unit/workflow/language/test_config.py::test_waits",),
    ),
    Rule(
        S + "3.4",
        "What names and ids may look like.",
        also=("tests/unit/workflow/language/test_names.py::test_plain_names",),
    ),
    Rule(
        S + "3.5",
        "Events to finished and unknown instances are refused.",
        also=("tests/integration/test_events.py::test_who_takes_no_events_says_so",),
    ),
    Rule(
        S + "4: transitions",
        "One table holds every transition.",
        "transition|status|table",
        also=("tests/unit/workflow/test_status.py::test_the_table_is_complete",),
    ),
    Rule(
        S + "4: slots",
        "Who holds a slot.",
        "slot",
        also=("tests/unit/workflow/test_turn.py::test_running_means_handed_out_or_running",),
    ),
    Rule(S + "4: pause", "`pause()` and `resume()`.", "pause|resum"),
    Rule(
        S + "4: terminate", "`terminate()`: bodies are cancelled, nothing of theirs is recorded.", "terminat"
    ),
    Rule(S + "4: restart", "`restart()` from any status.", "restart(?!.*from.step)|same id and params"),
    Rule(
        S + "4: restart from a step",
        "`restart(from_step=…)`.",
        "from.(a.)?step|from_step|that step|unknown step",
    ),
    Rule(S + "4: delete", "`delete()`, `delete_batch()`.", "delet"),
    Rule(
        S + "4: create",
        "`create` and `create_batch` with ids that exist.",
        "create|existing ids|entries|exists",
    ),
    Rule(
        S + "4: abandoned",
        "Steps that were never awaited are cancelled and recorded as abandoned.",
        "abandon|await",
    ),
    Rule(
        S + "4: retention",
        "Finished instances go when their time is over.",
        "option >|expire|by end time|days by default|goes on, or was|safe to run",
    ),
    Rule(
        S + "5.0",
        "Bodies in flight are cancelled and waited for before the first handler starts.",
        also=(
            "tests/integration/test_saga.py::test_the_chain_waits_for_threads",
            "tests/integration/test_saga.py::test_an_async_body_may_still_say_what_it_did",
            "tests/integration/test_saga.py::test_a_body_whose_worker_is_gone_is_waited_for_by_its_lease",
            "tests/laws/test_saga_oracle.py::test_what_was_undone_is_what_had_to_be",
            "tests/integration/test_saga_oracle.py::test_what_was_undone_on_real_workers_is_what_had_to_be",
        ),
    ),
    Rule(
        S + "5.1",
        "A rollback runs when the workflow fails for good, or is terminated with it.",
        also=(
            "tests/integration/test_saga.py::test_a_caught_error_undoes_nothing_until_the_workflow_fails",
            "tests/laws/test_saga_oracle.py::test_what_was_undone_is_what_had_to_be",
            "tests/integration/test_saga_oracle.py::test_what_was_undone_on_real_workers_is_what_had_to_be",
        ),
    ),
    Rule(
        S + "5.2",
        "Whatever has started is eligible, with its output or none.",
        also=(
            "tests/integration/test_saga.py::test_the_failing_step_a_wait_and_what_gave_none_are_undone",
            "tests/integration/test_saga.py::test_what_never_began_is_not_undone",
            "tests/laws/test_saga_oracle.py::test_what_was_undone_is_what_had_to_be",
            "tests/integration/test_saga_oracle.py::test_what_was_undone_on_real_workers_is_what_had_to_be",
        ),
    ),
    Rule(
        S + "5.3",
        "One at a time, last started first, as ordinary durable steps.",
        also=(
            "tests/integration/test_saga.py::test_reverse_order_of_start_whoever_ended_first",
            "tests/integration/test_saga.py::test_retries_and_time_outs_of_handlers_are_their_own",
            "tests/integration/test_saga.py::test_the_keys_differ_and_are_stable",
            "tests/laws/test_saga_oracle.py::test_what_was_undone_is_what_had_to_be",
            "tests/integration/test_saga_oracle.py::test_what_was_undone_on_real_workers_is_what_had_to_be",
        ),
    ),
    Rule(
        S + "5.4",
        "The first handler that fails for good stops the chain; the original error stays.",
        also=(
            "tests/integration/test_saga.py::test_a_handler_that_gives_up_stops_the_chain",
            "tests/integration/test_saga.py::test_on_error_continue_reports_all",
            "tests/integration/test_saga.py::test_without_anything_to_undo_there_is_no_rollback",
            "tests/laws/test_saga_oracle.py::test_what_was_undone_is_what_had_to_be",
            "tests/integration/test_saga_oracle.py::test_what_was_undone_on_real_workers_is_what_had_to_be",
        ),
    ),
    Rule(
        S + "5.5",
        "A handler that today's code no longer reaches: `RollbackMissing`.",
        also=(
            "tests/integration/test_saga.py::test_a_step_that_todays_code_does_not_come_to",
            "tests/integration/test_saga.py::test_a_rollback_that_todays_code_does_not_give",
        ),
    ),
    Rule(
        S + "5.6",
        "Terminate with rollback from anywhere; the end is `terminated`.",
        also=(
            "tests/integration/test_saga.py::test_terminate_with_rollback_from_wherever",
            "tests/integration/test_saga.py::test_a_terminated_instance_ends_terminated_though_its_handler_fails",
            "tests/laws/test_saga_oracle.py::test_what_was_undone_is_what_had_to_be",
            "tests/integration/test_saga_oracle.py::test_what_was_undone_on_real_workers_is_what_had_to_be",
        ),
    ),
    Rule(
        S + "5.7",
        "Steps in handlers are refused; a pause does not hold a rollback up.",
        also=(
            "tests/integration/test_saga.py::test_a_step_called_from_a_handler_is_refused",
            "tests/integration/test_saga.py::test_nothing_that_meets_a_rollback_holds_it_up",
        ),
    ),
    Rule(S + "5.8", "In parallel, by operators, over children."),
    Rule(
        S + "6: row",
        "The row is the truth: whatever is lost, it comes back.",
        "lost|alarm|recover|wipe",
        also=(
            "tests/chaos/test_crashes.py::test_killed_anywhere_nothing_is_lost_and_nothing_is_done_twice",
            "tests/chaos/test_servers.py::test_servers_struck_in_the_middle_cost_time_only",
        ),
    ),
    Rule(S + "6: lists", "Lists by cursor are consistent, and fast at any size.", "list|cursor|page"),
    Rule(
        S + "6: limits",
        "Limits on concurrency, creation rate and queue length: their options are read, and not enforced yet.",
        "RateLimited|TooManyQueued|concurrency limit",
    ),
    Rule(S + "7", "Lifecycle events: numbered, replayed from a cursor, then live, to the terminal one."),
    Rule(
        S + "8: graph",
        "The graph of a workflow, from its source: every step once, any valid Python.",
        "exactly once|never raises|one node|left to chance|kept by name|each carries|each node carries",
        also=(
            "tests/unit/diagrams/test_golden.py::test_the_graph_is_the_expected_one",
            "tests/unit/diagrams/test_standard_library.py::test_every_file_of_the_standard_library_can_be_drawn",
        ),
    ),
    Rule(S + "8: names", "Dynamic text is `${...}`, what cannot be known is `unknown`.", "dynamic text"),
    Rule(
        S + "8: trace",
        "A live trace of an instance can be laid over the graph.",
        "live trace|but an attribute",
        also=("tests/unit/diagrams/test_tracing.py::test_every_step_is_in_one_place_and_counts_add_up",),
    ),
    Rule(
        P + "10: pause",
        "After a pause outcomes are fed and commands held; a resume releases them.",
        "pause|resum|held|holds",
    ),
    Rule(
        P + "10: restart",
        "A restart from a step keeps the prefix and feeds late outcomes again.",
        "restart|T |target|kept",
    ),
    Rule(
        P + "14",
        "Failing with work in flight: each attempt has ended, by itself, its time-out or its lease, before the chain.",
    ),
    Rule(P + "15", "Children: their own rows, ended with their parent, undone by their parent only."),
    Rule(P + "16", "A Celery task as a step: claimed, recorded and fenced in the worker that ran it."),
    Rule(P + "17", "Values that no longer fit, revival of errors, arguments."),
    Rule(
        P + "20: connection",
        "Instances created in the caller's transaction.",
        "connection|transaction|commit",
    ),
    Rule(P + "20: listing", "Cursor, counts.", "in the order of creation|counts name|count reads|cursor"),
    Rule(
        P + "20: state",
        "State per instance is limited.",
        "byte count|state per instance",
        also=("tests/unit/workflow/test_ending.py::test_state_over_the_limit_fails_the_workflow",),
    ),
    Rule(
        P + "20: durations",
        "Months, years, jitter, delays capped before they are computed.",
        "jitter|delay|months",
        also=(
            "tests/unit/workflow/language/test_durations.py::test_every_unit_singular_and_plural",
            "tests/unit/workflow/language/test_config.py::test_no_delay_overflows",
            "tests/unit/workflow/language/test_config.py::test_jitter_comes_after_the_maximum",
        ),
    ),
    Rule(
        P + "20: schedules",
        "Ids of scheduled instances; the last started worker's definition wins.",
        "schedul|cron|firing|fire",
    ),
    Rule(P + "20: patched", "`step.patched`: true past all records, then marked.", "patch|mark"),
    Rule(
        P + "20: news",
        "`result()` and `subscribe` learn by one message per flush, and a poll.",
        r"\bnews\b|\bpoll",
    ),
    Rule(
        P + "20: parallel rollback",
        'With `on_error="stop"` running handlers finish, none is started.',
        "parallel|on_error",
    ),
    Rule(
        P + "20: queues",
        "A queue that nobody serves shows as blocked.",
        "queue that",
    ),
    Rule(
        P + "20: operators",
        "`retry_rollback()` runs failed handlers with fresh attempts, under the same idempotency key.",
        "retry.rollback|skip.rollback|operator|fresh attempts",
    ),
    Rule(
        P + "20: callers",
        "Steps called in a body or another thread are refused by name.",
        "named error",
        also=("tests/unit/workflow/test_replay.py::test_steps_may_not_be_called_from_bodies",),
    ),
    Rule(
        P + "20: pgbouncer",
        "pgbouncer in transaction mode. Not tried; kept connections prepare statements, so 1.21 or newer is needed.",
        "pgbouncer|prepare|session state",
    ),
    Rule(
        P + "20: cluster",
        "Redis keys carry one hash tag; Redis Cluster as a broker is refused.",
        "cluster|hash tag",
    ),
)
