"""The demo teacher that ships came from the configuration that rebuilds it (make demo-teacher)."""

import json
from pathlib import Path
from typing import Any

from core.artefacts.contents import content_hash
from core.artefacts.manifest import read_manifest
from core.provenance import read_learned
from distill.training_run import run_identity
from tests.composing import configured

SHIPPED = Path(__file__).resolve().parent.parent / "teachers" / "demo" / "fold=0"


def test_it_is_what_its_manifest_says_and_its_configuration_is_ours() -> None:
    manifest = read_manifest(SHIPPED, "student")
    assert content_hash(SHIPPED) == manifest.content
    ours = json.loads(json.dumps(run_identity(configured("+exp=demo_teacher")))) | {"loss": manifest.config["loss"]}
    assert manifest.config == known_to(manifest.config, ours)
    assert manifest.config["loss"]["soft_weight"] == 0  # on votes alone


def known_to(old: Any, new: Any) -> Any:
    """`new` without the keys that came after `old` was written: their defaults leave things as they were."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {key: known_to(old.get(key), value) for key, value in new.items() if key in old}


def test_it_is_small_and_never_saw_the_demo_s_conversations() -> None:
    from core.data.arena_sim import simulate

    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 8 * 2**20
    seen = read_learned(SHIPPED).directly
    config = configured("+exp=demo")
    assert config.data.simulate is not None
    overlap = [c for c in simulate(config.data.simulate)[0] if c.fingerprint() in seen]
    assert len(overlap) <= 1
