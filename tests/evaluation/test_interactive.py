"""One question to all strategies: against each adapter loaded alone and plain forward passes."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import made_pairs, write_study

from hialign import load_model, load_study, respond, train_together
from hialign.evaluation import explorer as explorations
from hialign.evaluation import strategies
from hialign.evaluation.explorer import Explorer
from hialign.records.explorations import Answer, Candidate, Exploration, Parting
from hialign.records.files import read_json, write_json, write_record
from hialign.records.stages import stage_manifest
from hialign.report import exploration
from hialign.run import parameters
from hialign.study import paths
from hialign.study.errors import HialignError
from hialign.study.study import Cell, Study

QUESTION = made_pairs(1)[0]["prompt"]
BLOCKS = ["base", "full", "mid"]
ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A tiny study, trained and answered once for this module, in outputs of its own."""
    folder = tmp_path_factory.mktemp("explored")
    before = os.environ.get("HIALIGN_OUTPUTS")
    os.environ["HIALIGN_OUTPUTS"] = str(folder / "outputs")
    study = load_study(write_study(folder, "explored", blocks=BLOCKS))
    train_together(study.cells())
    for cell in study.cells():
        respond(cell)
    yield study
    del os.environ["HIALIGN_OUTPUTS"]
    if before is not None:
        os.environ["HIALIGN_OUTPUTS"] = before


