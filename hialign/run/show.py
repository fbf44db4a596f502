"""What the notebooks show of a step: all that they call beside the steps themselves."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import AutoModelForCausalLM, PreTrainedModel

from hialign.engine.measures import choice
from hialign.engine.models import config_of, load_tokenizer
from hialign.engine.modules import decoder_layers, target_modules
from hialign.judging.ledger import source_of
from hialign.judging.local import LocalJudge
from hialign.records import frames
from hialign.records.files import read_jsonl
from hialign.records.stages import command_of, judge_of
from hialign.records.status import cell_status, probe_status
from hialign.report import display, plots, run_tables
from hialign.report.display import Table, span, table_of
from hialign.report.judge_tables import judge_line
from hialign.report.where import (
    frontier,
    gradients,
    ila,
    overview,
    patching,
    signal,
    swaps,
    sweep,
)
from hialign.run.texts import answers as answers
from hialign.run.texts import html, text
from hialign.run.texts import pair as pair
from hialign.run.texts import prompts as prompts
from hialign.study.blocks import strategy_of
from hialign.study.rubric import Rubric, load_rubric, messages
from hialign.study.settings import ModelSettings
from hialign.study.study import Cell, Study, stages_of

# The functions that draw each probe's record. Its notebook calls them by their names.
VIEWS: Mapping[str, Sequence[Callable[[Study], Any]]] = {
    "gradients": (
        signal.signal,
        signal.resolution,
        signal.thirds,
        signal.interaction,
        gradients.curves,
        gradients.along,
        gradients.inequality,
    ),
    "matrix": (sweep.matrix, sweep.effects),
    "ila": (ila.gates, ila.rankings, ila.overlaps, ila.interventions),
    "patching": (
        patching.made,
        swaps.profile,
        swaps.thirds,
        patching.changes,
        patching.recovery,
        patching.rank,
    ),
    "sweep": (sweep.windows, sweep.controls),
    "weights": (overview.layers, overview.overview),
    "frontier": (frontier.frontier, frontier.points),
}
STATUS = {
    "missing": "has not run yet",
    "done": "has run with these settings before",
    "stale": "has run before, and what it left is out of date",
    "damaged": "has run before, and its files were changed since",
    "failed": "failed the last time",
}
NEXT = {"train": ("respond",), "respond": ("evaluate", "judge"), "evaluate": ("judge",)}
COSTS = {  # the fields of a record that say what a stage did, and their columns
    "strategy": "Strategy",
    "probe": "Probe",
    "pairs": "Pairs",
    "prompts": "Prompts",
    "n": "Responses",
    "steps": "Optimizer steps",
    "tokens": "Tokens",
    "cut": "Cut at the limit",
    "empty": "Empty",
    "done": "Scored now",
    "reused": "Scored before",
    "failed": "Failed",
    "cost": "Cost (USD)",
}


def heading(stage: str, *cells: Cell) -> HTML:
    """What is about to run, one line per cell: a stage of a cell, or `probe-…` of its model."""
    lines = []
    for cell in cells:
        about = f"<b>{escape(cell.model.label)}</b>"
        probe = stage.removeprefix("probe-")
        if probe != stage:
            status, what = probe_status(cell.study, cell.model, probe), f"The {probe} probe"
        else:
            status, what = cell_status(cell, stage), f"The stage {stage}"
            about += f", block <b>{escape(cell.block)}</b> ({escape(cell.strategy)})"
        about += f", <b>{cell.seed}</b>" if cell.seed else ""
        about += f", study <b>{escape(cell.study.name)}</b>."
        lines.append(f"{about} {what} {STATUS[status]}.")
    return html("<br>".join(lines))


def next_steps(stage: str, *cells: Cell) -> HTML:
    """The commands that go on from a stage of some cells, and the one that does all the rest."""
    stages = [
        (cell, after) for after in NEXT.get(stage, ()) for cell in cells if after in stages_of(cell)
    ]
    commands = [command_of(cell, after) for cell, after in stages]
    commands.append(f"hialign reproduce {cells[0].study.argument}")
    lines = "\n".join(commands)
    return html(f"<pre><code>{escape(lines)}</code></pre>")


# --- training --------------------------------------------------------------------------------------


def partition(thirds: Mapping[str, range], *cells: Cell) -> Table:
    """The three blocks of a model (`split_layers`), and the layers that some cells tune."""
    depth = thirds["global"].stop
    layers: dict[str, Sequence[int]] = {f"block {name}": third for name, third in thirds.items()}
    layers |= {f"tuned by {cell.strategy}": choice(cell, depth).layers for cell in cells}
    rows = [
        {
            "Which": name,
            "Layers": span(chosen) or "none",
            "How many": len(chosen),
            "Drawn": "".join("■" if layer in chosen else "□" for layer in range(depth)),
        }
        for name, chosen in layers.items()
    ]
    table = table_of(rows)
    table.attrs["caption"] = f"{depth} layers, counted from 0"
    return table


def adapters(*cells: Cell) -> Table:
    """How many parameters the adapters of some cells of one model have (section 3.2.3).

    An adapter of rank r on a matrix of m x n has r (m + n) parameters. The model's shapes are read
    from its configuration, and no weights are loaded.
    """
    training, model = cells[0].study.training, without_weights(cells[0].model)
    _, depth = decoder_layers(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for cell in cells:
        chosen = choice(cell, depth)
        rank = chosen.rank or training.lora_rank
        matrices = chosen.modules or target_modules(model, chosen.layers, training.target_modules)
        trained = rank * sum(sum(model.get_submodule(name).weight.shape) for name in matrices)
        rows.append(
            {
                "Strategy": cell.strategy,
                "Matrices with an adapter": len(matrices),
                "Rank": rank if matrices else 0,
                "Parameters that train": trained,
                "Share of the model (%)": 100 * trained / total,
            }
        )
    table = table_of(rows)
    table.attrs["caption"] = (
        f"The model itself has {total:,} parameters, and all of them are frozen"
    )
    return table


def without_weights(settings: ModelSettings) -> PreTrainedModel:
    """A model's modules and their shapes on torch's `meta` device, which takes no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(settings))


