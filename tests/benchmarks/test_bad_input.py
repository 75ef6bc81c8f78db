"""A thousand malformed suites, records, names, plug-ins, data files: one clear line each, nothing
done.
"""

import csv
import functools
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookback.benchmarks.measure import checkpoint
from lookback.benchmarks.measure.step import make_model, make_optimizer
from lookback.benchmarks.plugins import load_plugins
from lookback.benchmarks.record import LearnCell, Machine, Record, make_cell
from lookback.benchmarks.report.make import make_pages
from lookback.benchmarks.storage import read_record, read_records, write_record
from lookback.benchmarks.suite import read_suite, scaled
from lookback.models.model import model_names
from lookback.tasks import corpus
from lookback.tasks.lra.released import read_listops, read_pairs
from lookback.tasks.task import get_task, task_names
from tests.records import FACTS, as_cost, cost_record, learn_record

CELL = LearnCell(
    kind="learn",
    task="copy",
    model="rwkv",
    width=16,
    depth=1,
    length=24,
    batch_size=4,
    steps=6,
    test_lengths=(24, 40),
)
SUITE = """title = "A suite"
[defaults]
width = 8
depth = 1
batch_size = 2
[[grid]]
kind = "learn"
task = ["copy", "recall"]
model = ["rwkv", "lstm"]
length = [64, 128]
test_lengths = [64, 256]
scales = ["small", "paper"]
[[grid]]
kind = "cost"
task = "copy"
model = "rrwkv"
model_options = { interval = [4, 8], squeeze = [true, false] }
length = 64
[match]
to = "rwkv"
[scales.paper]
length = 32
match = { tolerance = 0.2 }
"""

many = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def is_rejected(call: Callable[[], object], *names: str) -> bool:
    """Whether bad input was refused: by ValueError, in one line, harmless to a terminal, that names
    the file.
    """
    try:
        call()
    except ValueError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 3000, message
        assert all(name in message for name in names), message
        return True
    return False


# --- suites

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -1]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=6,
)
TOML_VALUES = (
    "3",
    "-1",
    "nan",
    "inf",
    "1e400",
    '"x"',
    "[]",
    "[[]]",
    "[1, [2]]",
    "{}",
    "{ a = nan }",
    "true",
    "1979-05-27",
    "[{}]",
    '[{ a = [1, "b"] }, 3]',
    "9" * 5000,
    "[" * 3000,
    '"""\n"""',
    '"\\u0000"',
)


@settings(many, max_examples=300)
@given(data=st.data())
def test_malformed_suites_are_told_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mine.toml"
    lines = SUITE.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(lines) - 1))
        key = lines[number].split("=")[0]
        how = data.draw(st.sampled_from(["value", "drop", "twice", "text", "cut"]))
        lines[number : number + 1] = {
            "value": [f"{key}= {data.draw(st.sampled_from(TOML_VALUES))}"],
            "drop": [],
            "twice": [lines[number]] * 2,
            "text": [data.draw(st.text(max_size=30))],
            "cut": [lines[number][:-2]],
        }[how] or [""]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    for scale in ("small", "paper"):
        # type: ignore[misc]
        if not is_rejected(lambda scale=scale: read_suite(str(path), scale), "mine.toml"):
            assert read_suite(str(path), scale).cells
    assert list(tmp_path.iterdir()) == [path]