@pytest.fixture
def copied(trained: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The trained study in outputs that a test may change."""
    shutil.copytree(paths.study_dir(trained.name), tmp_path / "copy" / trained.name)
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(tmp_path / "copy"))
    return trained


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(explorations, "Strategies", refuse)


def alone(cell: Cell) -> Any:
    """The strategy's model as PEFT has it with this one adapter; Base without PEFT."""
    from peft import PeftModel

    model, _ = load_model(cell.model)
    if cell.block == "base":
        return model
    return PeftModel.from_pretrained(model, cell.folder / "adapter").eval()


def plain_log_probs(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p of each token of an answer by one plain forward pass over the whole, unpadded."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1)


def test_log_probs_are_those_of_each_adapter_alone(trained: Study) -> None:
    explorer = Explorer(trained.cells()[0])
    made = explorer._ask(QUESTION)
    prompt = explorer.load().prompt(QUESTION, 10_000)
    assert list(made.answers) == list(made.log_probs) == BLOCKS
    worst = 0.0
    for cell in trained.cells():
        model = alone(cell)
        for of, answer in made.answers.items():
            plain = plain_log_probs(model, prompt, answer.ids)
            expected = plain[range(len(answer.ids)), answer.ids]
            found = torch.tensor(made.log_probs[cell.block][of])
            worst = max(worst, float((found - expected).abs().max()))
    assert worst < 2e-5, worst  # float32 sums in another order, and six decimals
    spread = [sum(made.log_probs[b]["base"]) for b in BLOCKS]
    assert max(spread) - min(spread) > 0.01, "strategies that do not differ would prove nothing"


def test_base_is_the_model_with_adapters_disabled(trained: Study) -> None:
    """To the bit, in the same batch: and the tuned ones are not."""
    loaded = Explorer(trained.cells()[0]).load()
    untouched, _ = load_model(trained.models[0])
    ids = torch.tensor([loaded.prompt(QUESTION, 10_000)])
    with torch.inference_mode():
        plain = untouched(input_ids=ids).logits
        for block in ("mid", "base", "full", "base"):
            with loaded.active(block) as model:
                assert torch.equal(model(input_ids=ids).logits, plain) == (block == "base"), block


def test_answers_are_those_of_respond_which_loads_one_adapter(trained: Study) -> None:
    explorer = Explorer(trained.cells()[0])
    for prompt, stored in list(explorer.stored().items())[:3]:
        made = explorer._ask(prompt)
        for block in BLOCKS:
            assert made.answers[block].text == stored.answers[block].text
            assert made.answers[block].finish_reason == stored.answers[block].finish_reason


def test_the_greedy_token_is_the_likeliest_and_partings_are_where_answers_part(
    trained: Study,
) -> None:
    explorer = Explorer(trained.cells()[0])
    made = explorer._ask(QUESTION)
    prompt = explorer.load().prompt(QUESTION, 10_000)
    models = {cell.block: alone(cell) for cell in trained.cells()}
    pairs = {p.blocks: p for p in made.partings}
    differ = [
        (a, b)
        for a, b in itertools.combinations(BLOCKS, 2)
        if made.answers[a].ids != made.answers[b].ids
    ]
    assert differ, "answers that do not differ would prove nothing"
    assert set(pairs) == set(differ)
    for (a, b), parting in pairs.items():
        ids = made.answers[a].ids, made.answers[b].ids
        assert ids[0][: parting.alike] == ids[1][: parting.alike]
        assert ids[0][parting.alike] != ids[1][parting.alike]
        for column, block in enumerate((a, b)):
            whole = made.answers[block].ids
            there = plain_log_probs(models[block], prompt, whole)[parting.alike].exp()
            assert int(there.argmax()) == whole[parting.alike]
            values = [c.probabilities[column] for c in parting.candidates]
            assert max(values) == pytest.approx(float(there.max()), abs=2e-5)
        assert len(parting.candidates) >= explorations.CANDIDATES


def test_one_forward_pass_a_strategy_scores_all_answers(trained: Study) -> None:
    loaded = Explorer(trained.cells()[0]).load()
    passes: list[int] = []
    inner = loaded.model.get_base_model().model
    handle = inner.register_forward_hook(lambda _, __, output: passes.append(len(output[0])))
    scored = loaded.score("mid", [5, 6, 7], [[8], [9, 10, 11], [12, 13]])
    handle.remove()
    assert passes == [3]
    assert [len(values) for values in scored] == [1, 3, 2]


# --- what is shown -------------------------------------------------------------------------------


def test_differences_sum_to_those_of_the_answers(trained: Study) -> None:
    made = Explorer(trained.cells()[0])._ask(QUESTION)
    plain, relative = exploration.matrix(made), exploration.matrix(made, minus_base=True)
    for row, of in enumerate(BLOCKS):
        frame = exploration.differences(made, of)
        assert list(frame["token"]) == made.answers[of].pieces
        for block, name in (("full", "under Full-DPO"), ("mid", "under Mid-Align")):
            total = sum(made.log_probs[block][of]) - sum(made.log_probs["base"][of])
            assert frame[block].sum() == pytest.approx(total, abs=1e-9)
            assert relative[name][row] == pytest.approx(total, abs=5e-4)
            assert plain[name][row] - plain["under Base"][row] == pytest.approx(total, abs=2e-3)
    assert "under Base" not in relative.columns


def test_the_plot_has_a_line_a_strategy_in_its_colour(trained: Study) -> None:
    from matplotlib.colors import to_hex

    from hialign.report.plots import PALETTE

    made = Explorer(trained.cells()[0])._ask(QUESTION)
    each, sums = exploration.plot(made, "mid", trained).axes
    frame = exploration.differences(made, "mid")
    for block, line, total in zip(("full", "mid"), each.lines, sums.lines, strict=False):
        assert to_hex(line.get_color()).upper() == PALETTE[block]
        assert list(line.get_ydata()) == list(frame[block])
        assert total.get_ydata()[-1] == pytest.approx(frame[block].sum())
    assert "nats" in each.get_ylabel()


def hostile() -> Exploration:
    """What models might write to break out of the page, in every text that is shown."""
    answers = {
        "base": Answer(text=ATTACK, finish_reason="stop", ids=[1, 2], pieces=["a", ATTACK]),
        "layers:1": Answer(text=ATTACK, finish_reason="stop", ids=[1, 3], pieces=["a", ATTACK]),
    }
    log_probs = {b: {of: [-1.0, -2.0 - i] for of in answers} for i, b in enumerate(answers)}
    candidates = [Candidate(text=ATTACK, probabilities=(0.5, 0.25))]
    parting = Parting(blocks=("base", "layers:1"), alike=1, candidates=candidates)
    same: dict[str, Any] = {"decoding": {}, "weights": {}, "runs": {}}
    return Exploration(
        question=ATTACK, answers=answers, log_probs=log_probs, partings=[parting], **same
    )


@pytest.mark.parametrize(
    "shown",
    [
        exploration.answers,
        exploration.matrix,
        exploration.partings,
        lambda e: exploration.parting(e, "base", "layers:1"),
        lambda e: exploration.tokens(e, "base"),
    ],
)
def test_what_models_wrote_is_escaped(shown: Callable[[Exploration], Any]) -> None:
    from html.parser import HTMLParser

    found: set[str] = set()
    named: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.add(tag)
            named.update(name for name, _ in attrs)

    text = shown(hostile())._repr_html_()
    Tags().feed(text)
    assert not found & {"script", "img"}
    assert not any(name.startswith("on") for name in named)


def test_a_tokens_look_says_sign_and_size() -> None:
    made = hostile()
    more = {"base": [-1.0, -2.0], "layers:1": [-1.5, -1.0]}  # -0.5 and +1.0
    made = made.model_copy(
        update={
            "log_probs": {b: {of: v for of in made.answers} for b, v in more.items()},
            "question": "What?",
        }
    )
    text = exploration.tokens(made, "base")._repr_html_()
    assert "rgba(213, 94, 0, 0.28)" in text, "half of the largest, less probable"
    assert "rgba(0, 114, 178, 0.55)" in text, "the largest, more probable"
    assert "dashed" in text
    assert 'title="a  −0.50 nats"' in text
    assert "together +0.50 nats" in text


def test_stored_responses_are_shown_without_numbers(trained: Study) -> None:
    stored = next(iter(Explorer(trained.cells()[0]).stored().values()))
    for view in (exploration.partings, exploration.matrix):
        assert exploration.NO_NUMBERS in view(stored).attrs["caption"]
    assert exploration.NO_NUMBERS in exploration.tokens(stored, "mid").data
    assert exploration.NO_NUMBERS in exploration.parting(stored, "base", "mid").data
    exploration.plot(stored, "mid", trained)
    assert "Mid-Align" in exploration.answers(stored).data


def test_an_answer_that_is_not_there_is_refused() -> None:
    with pytest.raises(HialignError, match=r"no answer of 'late': there are those of base, layers"):
        exploration.tokens(hostile(), "late")


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" to", "␣to"), ("\n", "↵"), ("", "(part of a character)"), (" a\t", "␣a⇥"), ("x y", "x y")],
)
def test_white_space_of_a_token_is_seen(token: str, shown: str) -> None:
    assert exploration.visible(token) == shown


