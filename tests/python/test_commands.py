"""What holds for each command: JSON is one object, a failure says so last, and progress is for terminals alone."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shardwright as sw
import torch
import torch.distributed.checkpoint as dcp
from command import output_of, shardwright
from shardwright.cli.command_line import COMMANDS
from shardwright.cli.progress import ERASE_LINE, line_of, shown
from shardwright.cli.simulate import simulate
from shardwright.progress import Watched, counters_of, watched

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, tiny: Path) -> dict[str, Path]:
    """A checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    weights = sw.empty_state_dict(tiny)
    sw.load(weights, tiny)
    state = {"model": weights, "step": 3, "optim": {"lr": 0.5}}
    sw.save(state, folder / "sharded")
    sw.save(state, folder / "torch_too", format="torch")
    dcp.save(state, checkpoint_id=folder / "torchs", no_dist=True)
    return {"Hugging Face": tiny} | {name: folder / name for name in ("sharded", "torch_too", "torchs")}


def test_every_command_gives_one_json_object(kinds: dict[str, Path], tmp_path: Path):
    tiny = kinds["Hugging Face"]
    runs = {
        "generate": [tmp_path / "generated"],
        "inspect": [tiny],
        "families": [],
        "plan": [tiny, "--mesh", "ep=2"],
        "simulate": [tiny, "--mesh", "ep=2"],
        "load": [tiny, "--ranks", "2"],
        "verify": [tiny],
        "convert": [kinds["torchs"], tmp_path / "converted"],
        "export": [tiny, tmp_path / "exported", "--ranks", "2"],
    }
    assert [*runs, "completion"] == list(COMMANDS)
    for command, arguments in runs.items():
        facts = json.loads(output_of(command, *arguments, "--json"))
        assert isinstance(facts, dict) and facts, command
    tensor = "model.layers.1.mlp.experts.down_projs"
    explained = json.loads(output_of("plan", tiny, "--explain", tensor, "--json"))
    assert {transfer["destination"] for transfer in explained["transfers"]} == {tensor}


def test_json_has_each_rank(kinds: dict[str, Path], tmp_path: Path):
    tiny = kinds["Hugging Face"]
    ranks = json.loads(output_of("load", tiny, "--ranks", "2", "--json"))["ranks"]
    held = sum(tensor.nbytes for tensor in sw.empty_state_dict(tiny).values())
    assert len(ranks) == 2 and sum(rank["bytes_written"] for rank in ranks) == held
    ranks = json.loads(output_of("export", tiny, tmp_path, "--ranks", "2", "--json"))["ranks"]
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert len(ranks) == 2 and sum(rank["bytes_written"] for rank in ranks) == size


def test_inspect_counts_what_verify_counts(kinds: dict[str, Path]):
    for name, path in kinds.items():
        seen = json.loads(output_of("inspect", path, "--json"))
        verified = json.loads(output_of("verify", path, "--json"))
        for what in ("kind", "files", "tensors", "objects"):
            assert seen[what] == verified[what], (name, what)
        assert set(seen["names"]) and f"{seen['tensors']:,}" in output_of("inspect", path)
    weights = sum(t.numel() * t.element_size() for t in sw.empty_state_dict(kinds["Hugging Face"]).values())
    for name in ("sharded", "torch_too", "torchs"):
        seen = json.loads(output_of("inspect", kinds[name], "--json"))
        assert seen["bytes"] == weights and sorted(seen["names_of_objects"]) == ["optim.lr", "step"]
        assert seen["parts"] == {"model": seen["tensors"], "step": 1, "optim": 1}


def test_a_failure_is_the_last_line_and_nothing_is_printed(tiny: Path, tmp_path: Path):
    bad = tmp_path / "bad"
    output_of("generate", bad)
    next(bad.glob("model-00001*")).unlink()
    for arguments in (
        ["inspect", tmp_path / "nowhere"],
        ["load", bad, "--json"],
        ["plan", tiny, "--mesh", "sideways=2", "--json"],
        ["export", bad, tmp_path / "out", "--json"],
        ["convert", tiny, tmp_path / "out", "--json"],
        ["simulate", "--json"],
        ["generate", tiny, "--json"],
        ["load", tiny, "--model", "llama", "--ranks", "2", "--json"],
    ):
        run = shardwright(*arguments)
        assert run.returncode == 1 and run.stdout == "", arguments
        last = run.stderr.splitlines()[-1]
        assert last.startswith(f"shardwright {arguments[0]}: ") and len(last.split(": ", 1)[1]) > 10
    run = shardwright("verify", bad, "--json")
    assert run.returncode == 1 and json.loads(run.stdout)["problems"]
    assert run.stderr == f"shardwright verify: {bad}: 1 problem found\n"


def test_a_folder_of_steps_names_the_latest(tmp_path: Path):
    sw.save({"x": torch.ones(3)}, tmp_path, step=7)
    for command in ("inspect", "verify"):
        run = shardwright(command, tmp_path)
        assert run.returncode == 1 and str(tmp_path / "step-00000007") in run.stderr