@settings(many, max_examples=100)
@given(content=st.binary(max_size=60))
def test_noise_is_no_suite(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.toml"
    path.write_bytes(content)
    assert is_rejected(lambda: read_suite(str(path)), "noise.toml")


def test_more_cells_than_anybody_measures_are_not_multiplied_out(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    numbers = ", ".join(map(str, range(1000)))
    path.write_text(f"[[grid]]\nseed = [{numbers}]\nlength = [{numbers}]\nsteps = [{numbers}]\n")
    with pytest.raises(
        ValueError, match=r"large.toml: grid 1: expected at most 100,000 cells, not 1,000,000,000"
    ):
        read_suite(str(path))


# --- records


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at] * bool(at) + [place for key, part in inner for place in places(part, (*at, key))]


def changed(tree: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    """The tree with the value at a place taken away, replaced, or given a neighbour."""
    tree = json.loads(json.dumps(tree))
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    if how == "drop":
        del parent[place[-1]]
    elif how == "replace" or isinstance(parent, list):
        parent[place[-1]] = value
    else:
        parent["".join(str(value))] = value
    return tree


RECORDS = [
    json.loads(record.model_dump_json())
    for record in (learn_record(CELL), cost_record(as_cost(CELL)))
]


@settings(many, max_examples=300)
@given(data=st.data())
def test_malformed_records_are_told_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    """What is read all the same is complete and of its cell; nothing in it was put right in
    silence.
    """
    whole = data.draw(st.sampled_from(RECORDS))
    place = data.draw(st.sampled_from(places(whole)))
    tree = changed(
        whole, place, data.draw(st.sampled_from(["drop", "replace", "add"])), data.draw(VALUES)
    )
    path = tmp_path / "stranger.json"
    path.write_text(json.dumps(tree))
    if not is_rejected(lambda: read_record(path), str(path)):
        record = read_record(path)
        assert record.cell_id == record.cell.id
        for key in place[:1]:
            if place == (key,) and key in tree:
                assert json.loads(record.model_dump_json())[key] == tree[key]


@settings(many, max_examples=100)
@given(data=st.data())
def test_damaged_records_are_told_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(data.draw(st.sampled_from(RECORDS))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    is_rejected(lambda: read_record(path), str(path))


@settings(many, max_examples=10)
@given(data=st.data())
def test_pages_are_made_of_whatever_numbers_can_be_read(
    tmp_path: Path, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from(RECORDS))
    numbers = []
    for place in places(whole["outcome"]):
        value = functools.reduce(lambda tree, key: tree[key], place, whole["outcome"])
        if type(value) in (int, float):
            numbers.append(("outcome", *place))
    place = data.draw(st.sampled_from(numbers))
    value = data.draw(st.sampled_from([0, 1, -1, 10**18, 0.0, 1e-300, 1e100]))
    folder = tmp_path / "some-machine" / "suite"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{whole['cell_id']}.json"
    path.write_text(json.dumps(changed(whole, place, "replace", value)))
    if not is_rejected(lambda: read_record(path), str(path)):
        make_pages(tmp_path, tmp_path / "pages", ["suite"])
    path.unlink()


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b'{"a":' * 100_000, b"1" * 100_000, b'"\\ud800"', b"\xff\xfe", b"null"],
)
def test_monsters_are_no_records(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "monster.json"
    path.write_bytes(content)
    assert is_rejected(lambda: read_record(path), str(path))


def test_folders_and_loops_are_no_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "gone")
    write_record(tmp_path, learn_record(CELL))
    assert len(list(read_records(tmp_path))) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


# --- names

NAMES = st.text(max_size=80) | st.sampled_from(
    [
        "..",
        ".",
        "",
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "x" * 65,
        "x" * 5000,
        "-rf",
        "~",
        "hf:../x",
        "hf:a:b",
        "C:x",
        "\u202egnp",
        "ａ",
        "é",
        "con ",
        "a..b",
        "..a",
        "a\r",
    ]
)


@settings(many, max_examples=200)
@given(name=NAMES)
def test_names_never_leave_their_folder(tmp_path: Path, name: str) -> None:
    """Of tasks, models, suites and machines: those that are not refused stand in the folder they
    should.
    """
    for field in ("task", "model"):
        # type: ignore[misc]
        if not is_rejected(
            lambda field=field: make_cell({**CELL.model_dump(), field: name}), field
        ):
            path = tmp_path / f"{make_cell({**CELL.model_dump(), field: name}).id}.json"
            assert path.resolve().parent == tmp_path.resolve() and len(path.name.encode()) < 250
    record = json.loads(learn_record(CELL).model_dump_json())
    path = tmp_path / "record.json"
    for tree in (
        {**record, "suite": name},
        {**record, "machine": {**record["machine"], "slug": name}},
    ):
        path.write_text(json.dumps(tree))
        if not is_rejected(lambda: read_record(path), "record.json"):
            found = read_record(path)
            folder = tmp_path / found.machine.slug / found.suite
            assert (
                folder.resolve().parent.parent == tmp_path.resolve()
                and not found.suite.startswith(".")
            )


@settings(many, max_examples=60)
@given(scale=NAMES)
def test_scales_never_leave_their_folder(tmp_path: Path, scale: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        SUITE.replace("[scales.paper]", f"[scales.{json.dumps(scale)}]"), encoding="utf-8"
    )
    if not is_rejected(lambda: read_suite(str(path), scale), "mine.toml"):
        assert (tmp_path / read_suite(str(path), scale).name).resolve().parent == tmp_path.resolve()
        assert read_suite(str(path), scale).name == scaled("mine", scale)


@pytest.mark.parametrize(
    "name",
    ["a b.toml", "..toml", "-x.toml", "a\nb.toml", "é.toml", "<script>.toml", "x" * 140 + ".toml"],
)
def test_suites_have_names_that_are_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(SUITE)
    assert is_rejected(lambda: read_suite(str(tmp_path / name)))


def test_numbers_that_make_no_file_name_are_refused() -> None:
    for field in ("length", "seed"):
        # type: ignore[misc]
        assert is_rejected(
            lambda field=field: make_cell({**CELL.model_dump(), field: 10**300}), field
        )


# --- plug-ins and data files


@settings(many, max_examples=100)
@given(
    content=st.binary(max_size=40),
    ending=st.sampled_from(["raise ValueError('a\\nb')", "(", "import nothing_there", "\0"]),
)
def test_broken_plugins_are_told_in_one_line(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / "plugin.py"
    text = re.sub(
        rb"[^\x20-\x7e]", b"#", content
    )  # a comment, so that chance never writes a program
    path.write_bytes(b"# " + text + b"\n" + ending.encode())
    before = model_names(), task_names()
    assert is_rejected(lambda: load_plugins([str(path)]), "plugin.py")
    assert (model_names(), task_names()) == before


@pytest.mark.parametrize(
    "text",
    ["import sys\nsys.exit(0)", "raise SystemExit('bye')", "import os\nraise OSError(1, 'x\\ny')"],
)
def test_a_plugin_that_would_end_everything_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "plugin.py").write_text(text)
    assert is_rejected(lambda: load_plugins([str(tmp_path / "plugin.py")]), "plugin.py")


def test_only_python_files_are_plugins(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "data.txt").write_text("raise SystemExit")
    for name in ("folder.py", "data.txt", "gone.py"):
        # type: ignore[misc]
        assert is_rejected(lambda name=name: load_plugins([str(tmp_path / name)]), name)


LISTOPS = b"Source\tTarget\n( ( [MAX 1 ) 2 ] )\t2\n"
PAIRS = b"1.0\t1\t2\tone text\tanother\n0.0\t3\t4\ta\tb\n"


@settings(many, max_examples=200)
@given(data=st.data())
def test_malformed_data_files_are_told_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    for whole, read in (
        (LISTOPS, lambda path: read_listops(path, 32)),
        (PAIRS, read_pairs.__wrapped__),
    ):
        content = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(content)))
            content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=3))
        path = tmp_path / "data.tsv"
        path.write_bytes(content)
        is_rejected(lambda read=read, path=path: read(path), "data.tsv")  # type: ignore[misc]