def loss(*cells: Cell) -> Figure:
    """The DPO loss of each optimizer step of some cells, and log 2, where an untrained model is."""
    figure, (axes,) = plots.canvas(6, 3)
    axes.axhline(math.log(2), color="grey", linestyle="--", linewidth=1, label="log 2: untrained")
    for cell in cells:
        file = cell.folder / "training.jsonl"
        steps = read_jsonl(file) if file.is_file() and cell.block != "base" else []
        if steps:
            axes.plot(
                [step["step"] for step in steps],
                [step["loss"] for step in steps],
                marker="o" if len(steps) < 60 else "",
                color=plots.colour_of(cell.study, cell.block),
                label=plots.plain(cell.strategy),
            )
    axes.set(xlabel="optimizer step", ylabel="DPO loss (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def confinement(*manifests: Mapping[str, Any]) -> Table | HTML:
    """What training changed, from checksums of every tensor before and after it."""
    tuned = [manifest for manifest in manifests if manifest.get("confinement")]
    columns: display.Columns = {
        "Strategy": "strategy",
        "Original tensors checked": "confinement.base_parameters_checked",
        "Original tensors changed": "confinement.base_parameters_changed",
        "Adapter tensors": "confinement.adapter_tensors",
        "Adapter tensors changed": "confinement.adapter_tensors_changed",
        "Layers with adapters": lambda manifest: span(manifest["confinement"]["adapted_layers"]),
    }
    if not tuned:
        return html("Base is not tuned, and there is nothing to check.")
    return display.view(tuned, columns)


def costs(*records: Mapping[str, Any]) -> Table:
    """What a stage did and what it took, one row per record."""
    rows = []
    for record in records:
        row: dict[str, Any] = {
            title: record[key]
            for key, title in COSTS.items()
            if isinstance(record.get(key), str | int | float)
        }
        row |= {"Minutes": record["seconds"] / 60}
        row |= {"Peak memory (GiB)": record["peak_memory_bytes"] / 2**30}
        rows.append(row | {"Device": record["device"]})
    table = table_of(rows)
    return Table(table.astype({"Tokens": int})) if "Tokens" in table else table


# --- measures --------------------------------------------------------------------------------------


def evaluation(*contents: Mapping[str, Any]) -> Table:
    """The accuracies and margins of some `evaluation.json`, one row per objective, with intervals."""
    rows = [
        {"strategy": _strategy(content), "objective": name} | values
        for content in contents
        for name, values in content["objectives"].items()
    ]
    columns: display.Columns = {"Strategy": "strategy", "Pairs of": "objective", "Pairs": "n"}
    for name in ("likelihood_accuracy", "reward_accuracy", "reward_margin"):
        title = name.replace("_", " ")
        columns[title.capitalize()] = name
        columns[f"95% interval of {title}"] = (f"{name}_low", f"{name}_high")
    return display.view(rows, columns)


def divergence(*contents: Mapping[str, Any]) -> Table:
    """How far cells have moved from Base on their own responses, and how long these are."""
    rows = [{"strategy": _strategy(content)} | content["divergence"] for content in contents]
    columns: display.Columns = {
        "Strategy": "strategy",
        "KL from Base (nats/token)": "kl",
        "95% interval of KL": ("kl_low", "kl_high"),
        "Response length (tokens)": "response_tokens",
        "95% interval of length": ("response_tokens_low", "response_tokens_high"),
    }
    return display.view(rows, columns)


def _strategy(content: Mapping[str, Any]) -> str:
    """The strategy of the cell that a record is of."""
    return strategy_of(content["settings"]["block"])


def rubric(content: Rubric) -> Table:
    """The dimensions of a rubric with their groups and definitions."""
    rows = [
        {"Group": group, "Dimension": name, "What is scored from 1 to 5": content.dimensions[name]}
        for group, names in content.groups.items()
        for name in names
    ]
    return table_of(rows)


def request(cell: Cell, item: Mapping[str, Any]) -> HTML:
    """What the study's judge is given for one response: the text before its answer begins.

    A local judge is asked for one dimension at a time, and this is the request for the first.
    """
    judge = judge_of(cell.study)
    rubric = load_rubric(judge.rubric)
    if judge.backend == "openai":
        turns = messages(rubric, item["prompt"], item["response"])
        return text("\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns))
    tokenizer = load_tokenizer(source_of(judge))
    local = LocalJudge(without_weights(source_of(judge)), tokenizer, rubric, judge.name)
    ids = local.prompt_ids(item["prompt"], item["response"], next(iter(rubric.dimensions)))
    return text(tokenizer.decode(ids))


def scores(cell: Cell) -> Table:
    """The mean score of each dimension over the cell's responses, and how many have one."""
    table = frames.judgments(cell.study)
    own = table[(table["model"] == cell.model.label) & (table["block"] == cell.block)]
    means = own.groupby("dimension", sort=False)["score"].agg(["mean", "std", "count"])
    names = {
        "dimension": "Dimension",
        "mean": "Mean score",
        "std": "Std",
        "count": "Responses scored",
    }
    shown = Table(means.reset_index().rename(columns=names))
    shown.attrs["caption"] = judge_line(cell.study)
    return shown


# --- probes ----------------------------------------------------------------------------------------


def settings(cell: Cell, probe: str) -> Table:
    """The settings of a probe: its own, and those that all probes of the study share."""
    parts = cell.probe_settings(probe)
    return run_tables.flat(parts[probe] | parts["probes"])


def view(cell: Cell, probe: str, name: str) -> Any:
    """A figure or a table (`VIEWS`) of a probe's record of the cell's model."""
    draw = {function.__name__: function for function in VIEWS[probe]}[name]
    return draw(cell.study.model_copy(update={"models": [cell.model]}))
