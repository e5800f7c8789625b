"""JSON rendering: the whole diff, with a published, versioned schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fgcompile.report.graph_diff import SCHEMA_VERSION, GraphDiff


def render_json(diff: GraphDiff) -> str:
    """Text that follows `docs/schema/graph-diff-1.json`, ending in a newline."""
    return json.dumps(as_document(diff), indent=2, ensure_ascii=False) + "\n"


def as_document(diff: GraphDiff) -> dict[str, Any]:
    """The diff as plain lists, strings and numbers, plus the derived facts."""
    document = asdict(diff)
    for entry, group in zip(document["groups"], diff.groups, strict=True):
        entry["kept_digest"] = group.kept_digest
    verified = diff.verdict.verified
    if verified is not None:
        document["verdict"]["verified"]["ok"] = verified.ok
    document["verdict"]["within_budget"] = diff.verdict.within_budget
    facts = {"same": diff.same, "breaking": diff.breaking}
    return {"schema_version": SCHEMA_VERSION, **facts, **document}