@settings(many, max_examples=100)
@given(facts=VALUES | st.fixed_dictionaries({"bytes": VALUES}), raw=st.binary(max_size=20))
def test_malformed_corpora_are_told_in_one_line(tmp_path: Path, facts: Any, raw: bytes) -> None:
    for split in corpus.SPLITS:
        (tmp_path / f"{split}.bytes").write_bytes(b"12345")
    for content in (json.dumps(facts).encode(), raw):
        (tmp_path / "corpus.json").write_bytes(content)
        assert is_rejected(lambda: corpus._open.__wrapped__(tmp_path), str(tmp_path))


# --- strangers: their checkpoints run no code, their records no script


class Bomb:
    """What unpickling runs."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_a_strangers_checkpoint_runs_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(CELL, get_task(CELL.task))
    optimizer = make_optimizer(model, CELL.learning_rate, CELL.weight_decay)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = [tmp_path / f"went-off-{number}" for number in range(4)]
    newest, older = (tmp_path / name for name in checkpoint.NAMES)
    state = {"step": 1, "seen": torch.zeros(1, dtype=torch.int64)}
    sound = {
        "model": before,
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": [],
        "state": state,
    }
    for content in (
        {**sound, "state": Bomb(places[0])},
        Bomb(places[1]),
        {**sound, "extra": [Bomb(places[2])]},
    ):
        torch.save(content, newest)
        older.write_bytes(pickle.dumps(Bomb(places[3])))
        assert checkpoint.load(tmp_path, model, optimizer, CELL).step == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(place.exists() for place in places)
    torch.load(newest, weights_only=False)  # the bomb is one
    assert places[2].exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"random": "nothing"},
        {"optimizer": {}},
        {"optimizer": {"state": {}, "param_groups": [1]}},
        {"model": {}},
        {"state": {"step": "1", "seen": torch.zeros(1)}},
        {"state": {}},
        {"state": {"step": 1, "seen": 3, "x": 1}},
    ],
)
def test_a_checkpoint_of_other_content_changes_nothing(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    model = make_model(CELL, get_task(CELL.task))
    optimizer = make_optimizer(model, CELL.learning_rate, CELL.weight_decay)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: tensor + 1 for name, tensor in before.items()}
    sound = {
        "model": other,
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": [],
        "state": {"step": 1, "seen": torch.zeros(1, dtype=torch.int64)},
    }
    torch.save({**sound, **wrong}, tmp_path / checkpoint.NAMES[0])
    numbers = torch.get_rng_state()
    assert checkpoint.load(tmp_path, model, optimizer, CELL).step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)


SCRIPT = "<script>alert(1)</script>"
EVIL = (
    SCRIPT,
    "=cmd|' /C calc'!A0",
    "[click](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "$\\frac{$",
    "\x1b[2J",
    "a\n\n# Title\n\n<img src=x onerror=alert(1)>",
    "| a | b |",
    "\u202egnp",
    "{{ 7 * 7 }}",
    "'\"><svg onload=alert(1)>",
)


def strangers(text: str) -> list[Record]:
    """Records with a text wherever one may stand; where it is refused, it is left out."""
    found = []
    for base, make in ((CELL, learn_record), (as_cost(CELL), cost_record)):
        for model in ("rwkv", "transformer"):
            for length in (24, 48):
                fields = {
                    "model": model,
                    "length": length,
                    "task_options": {"way": text},
                    "model_options": {"option": text, text: 1} if model == "rwkv" else {},
                }
                cell = make_cell({**base.model_dump(), **fields})
                record = make(cell)
                facts = FACTS.model_copy(
                    update={"source": text, "data": {"revision": text, text: text}}
                )
                found.append(
                    record.model_copy(
                        update={
                            "outcome": record.outcome.model_copy(
                                update={"task": facts, "message": text, "kernels": (text,)}
                            ),
                            "versions": {"python": text, text: "1"},
                            "commit": text,
                            "started": text,
                            "ended": text,
                            "machine": Machine(
                                slug="m",
                                device="A Machine",
                                facts={"cpu": text, text: 1, "load_before": text},
                            ),
                        }
                    )
                )
        record, failed = found[-1], cell.model_copy(update={"seed": 5})
        outcome = record.outcome.model_copy(
            update={"status": "error", "message": text, "learn": None, "cost": None}
        )
        found.append(
            record.model_copy(update={"cell": failed, "cell_id": failed.id, "outcome": outcome})
        )
    return found


def harmless(path: Path) -> None:
    """No tag, link or formula of a record's own stands in what was made of it."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        for row in csv.reader(content.splitlines()):
            assert not any(value.startswith(("=", "@", "\t", "\r")) for value in row), (path, row)
        return
    for words in ("<script>alert", "<img src=x", "<svg onload", 'href="javascript', 'src="http'):
        assert words not in content, (path, words)
    if path.suffix == ".md":
        assert not any(
            words in content for words in ("\x1b", "](javascript", "](http://example.org")
        )
        assert not re.search(r"^# Title", content, re.MULTILINE)


