"""Graph diff reports: what changed between two models, for a reviewer."""

from __future__ import annotations

from fgcompile.report.changes import GroupChange as GroupChange
from fgcompile.report.changes import Measure as Measure
from fgcompile.report.changes import Member as Member
from fgcompile.report.changes import Note as Note
from fgcompile.report.changes import Pinned as Pinned
from fgcompile.report.changes import Variant as Variant
from fgcompile.report.changes import Verification as Verification
from fgcompile.report.compare import diff_summaries as diff_summaries
from fgcompile.report.diff import diff as diff
from fgcompile.report.graph_diff import GraphDiff as GraphDiff
from fgcompile.report.load import summarize as summarize
from fgcompile.report.summary import ModelSummary as ModelSummary
