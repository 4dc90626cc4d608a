"""The peers' bench: the order of the turns, what becomes of a system that fails, and the arithmetic of ratios."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.peers import environment, report, rounds
from bench.peers.processes import Crew
from bench.peers.system import Failed, Figures, System, Unavailable, Workload

W1, W2 = Workload("w1", 10), Workload("w2", 10)


class Scripted(System):
    """Takes the seconds it is told to, one after the other; None is a failure. Notes what it is asked for."""

    configuration = guarantees = "scripted"

    def __init__(
        self, name: str, diary: list[str], walls: list[float | None], missing: str | None = None
    ) -> None:
        self.name, self._diary, self._walls, self._missing = name, diary, walls, missing

    def unfit(self, workload: Workload) -> str | None:
        return "no such thing" if self.name == "b" and workload.kind == "w2" else None

    def start(self) -> None:
        if self._missing is not None:
            raise Unavailable(self._missing)

    def wake(self, workload: Workload) -> None:
        self._diary.append(f"wake {self.name}")

    def run(self, workload: Workload) -> Figures:
        wall = self._walls.pop(0)
        if wall is None:
            raise Failed("on purpose")
        return {
            "wall_s": wall,
            "cpu_us_per_step": {"worker": wall},
            "peak_mib": {"worker": 1.0},
            "other_cpus": 0.0,
        }

    def rest(self) -> None:
        self._diary.append(f"rest {self.name}")

    def stop(self) -> None:
        self._diary.append(f"stop {self.name}")


def told(text: str) -> None:
    assert text


def test_turns_never_overlap_and_each_round_begins_with_another() -> None:
    diary: list[str] = []
    systems = [Scripted("ours", diary, [1.0, 1.0]), Scripted("a", diary, [2.0, 3.0])]
    rounds.compare(systems, [W1], 2, rounds.Record(), told)
    assert diary == [f"{verb} {name}" for name in ("ours", "a", "a", "ours") for verb in ("wake", "rest")]


def test_ratios_are_taken_within_each_round() -> None:
    record = rounds.Record()
    systems = [Scripted("ours", [], [1.0, 10.0, 1.0]), Scripted("a", [], [2.0, 20.0, 5.0])]
    rounds.compare(systems, [W1], 3, record, told)
    ours, peer = report.rows(record)
    assert (ours.ratio, ours.value, ours.unit) == (None, 50.0, "steps/s")
    assert (peer.ratios, peer.ratio) == ([2.0, 2.0, 5.0], 2.0)


def test_above_one_means_faster_where_less_is_better() -> None:
    assert W2.times_as_fast({"wall_s": 1.0}, {"wall_s": 4.0}) == 4.0
    assert W1.times_as_fast({"wall_s": 1.0}, {"wall_s": 4.0}) == 4.0
    assert (
        Workload("lone", 3).times_as_fast({"wall_s": 9.0, "p50_ms": 2.0}, {"wall_s": 9.0, "p50_ms": 1.0})
        == 0.5
    )


def test_one_that_fails_is_stopped_and_the_others_go_on() -> None:
    diary: list[str] = []
    record = rounds.Record()
    systems = [
        Scripted("ours", diary, [1.0] * 4),
        Scripted("a", diary, [2.0, None]),
        Scripted("b", diary, [4.0] * 2),
    ]
    rounds.compare(systems, [W1, W2], 2, record, told)
    assert "on purpose" in record.absent["a"]
    assert diary.count("stop a") == 1
    assert diary.count("wake a") == 2
    assert [None if one is None else one["wall_s"] for one in record.runs[W1]["a"]] == [2.0, None]
    assert "a" not in record.runs[W2]
    assert record.unfit[W2]["b"] == "no such thing"


def test_one_that_cannot_be_installed_is_left_out_with_its_reason() -> None:
    record = rounds.Record()
    here, gone = Scripted("ours", [], []), Scripted("a", [], [], missing="there is no npm here")
    assert rounds.start([here, gone], record, told) == [here]
    assert record.absent == {"a": "there is no npm here"}
    assert "| a |" not in report.markdown([here, gone], record)


def test_without_npm_the_reason_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="apt install nodejs npm"):
        environment.restate_server()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_crew_freezes_meters_and_ends_processes_with_their_children(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    child = (
        f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-c', 'print(1, flush=True); input()'])"
    )
    process = crew.launch("worker", [sys.executable, "-c", child], talks=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"1\n"
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    assert len(tree) == 2
    crew.freeze()
    for one in tree:
        assert _reaches(one, psutil.STATUS_STOPPED)
    assert set(crew.cpu()) == {"worker"}
    crew.thaw()
    crew.freeze()
    crew.stop()
    psutil.wait_procs(tree, timeout=30)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in tree)


def test_a_process_that_ended_fails_the_turn_with_its_log(tmp_path: Path) -> None:
    crew = Crew(tmp_path)
    command = [sys.executable, "-c", "import sys; print('no licence', file=sys.stderr); sys.exit(3)"]
    process = crew.launch("server", command)
    process.wait(30)
    with pytest.raises(Failed, match=r"server process ended with 3[\s\S]*no licence"):
        crew.check()
    crew.stop()


def _reaches(process: psutil.Process, status: str) -> bool:
    """Wait until the kernel has carried out the signal; pytest's time-out ends it otherwise."""
    while process.status() != status:
        process.send_signal(signal.SIGCONT if status == psutil.STATUS_RUNNING else signal.SIGSTOP)
        subprocess.run(["true"], check=True)
    return True
