"""One self-contained page about a plan: its graph, a request in time, three clocks, bandwidths, trade-offs (docs/report.md).

    from splitinfer.report import examine

    examine(plan, profile).save("report.html")

Needs no torch and, once written, no network: pictures are SVG drawn here, and no script is needed to read them.
"""

from splitinfer.report.findings import Findings, examine
from splitinfer.report.traces import Traces, load_traces

__all__ = ["Findings", "Traces", "examine", "load_traces"]
