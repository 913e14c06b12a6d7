"""``parallax zoo list``: the reference models by name."""

from __future__ import annotations

from rich.console import Console

from parallax import zoo
from parallax.cli._console import Screen, make_table, print_table
from parallax.cli._types import show_shape
from parallax.cli._units import count, size


def list_zoo(*, screen: Screen) -> None:
    """Names, sizes and inputs of the models that ``zoo:NAME`` stands for; reads their cards only."""
    cards = [zoo.info(name) for name in zoo.names()]
    report = {
        "models": [
            {
                "name": card.name,
                "title": card.title,
                "task": card.task,
                "nodes": card.nodes,
                "parameters": card.parameters,
                "weight_bytes": card.weight_bytes,
                "file_bytes": card.file_bytes,
                "opset": card.opset,
                "licence": card.licence,
                "source": card.source,
                "inputs": [{"name": e.name, "type": e.dtype, "shape": list(e.shape)} for e in card.inputs],
                "outputs": list(card.outputs),
            }
            for card in cards
        ]
    }

    def render(console: Console) -> None:
        table = make_table("name", "model", "inputs", "operators", "parameters", "file", left=3)
        for card in cards:
            inputs = ", ".join(f"{entry.name} {show_shape(entry.shape)}" for entry in card.inputs)
            table.add_row(card.name, card.title, inputs, str(card.nodes), count(card.parameters), size(card.file_bytes))
        print_table(console, table, optional=("inputs", "model"))
        console.print(
            "\nUse zoo:NAME wherever a command takes a model. Files are made on first use; weights are random."
        )

    screen.show(report, render)
