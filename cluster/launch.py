"""Ray nodes on this machine, one per tier, so that a laptop runs what three machines would.

The head lives in the highest tier: the loss of a device must not end the cluster. Every node carries the label
``splitinfer-tier``, by which the stages are placed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.errors import ClusterError
from cluster.security import environment, token_environment, write_token

TIER_LABEL = "splitinfer-tier"
"""The label of a Ray node that says which tier it is."""

# Measured on two nodes: with the first two a packet of 600 KB takes 1.6 ms from actor to actor instead of 5.8 (it stays in the
# call instead of going through the object store); with the third a transfer over a slow link is never sent again from the start.
# The rest is about faults (docs/cluster.md): Ray ends a process, an application too, that has been without the head for 60 s;
# a node asks once a minute whether the head still knows it; and a node that was killed counts as alive for 15 s. None of these
# is made to give up earlier on what merely does not answer: being declared dead costs a node all its actors.
RAY_SETTINGS = {
    "RAY_max_direct_call_object_size": "16000000",
    "RAY_task_rpc_inlined_bytes_limit": "64000000",
    "RAY_object_manager_pull_timeout_ms": "600000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "31536000",
    "RAY_raylet_liveness_self_check_interval_ms": "2000",
    "RAY_health_check_period_ms": "1000",
}
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone: a tier says its device itself
    "RAY_DEDUP_LOGS": "0",
    "RAY_usage_stats_enabled": "0",
    "RAY_task_events_max_num_task_in_gcs": "2000",  # Ray's 100,000 let the head grow by 190 MB in some minutes of requests
}
OBJECT_STORE_NBYTES = 512 << 20  # stages travel through it once; requests do not


class LocalCluster:
    """Several Ray nodes on this machine; a context manager that leaves nothing running.

    `tiers` lists the tiers in order, the data's birthplace first. `cpus` is what each node offers to its actors.
    """

    def __init__(self, tiers: Sequence[str], *, cpus: int | None = None) -> None:
        if not tiers or len(set(tiers)) != len(tiers):
            raise ClusterError(f"a cluster needs distinct tiers; got {list(tiers)}")
        self.tiers = tuple(tiers)
        self.cpus = cpus or os.cpu_count() or 1
        self._exit = contextlib.ExitStack()
        self.address = ""
        """Where Ray's head listens, once started."""

    def __enter__(self) -> LocalCluster:
        """Start the nodes and connect this process. Raises ClusterError where Ray is already in use here."""
        import ray

        if ray.is_initialized():
            raise ClusterError("this process is already connected to Ray; call ray.shutdown() first, or deploy on that cluster")
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Disconnect and stop every node, in the reverse order of their start."""
        self._exit.close()

    def _start(self) -> None:
        import ray
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        home = Path(tempfile.mkdtemp(prefix="splitinfer-"))
        self._exit.callback(shutil.rmtree, home, ignore_errors=True)
        token = home / "token"
        write_token(token)
        self._exit.callback(reread_settings)
        self._exit.enter_context(environment(node_environment(token)))
        reread_settings()
        tame()
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # Cluster notes its address there
        nodes = Cluster(shutdown_at_exit=True)
        self._exit.callback(nodes.shutdown)
        for tier in reversed(self.tiers):
            with _silent():
                nodes.add_node(**self._node(tier, home))
        self.address = nodes.address
        self._exit.callback(ray.shutdown)
        with _silent():
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)

    def _node(self, tier: str, home: Path) -> dict[str, Any]:
        return {
            "num_cpus": self.cpus,
            "labels": {TIER_LABEL: tier},
            "object_store_memory": OBJECT_STORE_NBYTES,
            "temp_dir": str(home / "ray"),
            "include_dashboard": False,
        }


def node_environment(token: Path) -> dict[str, str]:
    """The settings of every node and driver of a cluster with this token's file."""
    return {**token_environment(token), **RAY_SETTINGS, **_QUIET}


def reread_settings() -> None:
    """Ray reads the environment once, when it is imported, and keeps the token it found: make it look again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def tame() -> None:
    """Keep Ray from what it does unasked: a call that comes after the end starts a Ray of its own; news of nodes go to stdout."""
    from ray._private import auto_init_hook, worker

    auto_init_hook.enable_auto_connect = False
    worker._worker_logs_enabled = False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Ray logs its start at length; errors still show."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