def test_a_strangers_records_run_no_script(tmp_path: Path) -> None:
    text = " ".join(EVIL)
    for record in strangers(text):
        write_record(tmp_path / "results", Record.model_validate_json(record.model_dump_json()))
    make_pages(tmp_path / "results", tmp_path / "reports", style="paper")
    files = [
        path
        for path in (tmp_path / "reports").rglob("*")
        if path.suffix in (".md", ".csv", ".html", ".svg")
    ]
    assert len(files) > 5
    for path in files:
        harmless(path)


@pytest.mark.parametrize("text", EVIL)
def test_titles_take_no_markup(text: str) -> None:
    """Where a text stands outside tables, as a device's name does, markup is refused with the
    record.
    """
    record = json.loads(learn_record(CELL).model_dump_json())
    if any(sign in text for sign in "<[$\x1b\n"):
        with pytest.raises(ValueError, match="device"):
            Record.model_validate(
                {**record, "machine": {**record["machine"], "device": text}}, strict=False
            )
    with pytest.raises(ValueError, match="suite"):
        Record.model_validate({**record, "suite": text}, strict=False)


def test_there_are_a_thousand() -> None:
    """Of malformed things: the examples that the tests above draw, counted."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert sum(map(int, re.findall(r"max_examples=(\d+)", source))) >= 1000