def test_pieces_join_to_the_whole_and_characters_are_not_torn(trained: Study) -> None:
    _, tokenizer = load_model(trained.models[0])
    text = "É 😀\n<x>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # bytes
    pieces = strategies.pieces_of(tokenizer, ids)
    assert len(pieces) == len(ids) == len(text.encode())
    assert "".join(pieces) == text
    assert pieces[:6] == ["", "É", " ", "", "", ""]
    assert strategies.pieces_of(tokenizer, ids[:1]) == ["\ufffd"], "half a character at the end"


# --- what is kept --------------------------------------------------------------------------------


def test_what_was_asked_is_kept_and_needs_no_model(copied: Study, no_model: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorations, "Strategies", strategies.Strategies)
        first = Explorer(copied.cells()[0]).ask(f" {QUESTION}\n")
    explorer = Explorer(copied.cells()[-1])
    again = explorer.ask(QUESTION)
    assert again.model_copy(update={"note": ""}) == first.model_copy(update={"note": ""})
    assert "No model was run" in again.note
    assert list(explorer.kept()) == [QUESTION]
    assert "no model is loaded" in explorations.ready(explorer, QUESTION).data
    asked = exploration.asked(explorer)
    assert asked["Kept"][0] == "answers and log-probabilities"
    assert len(asked) == len({QUESTION, *explorer.stored()})
    with pytest.raises(AssertionError, match="a model was loaded"):
        explorer.ask("Another question?")
    other = copied.model_copy(
        update={"responses": copied.responses.model_copy(update={"max_new_tokens": 3})}
    )
    assert Explorer(other.cells()[0]).known(QUESTION) is None, "other decoding settings"
    adapter = explorer.adapter("mid")
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x01")
    assert explorer.known(QUESTION) is None, "another adapter"
    adapter.unlink()
    assert explorer.known(QUESTION), "no adapter: published records"
    manifest = stage_manifest(explorer.cells["full"], "train")
    write_record(manifest, read_json(manifest) | {"seconds": 1.0})
    assert Explorer(copied.cells()[0]).known(QUESTION) is None, "trained again"


