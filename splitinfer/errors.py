"""Every error that splitinfer raises on purpose.

::

    SplitinferError
    |-- CaptureError        the model cannot be captured
    |-- CutError            the graph cannot be cut there
    |-- ShardError          a layer or block cannot be divided over workers
    |-- InputError          a call does not fit the captured inputs
    |-- CodecError          a codec name or an encoded tensor is wrong
    |-- PacketError         a packet is damaged, of another version, or larger than its limits
    |-- ProfileError        a profile does not fit the graph, or its file is malformed
    |-- PlanError           a plan does not fit the graph or topology, or its file is malformed
    |-- DeployError         the stages could not be started
    |-- StageError          a stage failed while it ran a request; carries stage, layer and the cause
    |   `-- StageLost       a process or machine is gone; the request itself can be tried again
    |       `-- WorkerLost      a machine that shared a layer is gone
    |           `-- Regrouped   the shares of a layer changed while a request was under way
    |-- RequestTimeout      a request outlived its deadline
    |-- Overloaded          more requests wait than may; this one was not taken
    |-- Closed              the pipeline takes no more requests
    |-- UsageError          a command line argument is wrong
    `-- MissingExtra        an optional package is not installed

Each message is complete in itself: what is wrong, with the numbers, and what to try.
"""

from __future__ import annotations


class SplitinferError(Exception):
    """Base of the tree; catching it catches everything that splitinfer raises on purpose."""


class CaptureError(SplitinferError):
    """The model cannot be captured; names the module and the reason."""


class CutError(SplitinferError):
    """The graph cannot be cut at the place asked for."""


class ShardError(SplitinferError):
    """A layer or block cannot be divided over workers; names the layer and the reason."""


class InputError(SplitinferError):
    """A call does not fit the inputs that the model was captured with."""


class CodecError(SplitinferError):
    """A codec name is unknown, or an encoded tensor is malformed."""


class PacketError(SplitinferError):
    """A packet was refused: damaged, of another version, or larger than its limits."""


class ProfileError(SplitinferError):
    """A profile does not fit its graph, or its file is malformed."""


class PlanError(SplitinferError):
    """A plan does not fit its graph or topology, or its file is malformed."""


class DeployError(SplitinferError):
    """The stages of a plan could not be started."""


class RequestTimeout(SplitinferError):
    """A request outlived its deadline."""


class Overloaded(SplitinferError):
    """More requests wait than may, so this one was not taken; nothing of it was done."""


class Closed(SplitinferError):
    """The pipeline is being closed, or never was opened, and takes no requests."""


class UsageError(SplitinferError):
    """A command line argument is wrong."""


class StageError(SplitinferError):
    """A stage failed while it ran a request.

    `stage` and `layer` name the place, `cause` is the original error as ``Type: message``, `remote_traceback` its trace.
    """

    def __init__(self, stage: str, layer: str, cause: str, remote_traceback: str = "") -> None:
        super().__init__(f"stage '{stage}' failed in layer '{layer}': {cause}")
        self.stage, self.layer, self.cause, self.remote_traceback = stage, layer, cause, remote_traceback

    def __reduce__(self) -> tuple[type[StageError], tuple[str, str, str, str]]:
        return type(self), (self.stage, self.layer, self.cause, self.remote_traceback)


class StageLost(StageError):
    """The process or the machine of a stage is gone or cannot be reached. The request can be tried again where its model keeps no state."""

    def __str__(self) -> str:
        return f"stage '{self.stage}' is lost: {self.cause}"


class WorkerLost(StageLost):
    """A machine that shared the layers of a stage is gone; `layer` is its name. What it held can be shared out again."""

    def __str__(self) -> str:
        return f"'{self.layer}', which shares the layers of stage '{self.stage}', is gone: {self.cause}"


class Regrouped(WorkerLost):
    """The layers of a stage were shared out anew while a request was under way; it can be tried again as it is."""


class MissingExtra(SplitinferError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"'{package}' is not installed; it comes with: pip install 'splitinfer[{extra}]'")
