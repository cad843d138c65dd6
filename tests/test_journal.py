"""The journal keeps what it was told, across a kill at any moment, and says how full it is."""

import sqlite3
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_worker import statefile
from crucible_worker.admission import Bounds, no_room
from crucible_worker.errors import ExitError, JournalError
from crucible_worker.journal import DEAD, EVENTS, RESULTS, Claim, Journal, Load

ANY_TEXT = st.text(st.characters(exclude_categories=()), min_size=1)


@pytest.fixture
def journal(tmp_path):
    opened = Journal.of(str(tmp_path))
    yield opened
    opened.close()


def test_a_claim_stays_until_it_is_settled(journal):
    claim = journal.claim("task", "lease", "docker", 1.0)
    assert journal.claims() == [Claim(claim, "task", "lease", "docker", 1.0)]
    journal.started(claim, {"container": "c"})
    assert journal.claims()[0].run == {"container": "c"}
    journal.settle(claim, "complete", "task", {"output": 1}, 2.0)
    assert journal.claims() == []
    entry = journal.entry(journal.pending(RESULTS)[0])
    assert (entry.kind, entry.eval_id, entry.body, entry.at) == ("complete", "task", {"output": 1}, 2.0)


@example("\ud800", "\ud800", "\ud800")
@given(ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT)
def test_any_text_comes_back_as_it_was(eval_id, lease, text):
    journal = Journal.of("memory")
    claim = journal.claim(eval_id, lease, text, 0.0)
    assert journal.claims() == [Claim(claim, eval_id, lease, text, 0.0)]
    journal.settle(claim, "fail", eval_id, {"error": text, "lease": lease}, 0.0)
    entry = journal.entry(journal.pending(RESULTS)[0])
    assert (entry.eval_id, entry.lease, entry.body["error"]) == (eval_id, lease, text)
    journal.close()


def test_an_abandoned_claim_leaves_nothing(journal):
    journal.abandon(journal.claim("task", "lease", "docker", 0.0))
    assert journal.counts() == {"claimed": 0, "pending": 0, "events": 0, "dead": 0}


def test_a_dead_letter_keeps_its_answer_and_may_be_revived(journal):
    journal.settle(0, "fail", "task", {}, 0.0)
    number = journal.pending(RESULTS)[0]
    journal.bury(number, "answered 422")
    assert (journal.pending(RESULTS), journal.pending(DEAD)) == ([], [number])
    assert journal.entry(number).answer == "answered 422"
    assert journal.revive(number)
    assert not journal.revive(number)
    assert journal.entry(number).answer is None
    journal.done(number)
    assert journal.entry(number) is None


def test_ids_are_never_given_twice(journal):
    """A delivery remembers entries by them."""
    journal.settle(0, "fail", "a", {}, 0.0)
    first = journal.pending(RESULTS)[0]
    journal.done(first)
    journal.settle(0, "fail", "b", {}, 0.0)
    assert journal.pending(RESULTS) > [first]


def test_events_make_room_for_newer_ones_and_results_never_do(journal):
    journal.settle(0, "fail", "result", {}, 0.0)
    for number in range(10):
        journal.tell("running", str(number), {}, 0.0, limit=3)
    kept = [journal.entry(number).eval_id for number in journal.pending(EVENTS)]
    assert kept == ["7", "8", "9"]
    assert len(journal.pending(RESULTS)) == 1


def test_crashes_are_counted_by_task_and_forgotten_in_a_week(journal):
    assert [journal.crashed("bad", at) for at in (0.0, 1.0, 2.0)] == [1, 2, 3]
    assert journal.crashed("other", 2.0) == 1
    assert journal.crashed("bad", 8 * 86400.0) == 1


def test_lives_are_remembered_until_they_are_swept(journal):
    assert journal.begin("one") == []
    assert journal.begin("two") == ["one"]
    journal.swept(["one"])
    assert journal.boots() == ["two"]


WRITER = """
import sys
from crucible_worker.journal import Journal
journal = Journal.of(sys.argv[1])
for number in range(10**6):
    claim = journal.claim(str(number), None, "docker", 0.0)
    print("c", number, flush=True)
    if number % 2:
        journal.settle(claim, "complete", str(number), {"output": number}, 0.0)
        print("s", number, flush=True)
"""