def test_a_kept_file_that_is_broken_is_named(copied: Study) -> None:
    explorer = Explorer(copied.cells()[0])
    explorer.ask(QUESTION)
    (file,) = explorer.files()
    write_json(file, read_json(file) | {"answers": 7})
    with pytest.raises(HialignError, match=rf"{file.name} is not an exploration.*delete it"):
        explorer.known(QUESTION)


def test_without_adapters_stored_responses_are_shown_and_why(copied: Study, no_model: None) -> None:
    for cell in copied.cells():
        shutil.rmtree(cell.folder / "adapter", ignore_errors=True)
    explorer = Explorer(copied.cells()[0])
    prompt, stored = next(iter(explorer.stored().items()))
    shown = explorer.ask(prompt)
    assert shown.answers == stored.answers
    assert "the adapters of Full-DPO, Mid-Align are not here" in shown.note
    assert "stored responses to the question" in shown.note
    other = explorer.ask("Nobody asked this before?")
    assert other.question in explorer.stored()
    assert "shown is the stored responses to another one" in other.note
    assert "can be looked at" in explorations.ready(explorer, "Nobody asked?").data
    for cell in copied.cells():
        (cell.folder / "responses.jsonl").unlink()
    with pytest.raises(HialignError, match="adapters of Full-DPO, Mid-Align are not here, and not"):
        Explorer(copied.cells()[0]).ask("Nobody asked this before?")


def test_a_large_model_is_not_loaded_without_a_gpu_that_holds_it(
    copied: Study, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in copied.cells():
        file = stage_manifest(cell, "train")
        write_record(file, read_json(file) | {"parameters": 7_600_000_000})
    explorer = Explorer(copied.cells()[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert explorer.why_not().endswith("7.6 billion parameters, and this machine has no CUDA GPU")
    assert "stored responses" in explorer.ask(next(iter(explorer.stored()))).note
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (12 << 30, 16 << 30))
    assert "about 15.6 GiB in bfloat16, and 12.0 GiB of the GPU are free" in explorer.why_not()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 << 30, 40 << 30))
    assert explorer.why_not() == ""


def test_other_weights_and_other_formats_are_refused(copied: Study) -> None:
    explorer = Explorer(copied.cells()[0])
    explorer.weights = {"weights_sha256": "0" * 64}
    with pytest.raises(HialignError, match=r"were trained on other weights \(000000000000\)"):
        explorer.load()
    folder = explorer.adapter("mid").parent
    explorer.adapter("mid").rename(folder / "adapter_model.bin")
    with pytest.raises(HialignError, match=r"no adapter_model\.safetensors of block mid"):
        strategies.Strategies(copied.models[0], {"mid": folder})


