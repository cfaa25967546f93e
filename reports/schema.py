"""The JSON schema of ``leaderboard.json``, made from the columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stab import gva
from stab.reports.columns import COLUMNS, POSITIVE, SCHEMA, TEXT, UNFINISHED, Column


def schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of what ``stab report RUN --format json`` prints."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "leaderboard.json of stab",
        "additionalProperties": False,
        **_record(
            schema={"const": SCHEMA},
            protocol={"const": gva.PROTOCOL},
            run=_record(
                smoke={"type": "boolean", "description": "Whether numbers have no meaning."},
                budget=TEXT,
                settings={"type": "object", "description": "The resolved config.yaml."},
                tasks={"type": "object", "additionalProperties": _task()},
            ),
            entries={
                "type": "array",
                "description": "Task by task; ranked ones first.",
                "items": _entry(),
            },
        ),
    }


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*properties], "properties": properties}


def _task() -> dict[str, Any]:
    said = {"type": ["string", "null"]}
    return _record(
        learned={"type": ["boolean", "null"], "description": "Whether none returns at least 0.2."},
        resolution=_or_null(POSITIVE)
        | {"description": "GVA below which the swing of none could hardly be told from none."},
        warnings={"type": "array", "items": TEXT},
        verdict=said | {"description": "What the seeds allow one to say against none."},
        more_seeds=said | {"description": "How many seeds would show more, and the command."},
        none=_or_null(POSITIVE) | {"description": "GVA of none."},
    )


def _entry() -> dict[str, Any]:
    """One (task, stabilizer); in those that failed or were skipped, figures are null."""
    figures = [column.key for column in COLUMNS if column.figure is not None]
    complete = [c for c in COLUMNS if c.null == "unfinished"]
    return _record(**{column.key: _property(column) for column in COLUMNS}) | {
        "allOf": [
            _if_status(["ranked"], {"rank": {"type": "integer"}}, {"rank": {"type": "null"}}),
            _if_status(
                UNFINISHED,
                _all_of("null", figures) | {"reason": TEXT},
                {c.key: {"type": c.kind["type"]} for c in complete} | _all_of("null", ["reason"]),
            ),
        ]
    }


def _property(column: Column) -> dict[str, Any]:
    kind = dict(column.kind) if column.null == "never" else _or_null(column.kind)
    return kind | {"description": column.about}


def _or_null(kind: Any) -> dict[str, Any]:
    return {**kind, "type": [kind["type"], "null"]}


def _all_of(kind: str, keys: Iterable[str]) -> dict[str, Any]:
    return {key: {"type": kind} for key in keys}


def _if_status(statuses: list[str], then: Any, otherwise: Any) -> dict[str, Any]:
    condition = {"properties": {"status": {"enum": statuses}}}
    return {
        "if": condition,
        "then": {"properties": then},
        "else": {"properties": otherwise},
    }