def test_what_was_written_survives_a_kill_at_any_moment(tmp_path):
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        said = [process.stdout.readline() for _ in range(40)]
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
        process.wait()
        process.stdout.close()
        claimed, settled = ({w[1] for line in said if (w := line.split())[0] == kind} for kind in "cs")
        journal = Journal.of(str(tmp_path))
        open_claims = {claim.eval_id for claim in journal.claims()}
        results = {journal.entry(n).eval_id for n in journal.pending(RESULTS)}
        assert settled <= results
        assert claimed <= open_claims | results
        assert not open_claims & results, "a claim is replaced by its result in one step"
        for claim in journal.claims():
            journal.abandon(claim.id)
        for number in journal.pending(RESULTS):
            journal.done(number)
        journal.close()


def test_a_second_worker_is_refused_and_a_visitor_is_not(journal, tmp_path):
    with pytest.raises(ExitError, match="another worker uses"):
        Journal.of(str(tmp_path))
    journal.claim("task", None, "docker", 0.0)
    visitor = Journal(statefile.visit(str(tmp_path)))
    assert [claim.eval_id for claim in visitor.claims()] == ["task"]
    visitor.close()


def test_a_directory_that_cannot_be_is_refused_with_a_way_out():
    with pytest.raises(ExitError, match=r"/dev/null/state cannot be used .* set CRUCIBLE_STATE_DIR .* or to memory"):
        Journal.of("/dev/null/state")


def overwrite(path):
    path.write_bytes(b"x" * 10_000)


def spoil(path):
    """A page in the middle of it."""
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)


def make_newer(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()


@pytest.mark.parametrize(("harm", "words"), [(overwrite, "damaged"), (spoil, "damaged"), (make_newer, "newer")])
def test_a_file_that_cannot_be_used_is_kept_beside_the_new_one(harm, words, tmp_path):
    Journal.of(str(tmp_path)).close()
    harm(tmp_path / "journal.db")
    harmed = (tmp_path / "journal.db").read_bytes()
    for _ in range(2):
        journal = Journal.of(str(tmp_path))
        assert journal.counts()["claimed"] == 0
        kept = [path for path in tmp_path.iterdir() if "set-aside" in path.name and not path.name.endswith("shm")]
        assert harmed in [path.read_bytes() for path in kept]
        journal.close()
        if journal.set_aside is None:
            break
        assert words in journal.set_aside
    assert journal.set_aside is None, "once is enough"


def test_a_visitor_never_sets_aside(tmp_path):
    Journal.of(str(tmp_path)).close()
    overwrite(tmp_path / "journal.db")
    with pytest.raises(ExitError, match="cannot be read"):
        statefile.visit(str(tmp_path))
    assert not [path for path in tmp_path.iterdir() if "set-aside" in path.name]


def test_a_full_disk_is_told_and_the_next_write_works(tmp_path):
    file = statefile.own(str(tmp_path))
    pages = file.db.execute("PRAGMA page_count").fetchone()[0]
    file.db.execute(f"PRAGMA max_page_count={pages + 2}")
    journal = Journal(file)
    with pytest.raises(JournalError, match="full"):
        journal.settle(0, "complete", "big", {"output": "x" * 100_000}, 0.0)
    assert journal.pending(RESULTS) == []
    journal.settle(0, "complete", "small", {}, 0.0)
    assert len(journal.pending(RESULTS)) == 1
    journal.close()


def test_its_load_counts_what_must_not_be_dropped(journal):
    empty = journal.load()
    assert (empty.entries, empty.oldest) == (0, None)
    journal.settle(0, "complete", "one", {"output": "x" * 100_000}, 5.0)
    journal.settle(0, "complete", "two", {}, 7.0)
    journal.bury(journal.pending(RESULTS)[0], "no")
    load = journal.load()
    assert (load.entries, load.oldest) == (2, 7.0)
    assert load.size >= empty.size + 90_000
    for number in journal.pending(RESULTS) + journal.pending(DEAD):
        journal.done(number)
    assert journal.load().size <= empty.size + 8192, "what was said makes room"


BOUNDS = Bounds(size=1000, entries=10, age=60.0, reserve=500)


@pytest.mark.parametrize(
    ("load", "free", "words"),
    [
        (Load(999, 9, 41.0), 500, None),
        (Load(1000, 0, None), 500, "holds 1000 bytes"),
        (Load(0, 10, None), 500, "10 results"),
        (Load(0, 1, 40.0), 500, "has waited for 60 s"),
        (Load(0, 0, None), 499, "499 bytes left"),
        (Load(0, 0, None), None, None),
    ],
)
def test_there_is_no_room_past_any_bound(load, free, words):
    reason = no_room(load, free, BOUNDS, now=100.0)
    assert reason is None if words is None else words in reason
