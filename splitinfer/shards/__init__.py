"""Vertical splits: a run of layers divided inside, over workers, by rows, channels or heads (docs/vertical.md)."""

from splitinfer.shards.blocks import Block, BlockPlan, plan_blocks
from splitinfer.shards.divide import AXES, Units, apportion, divide, units
from splitinfer.shards.exchange import Combine, Exchange, Part, Piece, Send
from splitinfer.shards.program import ShardedBlock, ShardProgram, dump_program, load_program, run_local
from splitinfer.shards.whole import ShardedModel

__all__ = [
    "AXES", "Block", "BlockPlan", "Combine", "Exchange", "Part", "Piece", "Send", "ShardProgram", "ShardedBlock", "ShardedModel", "Units",
    "apportion", "divide", "dump_program", "load_program", "plan_blocks", "run_local", "units",
]  # fmt: skip
