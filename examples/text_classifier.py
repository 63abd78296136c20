"""A text classifier on real text, split: which topic is a docstring of Python's standard library about?

    python examples/text_classifier.py [--out out] [--seed 0] [--quick]

Real: the docstrings of functions, methods and classes of some ninety modules of the standard library that runs this script, in six
topics; nothing is imported or downloaded, the sources are only read. A fifth of the docstrings, by a hash of their text, is held
out. They come from the same modules as the others, so that the accuracy says how well a module's vocabulary is learned, not how
well new modules are understood. A small transformer, trained in seconds, then runs whole and cut in two, through the real packets
and codecs, in this process. Synthetic: the machines and links that the plan is made for (experiments.py). Figures depend on the
version of Python. Writes text_classifier.png and text_classifier.csv.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import torch
from experiments import declared, finish, link, options
from torch import Tensor, nn

import splitinfer
from cluster.topology import Compute, TierSpec, Topology
from splitinfer import Graph, Plan

TOPICS = {
    "network": "http urllib socket socketserver ssl ftplib poplib imaplib smtplib xmlrpc ipaddress email mailbox",
    "files": "os posixpath ntpath genericpath pathlib shutil tempfile tarfile zipfile gzip bz2 lzma glob fnmatch fileinput filecmp",
    "numbers": "fractions decimal _pydecimal statistics random numbers colorsys _pylong datetime _pydatetime calendar",
    "tasks": "threading asyncio multiprocessing concurrent subprocess queue sched signal selectors contextlib",
    "language": "ast tokenize dis inspect importlib pkgutil compileall py_compile lib2to3 code codeop symtable traceback types typing",
    "text": "string textwrap re difflib gettext locale html xml json csv configparser pprint reprlib codecs stringprep",
}
WORDS, LENGTH, WIDTH = 2000, 48, 64
CODECS = ("raw", "zstd", "fp16", "int8")
TOPOLOGY = Topology(
    (TierSpec("phone", Compute(factor=10)), TierSpec("cloud", Compute())), (link("phone", "cloud", 2, 0.020, 20),)
)  # fmt: skip


class Classifier(nn.Module):
    """(batch, 48) numbers of words -> (batch, 6) scores; 0 stands for no word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.place = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.outlet = nn.Linear(WIDTH, len(TOPICS))

    def forward(self, words: Tensor) -> Tensor:
        state = self.words(words) + self.place
        for block in self.blocks:
            state = block(state)
        answer: Tensor = self.outlet(state.mean(1))
        return answer


class Block(nn.Module):
    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.asks, self.mixes = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.drop = nn.Dropout(0.3)

    def forward(self, state: Tensor) -> Tensor:
        batch, length, _ = state.shape
        asked, keys, values = (
            part.reshape(batch, length, self.heads, -1).transpose(1, 2) for part in self.asks(self.before(state)).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(asked, keys, values).transpose(1, 2).reshape(batch, length, WIDTH)
        state = state + self.drop(self.mixes(mixed))
        answer: Tensor = state + self.drop(self.narrow(torch.relu(self.wide(self.between(state)))))
        return answer


def docstrings() -> Iterator[tuple[str, int]]:
    """Each text of eight words or more once, and its topic."""
    library, seen = Path(sysconfig.get_path("stdlib")), set[str]()
    for topic, modules in enumerate(TOPICS.values()):
        for module in modules.split():
            files = [library / f"{module}.py", *sorted((library / module).rglob("*.py"))]
            for file in files:
                if file.exists() and "test" not in file.parts and "tests" not in file.parts:
                    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
                        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                            text = ast.get_docstring(node) or ""
                            if len(split_words(text)) >= 8 and text not in seen:
                                seen.add(text)
                                yield text, topic


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def numbers(texts: list[str], known: dict[str, int]) -> Tensor:
    """(n, 48); 1 stands for a word that is not known."""
    made = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in enumerate(texts):
        held = [known.get(word, 1) for word in split_words(text)[:LENGTH]]
        made[row, : len(held)] = torch.tensor(held)
    return made


def train(model: Classifier, words: Tensor, topics: Tensor, epochs: int) -> None:
    """In place; rare topics count as much as others."""
    weights = 1 / torch.bincount(topics, minlength=len(TOPICS)).float()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=5e-2)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(words)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(words[batch]), topics[batch], weights).backward()
            optimiser.step()
    model.eval()