def test_a_reader_that_has_seen_enough_is_no_failure(tiny: Path):
    command = f"'{sys.executable}' -m shardwright inspect '{tiny}' --json | head -1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert run.stderr == "" and run.stdout == "{\n"


def test_what_a_terminal_would_obey_is_written_by_its_number(tmp_path: Path):
    """Names are a stranger's: one that clears the screen hides what is said of it."""
    name = "a\x1b[2J\x9b31m\x07\u00e9.weight"
    sw.save({name: torch.ones(3)}, tmp_path / "saved")
    sw.export({name: torch.ones(3)}, tmp_path / "exported", layout="huggingface")
    damaged = next((tmp_path / "exported").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    outputs = []
    for command, path in (("inspect", "saved"), ("verify", "exported")):
        run = shardwright(command, tmp_path / path)
        outputs.append(run.stdout + run.stderr)
    assert any("a\\x1b[2J\\x9b31m\\x07\u00e9.weight" in output for output in outputs), outputs
    assert not any(character in output for output in outputs for character in "\x1b\x9b\x07")


def on_a_terminal(code: str) -> tuple[str, str]:
    """What a Python program writes on stderr, a terminal, and on stdout, which is none."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=subprocess.PIPE, stderr=slave, text=True
    )
    os.close(slave)
    shown_there = b""
    while True:
        try:
            more = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        shown_there += more
    os.close(master)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return shown_there.decode(), output


#: Looks at once, as a small checkpoint takes no two seconds.
EAGER = """
import sys
from shardwright.cli import progress
from shardwright.cli.command_line import main
progress.QUIET_SECONDS, progress.STEP_SECONDS = 0.0, 0.002
sys.exit(main(sys.argv[1:] or {arguments!r}))
"""


@pytest.mark.parametrize(
    "what, command",
    [
        ("generating", ["generate", "{new}", "--preset", "bench", "--layers", "5"]),
        ("simulating", ["simulate", "--preset", "full", "--mesh", "ep=64", "--sample", "16"]),
        ("verifying", ["verify", "{exported}"]),
        ("reading", ["load", "{small}"]),
        ("writing", ["export", "{small}", "{new}"]),
        ("converting", ["convert", "{torchs}", "{new}"]),
    ],
)
def test_a_terminal_shows_how_far_it_is_and_is_left_clean(
    what: str, command: list[str], small: Path, tmp_path: Path
):
    places = {"{small}": small, "{new}": tmp_path / "new"}
    for name in ("{exported}", "{torchs}"):
        if name not in command:
            continue
        weights = sw.empty_state_dict(small)
        sw.load(weights, small)
        places[name] = tmp_path / "from"
        if name == "{exported}":
            sw.export(weights, tmp_path / "from", template=small)
        else:
            dcp.save({"model": weights}, checkpoint_id=tmp_path / "from", no_dist=True)
    arguments = [str(places.get(word, word)) for word in command]
    there, output = on_a_terminal(EAGER.format(arguments=arguments))
    lines = there.split(ERASE_LINE)
    assert any(re.fullmatch(rf"{what} (.+ of .+, \d+ %, \d+ s.*|…, \d+ s)", line) for line in lines), there
    assert lines[-1] == "" and ERASE_LINE not in output and what not in output


def test_the_engine_counts_all_that_it_does(tiny: Path, tmp_path: Path):
    def counted(work) -> tuple[str, int]:
        with watched() as watch:
            work()
        assert watch.counters.done == watch.counters.total
        return watch.what, watch.counters.total

    stored = sw.read_catalog(tiny).tensors
    size = sum(tensor.end - tensor.begin for tensor in stored)
    weights = sw.empty_state_dict(tiny)
    assert counted(lambda: sw.generate(tmp_path / "new")) == ("generating", size)
    assert counted(lambda: sw.load(weights, tiny))[0] == "reading"
    elements = sum(t.end - t.begin for t in stored if not t.name.endswith("_scale_inv"))
    kind, wrote = counted(lambda: sw.export(weights, tmp_path / "out", template=tiny, quantization="mxfp8"))
    assert kind == "writing" and 0 < wrote <= elements
    hashed = sw.verify(tmp_path / "out").bytes_hashed
    scales = size - elements  # are looked at, too
    assert counted(lambda: sw.verify(tmp_path / "out")) == ("verifying", hashed + scales)
    sw.save({"model": weights, "step": 1}, tmp_path / "saved")
    hashed = sw.verify(tmp_path / "saved").bytes_hashed
    assert counted(lambda: sw.verify(tmp_path / "saved")) == ("verifying", hashed)
    dcp.save({"model": weights, "step": 1}, checkpoint_id=tmp_path / "torchs", no_dist=True)
    assert counted(lambda: sw.convert(tmp_path / "torchs", tmp_path / "ours"))[0] == "converting"
    catalog = sw.read_catalog(tiny)
    assert counted(lambda: simulate(catalog, "ep=2,pp=2,dp=3")) == ("simulating", 12)


def test_what_is_no_terminal_is_shown_nothing(capsys):
    with shown():
        assert counters_of("reading") is None
        time.sleep(0.01)
    assert capsys.readouterr().err == ""


def test_a_line_says_what_is_done_and_what_is_left():
    watch = Watched("reading", begun=100.0)
    watch.counters.set(1_500_000_000, 6_000_000_000)
    assert line_of(watch, 106.0) == "reading 1.50 GB of 6.00 GB, 25 %, 6 s, 18 s left"
    watch = Watched("simulating", "ranks", begun=0.0)
    watch.counters.set(16, 16)
    assert line_of(watch, 3.0) == "simulating 16 of 16 ranks, 100 %, 3 s"
    assert line_of(Watched(), 1.0) == "" and line_of(Watched("verifying"), 103.0) == "verifying …, 103 s"


def completed_by_bash(script: str, *words: str) -> set[str]:
    line = " ".join(f"'{word}'" for word in words)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shardwright; echo ${{COMPREPLY[@]}}"
    run = subprocess.run(["bash", "-uc", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_bash_completes_commands_options_and_choices():
    script = output_of("completion", "bash")
    assert completed_by_bash(script, "shardwright", "") == {*COMMANDS, "--help", "--version"}
    assert completed_by_bash(script, "shardwright", "ve") == {"verify"}
    assert completed_by_bash(script, "shardwright", "load", "--st") == {"--staging-bytes"}
    presets = completed_by_bash(script, "shardwright", "generate", "x", "--preset", "")
    assert presets == {"tiny", "small", "bench", "full"}
    assert completed_by_bash(script, "shardwright", "completion", "") == {"bash", "zsh", "fish"}
    assert completed_by_bash(script, "shardwright", "load", "some/pa") == set()  # files, by -o default
    assert completed_by_bash(script, "shardwright", "load", "x", "--trace", "") == set()


def completed_by_fish(script: Path, line: str) -> set[str]:
    code = f"source {script}; complete -C '{line}'"
    run = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and not run.stderr, run.stderr
    return {found.split("\t")[0] for found in run.stdout.splitlines()}


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_commands_options_and_choices(tmp_path: Path):
    script = tmp_path / "shardwright.fish"
    script.write_text(output_of("completion", "fish"))
    assert completed_by_fish(script, "shardwright ") >= set(COMMANDS)
    assert completed_by_fish(script, "shardwright ve") == {"verify"}
    assert completed_by_fish(script, "shardwright load --st") == {"--staging-bytes"}
    presets = completed_by_fish(script, "shardwright generate x --preset ")
    assert presets == {"tiny", "small", "bench", "full"}
    assert completed_by_fish(script, "shardwright completion ") == {"bash", "zsh", "fish"}
    assert completed_by_fish(script, f"shardwright load {tmp_path}/sh") == {str(script)}
    of_verify = completed_by_fish(script, "shardwright verify x --")
    assert (
        completed_by_fish(script, "shardwright verify export --") == of_verify
    )  # a path of a command's name


def typed_in_zsh(script: Path, setup: str, keys: str, until: str) -> str:
    """What a zsh on a terminal shows once ``until`` is there, or after two minutes."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="dumb", ZDOTDIR=str(script.parent), PS1="$ ")
        os.execvp("zsh", ["zsh", "-f", "-i"])
    shown = ""

    def read_until(text: str) -> None:
        nonlocal shown
        limit = time.monotonic() + 120
        while text not in shown and time.monotonic() < limit:
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")

    try:
        os.write(terminal, f"{setup}\nsource {script}\necho sour''ced\n".encode())
        read_until("sourced\r")
        assert "not found" not in shown, shown
        os.write(terminal, keys.encode())
        shown = ""
        read_until(until)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    return shown


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize("setup", ["true", "autoload -U compinit && compinit -i"], ids=["new", "set up"])
def test_zsh_completes_commands_options_and_choices(setup: str, tmp_path: Path):
    script = tmp_path / "shardwright.zsh"
    script.write_text(output_of("completion", "zsh"))
    for typed, completed in [
        ("shardwright ve", "verify "),
        ("shardwright load --st", "--staging-bytes "),
        ("shardwright generate x --preset be", "bench "),
        (f"shardwright load {tmp_path}/sh", "shardwright.zsh "),
    ]:
        assert completed in typed_in_zsh(script, setup, f"{typed}\t", completed)


#: Says when the engine has begun.
TELLING = """
import sys, threading, time
from shardwright.cli.command_line import main
from shardwright.progress import watched

def tell(watch):
    while watch.counters.done == 0:
        time.sleep(0.001)
    print("begun", flush=True)

with watched() as watch:
    threading.Thread(target=tell, args=[watch], daemon=True).start()
    sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "new", "--preset", "bench", "--layers", "14"],
        ["simulate", "--preset", "full", "--mesh", "pp=8,ep=64,ep_shard=2"],
    ],
    ids=lambda command: command[0],
)
def test_ctrl_c_stops_what_the_engine_does(command: list[str], tmp_path: Path):
    """Each takes several seconds, and is asked to stop when the engine has counted something."""
    process = subprocess.Popen(
        [sys.executable, "-c", TELLING.format(arguments=command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=300)
    assert (process.returncode, output, error) == (130, "", f"shardwright {command[0]}: stopped\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
