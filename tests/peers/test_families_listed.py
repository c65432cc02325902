"""`shardwright families` says what a layout is checked against: that it is. Run by `make compare`."""

import test_families_automodel
import test_families_torchtitan
from shardwright.cli.commands.families import PEERS, families
from tiny_models import TINY

#: Checked by tests of their own: test_nemo_automodel.py, test_transformers.py; as a part of Mistral 3; by its file.
OTHERWISE = {
    ("minimax_m3", "automodel"),
    ("minimax_m3", "transformers"),
    ("mistral4", "automodel"),
    ("mistral4", "transformers"),
    ("step3p5", "automodel"),
    ("bailing_moe_v2", "automodel"),
}


def test_every_layout_is_checked_against_the_peer_that_is_named():
    types = {tiny.id: tiny.model_type for tiny in TINY}
    run = {
        PEERS["transformers"]: set(types.values()),
        PEERS["automodel"]: {types[case.tiny] for case in test_families_automodel.CASES if case.tiny},
        PEERS["torchtitan"]: {types[case.tiny] for case in test_families_torchtitan.CASES},
    }
    unchecked = {
        (one["family"], layout)
        for one in families()["families"]
        for layout, peer in one["layouts"].items()
        if not run[peer] & {*one["model_types"]}
    }
    assert unchecked == OTHERWISE