def in_two(graph: Graph, codec: str) -> Plan:
    """Cut in the middle, before the second block, whatever a plan would say."""
    names = list(graph.layers)
    middle = next(place for place, name in enumerate(names) if name.startswith("blocks.1"))
    return Plan.by_hand(graph, [names[:middle], names[middle:]], ["phone", "cloud"], dict.fromkeys(graph.tensors, codec))


def main() -> None:
    chosen = options(__doc__ or "", "text_classifier")
    pairs = list(docstrings())
    held = [crc32(text.encode()) % 5 == 0 for text, _ in pairs]
    learned = [text for (text, _), out in zip(pairs, held, strict=True) if not out]
    counts = Counter(word for text in learned for word in split_words(text))
    known = {word: number for number, (word, _) in enumerate(counts.most_common(WORDS - 2), 2)}
    words, topics, out = numbers([text for text, _ in pairs], known), torch.tensor([topic for _, topic in pairs]), torch.tensor(held)
    model = Classifier()
    train(model, words[~out], topics[~out], 1 if chosen.quick else 12)
    graph = splitinfer.capture(model, (words[:1],))
    tests, truth = words[out], topics[out].numpy()
    if chosen.quick:
        tests, truth = tests[:60], truth[:60]
    with torch.no_grad():
        whole = torch.cat([model(each[None]) for each in tests]).numpy()
    plans = {f"in two, {codec}": in_two(graph, codec) for codec in CODECS}
    plans["best plan"] = splitinfer.plan(declared(graph, CODECS), TOPOLOGY, codecs=("raw", "zstd"))
    found, nbytes = {"whole": whole}, {}
    for name, plan in plans.items():
        pipeline = splitinfer.Pipeline.local(graph, plan)
        answers = [pipeline.traced(each[None]) for each in tests]
        found[name] = torch.cat([answer for answer, _ in answers]).numpy()
        nbytes[name] = float(np.mean([trace.nbytes() for _, trace in answers]))
    rows: list[dict[str, object]] = [
        {
            "run": name, "accuracy": float((said.argmax(1) == truth).mean()),
            "same_answer_as_whole": float((said.argmax(1) == whole.argmax(1)).mean()),
            "largest_difference": float(np.abs(said - whole).max()), "bytes_up": nbytes.get(name, 0.0),
        }
        for name, said in found.items()
    ]  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    table = np.zeros((len(TOPICS),) * 2)
    np.add.at(table, (truth, whole.argmax(1)), 1)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    left.imshow(share, cmap="Greens", vmin=0, vmax=1)
    for (row, column), part in np.ndenumerate(share):
        left.text(column, row, f"{part:.0%}", ha="center", va="center", fontsize=8, color="white" if part > 0.6 else "black")
    left.set_xticks(range(len(TOPICS)), list(TOPICS), rotation=30)
    left.set_yticks(range(len(TOPICS)), list(TOPICS))
    left.set(xlabel="answer", ylabel="topic", title=f"{len(truth)} held-out docstrings, whole model")
    right.scatter([row["bytes_up"] for row in rows[1:]], [row["accuracy"] for row in rows[1:]], color="#1f77b4")
    right.axhline(float(rows[0]["accuracy"]), color="#2ca02c", lw=1.2, label="whole model")
    right.axhline(float(np.bincount(truth).max() / len(truth)), color="#bbbbbb", lw=1.2, label="always the most frequent topic")
    for height, row in enumerate(rows[1:]):
        at = row["bytes_up"], row["accuracy"]
        right.annotate(str(row["run"]), at, xytext=(4, 8 + 11 * (height % 3)), textcoords="offset points", fontsize=8)
    right.set(xlabel="bytes up for each text", ylabel="accuracy", ylim=(0, 1))
    right.set_xlim(-500, 1.25 * max(row["bytes_up"] for row in rows))
    right.legend(frameon=False, loc="lower right")
    formats = {"run": "", "accuracy": ".1%", "same_answer_as_whole": ".1%", "largest_difference": ".1e", "bytes_up": ",.0f"}
    shown = [[format(row[key], wanted) for key, wanted in formats.items()] for row in rows]
    print(f"{len(pairs):,} docstrings, {len(truth)} held out, {len(TOPICS)} topics; the best plan is on "
          f"{', '.join(stage.tier for stage in plans['best plan'].stages)}.\n")  # fmt: skip
    finish(figure, rows, shown, ["run", "accuracy", "same answer", "largest difference", "bytes up"], chosen.out / "text_classifier")


if __name__ == "__main__":
    main()