@pytest.mark.slow
def test_an_untrained_study_is_one_line_with_the_command(outputs: Path) -> None:
    command = [sys.executable, "-m", "hialign.run", "run", "explore", "-p", "study", "smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "hialign run train -p study smoke -p block all" in done.stderr


def test_an_empty_question_is_refused(trained: Study) -> None:
    with pytest.raises(HialignError, match="the question is empty"):
        Explorer(trained.cells()[0]).ask(" \n")


# --- the notebook --------------------------------------------------------------------------------


def test_begin_takes_explores_parameters_and_can_be_run_again() -> None:
    namespace: dict[str, Any] = {"study": "smoke", "model": None, "question": "What is tea?"}
    with pytest.raises(HialignError, match="did you mean 'question'"):
        parameters.begin({**namespace, "questoin": "?"}, "explore")
    with pytest.raises(HialignError, match="has no parameter 'block'"):
        parameters.begin({**namespace, "block": "mid"}, "explore")
    cell = parameters.begin(namespace, "explore")
    assert (cell.study.name, cell.block) == ("smoke", "base")
    namespace |= {"cell": cell, "exploration": hostile(), "question": "And coffee?"}
    assert parameters.begin(namespace, "explore").study.name == "smoke"
    with pytest.raises(HialignError, match="parameter question must be str, it is 7"):
        parameters.begin(namespace | {"question": 7}, "explore")
    again: dict[str, Any] = {"study": "smoke", "model": None, "block": "all"}
    assert parameters.begin_pass(again, "train")
    assert parameters.begin_pass(again | {"cells": []}, "train")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_end_and_again_without_adapters(copied: Study) -> None:
    """By papermill, as it is; then as who has only the records sees it."""
    study = paths.outputs().parent / "explored.yml"
    study.write_text(yaml.safe_dump(copied.model_dump(mode="json")))
    command = [sys.executable, "-m", "hialign.run", "run", "explore"]
    command += ["-p", "study", str(study), "-p", "question", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    output = Path(done.stdout.strip())
    assert output.name == "explore-random-llama-all.ipynb"
    text = output.read_text(encoding="utf-8")
    assert "Base model and 2 adapters are loaded" in text
    assert "Asked now: 3 answers, scored by 3 strategies" in text
    assert text.count("image/png") == 1
    for cell in copied.cells():
        shutil.rmtree(cell.folder / "adapter", ignore_errors=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    text = output.read_text(encoding="utf-8")
    assert "no model is loaded" in text
    assert text.count("image/png") == 1


@pytest.mark.slow
def test_the_notebook_on_the_embedded_model(
    outputs: Path, embedded_model_dir: Path, tmp_path: Path
) -> None:
    """135M parameters with adapters that were not trained but drawn; numbers against PEFT's own."""
    from peft import LoraConfig, get_peft_model

    from hialign.engine.embedded import weights_sha256
    from hialign.engine.modules import target_modules
    from hialign.study.blocks import layers_of

    content = {"title": "Embedded", "models": ["embedded:smollm2-135m-instruct"], "judge": None}
    content |= {"blocks": BLOCKS, "responses": {"max_new_tokens": 12}}
    content |= {"preferences": {"source": "builtin"}}
    file = tmp_path / "embedded.yml"
    file.write_text(yaml.safe_dump(content))
    study = load_study(file)
    for seed, cell in enumerate(study.cells()):
        manifest = {"weights_sha256": weights_sha256(embedded_model_dir), "seed": seed}
        manifest |= {"parameters": 134_515_008, "fingerprint": cell.fingerprint("train")}
        write_json(stage_manifest(cell, "train"), manifest)
        if cell.block == "base":
            continue
        model, _ = load_model(cell.model)
        torch.manual_seed(seed)
        modules = target_modules(model, layers_of(cell.block, 30), ["q_proj", "v_proj"])
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=modules)
        tuned = get_peft_model(model, lora)
        for name, values in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(values, std=0.02)
        tuned.save_pretrained(cell.folder / "adapter")
    command = [sys.executable, "-m", "hialign.run", "run", "explore", "-p", "study", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    explorer = Explorer(study.cells()[0])
    (made,) = explorer.kept().values()
    _, tokenizer = load_model(study.models[0])
    messages = [{"role": "user", "content": made.question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    worst = 0.0
    for cell in study.cells():
        model = alone(cell)
        for of, answer in made.answers.items():
            expected = plain_log_probs(model, prompt, answer.ids)[
                range(len(answer.ids)), answer.ids
            ]
            found = torch.tensor(made.log_probs[cell.block][of])
            worst = max(worst, float((found - expected).abs().max()))
    assert worst < 2e-4, worst
    print(f"largest difference: {worst:.1e} nats")


def test_the_default_question_of_the_template_is_published(
    monkeypatch: pytest.MonkeyPatch, no_model: None
) -> None:
    """Who opens the notebook without adapters sees numbers (CONTRIBUTING: release checklist)."""
    published = paths.root() / "outputs" / "published"
    if not (published / "demo" / "study.yml").is_file():
        pytest.skip("the demo is not published here")
    from hialign.book.notebooks import described

    defaults = {name: value for name, value, _ in described("explore")["parameters"]}
    monkeypatch.setenv("HIALIGN_OUTPUTS", str(published))
    explorer = Explorer(load_study(published / "demo" / "study.yml").cells()[0])
    assert explorer.why_not()
    known = explorer.known(defaults["question"])
    assert known is not None
    assert set(known.log_probs) == set(explorer.study.blocks)
    assert json.dumps(known.model_dump(mode="json"))
