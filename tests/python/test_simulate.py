"""``shardwright simulate``: what it prints is what plans say, and its page needs nothing from elsewhere."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reference
import shardwright as sw
from command import output_of, shardwright
from shardwright import _core
from shardwright.cli.simulate import amount

MESH = "ep=2,pp=2,dp=3"
RANKS = 12


def simulated(*arguments: str | Path) -> dict:
    return json.loads(output_of("simulate", *arguments, "--json"))


@pytest.fixture(scope="module")
def facts(tiny: Path) -> dict:
    return simulated(tiny, "--mesh", MESH, "--ranks-per-node", "5")


def test_each_rank_is_what_the_command_plan_says_of_it(tiny: Path, facts: dict):
    assert [rank["rank"] for rank in facts["rank_list"]] == list(range(RANKS))
    for rank in facts["rank_list"]:
        plan = json.loads(output_of("plan", tiny, "--mesh", MESH, "--rank", str(rank["rank"]), "--json"))
        assert rank["bytes_needed"] == plan["bytes_needed"]
        assert rank["bytes_held"] == plan["bytes_written"]
        assert rank["tensors"] == plan["tensors"]
        names = [file["name"] for file in facts["files"]]
        # A weight's scales lie next to it, but may have come to the next file.
        assert {transfer["file"] for transfer in plan["transfers"]} <= {
            names[int(f)] for f in rank["file_bytes"]
        }


def test_all_ranks_together_need_the_checkpoint_and_save_the_model_once(tiny: Path, facts: dict):
    stored = reference.read_checkpoint(tiny)
    native = reference.native(tiny)
    assert (
        facts["distinct_bytes"]
        == facts["checkpoint_bytes"]
        == sum(tensor.nbytes for tensor in stored.values())
    )
    native_bytes = sum(tensor.numel() * tensor.element_size() for tensor in native.values())
    assert facts["native_bytes"] == native_bytes
    assert sum(rank["bytes_saved"] for rank in facts["rank_list"]) == native_bytes


def test_planning_a_save_is_counted_in_json_table_and_page(facts: dict, tmp_path: Path):
    save = facts["save"]
    assert save["bytes_unchanged"] == RANKS * (2 * 16 + 2)  # a letter and two hashes, and a letter back
    assert save["bytes_unchanged"] < save["bytes_exchanged"] < 60_000
    assert facts["bytes_exchanged_by_load"] == 0
    page = tmp_path / "page.html"
    table = output_of("simulate", "--preset", "tiny", "--mesh", MESH, "--html", page)
    for text in (table, page.read_text()):
        for figure in ("bytes_exchanged", "bytes_unchanged"):
            assert amount("bytes", save[figure]) in text


def test_minimum_mean_and_maximum_are_those_of_the_ranks_and_of_each_stage(facts: dict):
    def check(ranks: list[dict], spreads: dict) -> None:
        for name, spread in spreads.items():
            values = [rank[name] for rank in ranks]
            assert spread == {
                "min": min(values),
                "mean": pytest.approx(sum(values) / len(values)),
                "max": max(values),
            }

    check(facts["rank_list"], facts["per_rank"])
    assert [stage["stage"] for stage in facts["stages"]] == [0, 1]
    for stage in facts["stages"]:
        check([rank for rank in facts["rank_list"] if rank["stage"] == stage["stage"]], stage["per_rank"])
    nodes = facts["node_list"]
    assert [node["node"] for node in nodes] == [0, 1, 2]
    for name in ("bytes_needed", "bytes_read", "requests"):
        for node in nodes:
            ranks = facts["rank_list"][node["node"] * 5 : node["node"] * 5 + 5]
            assert node[name] == sum(rank[name] for rank in ranks)
    distinct = sum(node["bytes_distinct"] for node in nodes)
    assert facts["amplification"]["alone"] == sum(node["bytes_read"] for node in nodes) / distinct
    assert facts["amplification"]["together"] == sum(node["bytes_read_together"] for node in nodes) / distinct


def test_files_count_their_ranks(facts: dict):
    for number, file in enumerate(facts["files"]):
        readers = [
            rank["file_bytes"][str(number)]
            for rank in facts["rank_list"]
            if str(number) in rank["file_bytes"]
        ]
        assert (file["ranks"], file["bytes_read"]) == (len(readers), sum(readers))


def test_a_preset_is_what_generate_writes(facts: dict):
    made = simulated("--preset", "tiny", "--mesh", MESH, "--ranks-per-node", "5")

    def measured_or_named(name: str) -> bool:
        return "seconds" in name or name == "source"

    def counted(tree: dict) -> dict:
        return {
            name: [counted(item) for item in value]
            if name.endswith("_list")
            else counted(value)
            if name == "save"
            else value
            for name, value in tree.items()
            if not measured_or_named(name) and name not in ("stages", "per_rank")
        }

    assert counted(made) == counted(facts)


def test_times_follow_from_the_counts_and_the_speeds():
    speeds = {
        "read-bandwidth": 2.0,
        "node-bandwidth": 3.0,
        "decode-bandwidth": 4.0,
        "request-milliseconds": 5.0,
        "requests-in-flight": 6.0,
        "connection-bandwidth": 7.0,
        "exchange-milliseconds": 8.0,
        "exchange-megabytes": 0.1,
    }
    arguments = [text for name, value in speeds.items() for text in (f"--{name}", str(value))]
    mesh = ["--preset", "tiny", "--mesh", "replicate=4,shard=2", "--ranks-per-node", "4"]
    facts = simulated(*mesh, *arguments)
    nodes = facts["node_list"]
    alone, together = facts["seconds"]["alone"], facts["seconds"]["together"]
    assert alone["reading"] == pytest.approx(max(node["bytes_read"] for node in nodes) / 2e9)
    assert together["reading"] == pytest.approx(max(node["bytes_read_together"] for node in nodes) / 2e9)
    assert alone["requests"] == pytest.approx(max(node["requests"] for node in nodes) * 5e-3 / 6)
    handed = max(node["bytes_needed"] - node["bytes_distinct"] for node in nodes)
    assert handed > 0 and alone["handing around"] == 0
    assert together["handing around"] == pytest.approx(handed / 3e9)
    assert (
        alone["decoding"]
        == together["decoding"]
        == pytest.approx(facts["per_rank"]["bytes_held"]["max"] / 4e9)
    )
    job, ways = facts["seconds"]["job"], facts["ways"]
    everything = facts["checkpoint_bytes"]  # all of which somebody needs, and nobody reads over
    from_others = [node["bytes_needed"] - everything / 2 for node in nodes]
    assert job["reading"] == pytest.approx(everything / 2 / 2e9) and alone["between nodes"] == 0
    rounds = math.ceil(max(from_others) / 1e5)
    assert job["between nodes"] == pytest.approx(max(from_others) / 7e9 + rounds * 8e-3)
    assert ways["alone"]["bytes_from_storage"] == sum(node["bytes_read"] for node in nodes)
    assert ways["together"]["bytes_from_storage"] == sum(node["bytes_read_together"] for node in nodes)
    assert ways["job"]["bytes_from_storage"] == everything == facts["job_bytes"]
    assert ways["job"]["bytes_on_wire"] == pytest.approx(sum(from_others))
    assert ways["alone"]["bytes_on_wire"] == ways["together"]["bytes_on_wire"] == 0
    assert facts["best"] == min(facts["seconds"], key=lambda way: sum(facts["seconds"][way].values()))

    slow = simulated(*mesh, "--storage-rate", "0.001")
    assert slow["best"] == "job"
    assert slow["seconds"]["job"]["reading"] == pytest.approx(everything / 1e6)
    assert slow["seconds"]["alone"]["reading"] == pytest.approx(
        sum(node["bytes_read"] for node in nodes) / 1e6
    )


def test_a_sample_of_nodes_tells_of_the_whole_job():
    mesh = ["--preset", "tiny", "--mesh", "replicate=4,shard=4", "--ranks-per-node", "2"]
    every, some = simulated(*mesh), simulated(*mesh, "--sample", "2")
    assert (some["simulated_nodes"], every["simulated_nodes"]) == (1, 8)
    for way in ("alone", "together", "job"):
        rate = some["ways"][way]["bytes_from_storage"] / every["ways"][way]["bytes_from_storage"]
        assert 0.9 < rate < 1.1, (way, rate)
    assert some["ways"]["job"]["bytes_from_storage"] == every["checkpoint_bytes"]


def test_table_and_page_say_which_way_is_best_and_by_which_rates(tmp_path: Path):
    page = tmp_path / "page.html"
    mesh = ["--preset", "tiny", "--mesh", "replicate=4,shard=2", "--ranks-per-node", "2"]
    mesh += ["--storage-rate", "0.001"]
    text = output_of("simulate", *mesh, "--html", page)
    assert "the job's ranks together (best)" in text
    for words in ("the storage gives all nodes 0.001 GB/s", "a node gets 50 GB/s from others"):
        assert words in text and words in page.read_text()


def test_the_table_has_the_figures(facts: dict):
    text = output_of("simulate", "--preset", "tiny", "--mesh", MESH, "--ranks-per-node", "5")
    assert "ep 2 × pp 2 × dp 3 = 12 ranks" in text
    for word in ("planning", "bytes read", "requests", "extents", "minimum", "mean", "maximum", "stage"):
        assert word in text
    assert f"{facts['amplification']['alone']:.3f}" in text


class Page(HTMLParser):
    """Refuses tags that do not match, and collects what could lead elsewhere."""

    VOID = ("meta", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("mesh", [MESH, "", "shard=3", "pp=3,replicate=200"])
def test_the_page_is_whole_and_refers_to_nothing_outside(mesh: str, tmp_path: Path):
    file = tmp_path / "page.html"
    output_of("simulate", "--preset", "tiny", "--mesh", mesh, "--html", file)
    text = file.read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert page.counts["svg"] == 5 and page.counts["rect"] > 20
    assert (
        not {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use"}
        & page.counts.keys()
    )
    assert not {"src", "href", "xlink:href", "srcset", "data", "action"} & {
        name for name, _ in page.attributes
    }
    assert not re.search(r"://|url\(|@import|@font-face|//[a-z]", text)
    assert "nan" not in text.lower() and "inf" not in re.findall(r'="([^"]*)"', text)


def test_names_from_disk_are_text_in_the_page(tmp_path: Path):
    path = tmp_path / "<b>&amp;'\""
    sw.generate(path, preset="tiny", layout_only=True)
    output_of("simulate", path, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<b>&amp;'" not in text and "&lt;b&gt;&amp;amp;" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["path", "--preset"]),
        (["somewhere", "--preset", "tiny"], ["not both"]),
        (["somewhere", "--layers", "4"], ["--layers", "--preset"]),
        (["--preset", "tiny", "--mesh", "tp=2"], ["tp=2", "pp", "dp", "ep_shard"]),
        (["--preset", "tiny", "--mesh", "pp=2,pp=2"], ["pp again"]),
        (["--preset", "tiny", "--mesh", "pp=4"], ["pp=4", "1 to 3"]),
        (["--preset", "tiny", "--ranks-per-node", "0"], ["ranks_per_node"]),
        (["--preset", "tiny", "--read-bandwidth", "0"], ["--read-bandwidth", "above 0"]),
        (["--preset", "tiny", "--read-bandwidth", "nan"], ["--read-bandwidth", "above 0"]),
        (["--preset", "tiny", "--html", "/nowhere/at/all.html"], ["No such file"]),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: list[str], words: list[str]):
    run = shardwright("simulate", *arguments)
    assert run.returncode != 0 and not run.stdout
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in run.stderr


def test_dense_says_which_ranks_share_what_is_no_expert():
    def others(dense: str) -> int:
        catalog = _core.generated_catalog("tiny")
        native = _core.native_tensors(catalog, _core.weight_map(catalog))
        specs = _core.specs_on_mesh(native, _core.parse_mesh("ep=2,pp=1"), 0, dense)
        (embedding,) = [spec for spec in specs if "embed_tokens" in spec.fqn]
        return embedding.local_shape[0]

    assert others("named") == 2 * others("stage") == 2 * others("auto")
    assert shardwright("plan", "x", "--dense", "all").returncode != 0
