"""Decoders that read pictures, from a checkpoint to answers, held to the eager masked model of their own code."""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import blockexport as bx
from blockexport.backends.onnxruntime.external_data import read_external
from blockexport.bundle.layout import PARITY_FILE, VISION_PREFIX
from blockexport.cli.app import app
from blockexport.core.engine import StepInputs
from blockexport.core.masks import DepthLadder, DepthMask
from blockexport.core.parity import tolerance_of
from blockexport.core.pictures import PICTURE_INPUTS, ImageTokens
from blockexport.errors import ConfigError, RequestError
from blockexport.export.audit import audit
from blockexport.export.parity import check_decoder, check_single_pass
from blockexport.masking.made_up import MadeUpPrompts
from blockexport.masking.masked import masked
from blockexport.masking.oracle import _InDouble
from blockexport.models.demos.digits_molmo.tokenizer import train_tokenizer
from blockexport.models.loaded import LoadedModel
from blockexport.pipeline.build import BuildOptions
from blockexport.routing.contract import Contract
from blockexport.routing.ticket import Ticket
from blockexport.runtime import Runtime
from blockexport.runtime.processor import load_processor
from blockexport.runtime.prompt_batch import PromptBatch
from blockexport.runtime.proof import recorded_cases
from blockexport.runtime.sampling import Sampling
from blockexport.runtime.verify import verify_bundle
from blockexport.serving.answer import Answer
from blockexport.serving.runtime_engine import RuntimeEngine
from blockexport.testing.tiny_molmo import MolmoSizes, write_tiny_molmo
from blockexport.testing.tiny_vlms import tiny_llava, tiny_molmo2, tiny_qwen2_vl

NEW_TOKENS = 5
LENGTHS = (7, 5, 9)
TOKENIZER = train_tokenizer()
SIZES = MolmoSizes(
    num_blocks=3,
    num_experts=3,
    crop_pixels=24,
    vision_blocks=4,
    feature_layers=(-2, -3),
    vocab_size=TOKENIZER.token_to_id("<im_start>"),
)
PREPROCESSING = {
    "base_image_input_size": [24, 24],
    "image_patch_size": 4,
    "overlap_margins": [2, 2],
    "max_crops": 4,
    "image_token_length_h": 3,
    "image_token_length_w": 3,
}
CHECKPOINTS = ("llava", "molmo2", "qwen2-vl", "pre-norm", "mixture")

NATIVE = {"llava": tiny_llava, "molmo2": tiny_molmo2, "qwen2-vl": tiny_qwen2_vl}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Served:
    model: LoadedModel
    runtime: Runtime
    ladder: DepthLadder
    vision_ladder: DepthLadder
    traces: Path


@pytest.fixture(scope="module", params=CHECKPOINTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in NATIVE:
        NATIVE[request.param](num_blocks=3, vision_blocks=4).save_pretrained(folder / "model")
    else:
        write_tiny_molmo(folder / "model", request.param, SIZES)
        TOKENIZER.save(str(folder / "model" / "tokenizer.json"))
        (folder / "model" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    model = bx.load_model(folder / "model")
    assert model.vision_side is not None
    ladder, vision_ladder = (two_levels(part.num_blocks) for part in (model, model.vision_side))
    options = BuildOptions(vision_ladder=vision_ladder, cache_folder=folder / "traces")
    bx.build(model, ladder, out=folder / "bundle", options=options)
    return Served(model, bx.load(folder / "bundle", threads=1), ladder, vision_ladder, folder / "traces")


def two_levels(num_blocks: int) -> DepthLadder:
    return DepthLadder.from_masks([DepthMask.full(num_blocks), DepthMask.full(num_blocks).without(1)])


def prompts_of(model: LoadedModel, lengths: tuple[int, ...] = LENGTHS) -> MadeUpPrompts:
    return MadeUpPrompts.with_pictures(model.spec, lengths, np.random.default_rng(3)).padded_left


def attention_mask(prompts: MadeUpPrompts) -> NDArray[np.int64]:
    width = prompts.tokens.shape[1]
    return (np.arange(width) >= (width - prompts.lengths)[:, None]).astype(np.int64)


def eager_arguments(model: LoadedModel, prompts: MadeUpPrompts) -> dict[str, torch.Tensor]:
    pictures = {name: torch.from_numpy(array) for name, array in prompts.pictures.items()}
    text = {"input_ids": prompts.tokens, "attention_mask": attention_mask(prompts)}
    return model.arguments({name: torch.from_numpy(array) for name, array in text.items()} | pictures)


def generate_eagerly(model: LoadedModel, prompts: MadeUpPrompts) -> list[list[int]]:
    module: Any = model.module
    arguments = eager_arguments(model, prompts)
    output = module.generate(**arguments, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    rows: list[list[int]] = output[:, prompts.tokens.shape[1] :].tolist()
    return rows


def test_all_that_was_proved_is_proved_again_without_the_checkpoint(served: Served) -> None:
    checks = verify_bundle(served.runtime.bundle.folder)
    assert {check.status for check in checks if check.id != "parity:native"} == {"ok"}
    ids = {check.id for check in checks}
    for level in served.ladder.levels:
        assert {f"parity:{level.name}:pictures-{what}" for what in ("prefill", "decode", "padded", "chunked")} <= ids
        assert f"audit:{level.name}" in ids
    for level in served.vision_ladder.levels:
        assert {f"parity:vision:{level.name}:forward", f"audit:vision:{level.name}"} <= ids


class Misplacing:
    """A decoder that does something to image tokens before they enter."""

    def __init__(self, runner: Any, change: Callable[[ImageTokens], ImageTokens]) -> None:
        self._runner, self._change = runner, change

    def bind(self, rows: Any) -> Any:
        bound, change = self._runner.bind(rows), self._change

        class Bound:
            def step(self, inputs: StepInputs) -> NDArray[np.float32]:
                given = inputs.image_tokens
                return bound.step(inputs if given is None else replace(inputs, image_tokens=change(given)))

        return Bound()


WRONG: dict[str, Callable[[ImageTokens], ImageTokens]] = {
    "none": lambda tokens: ImageTokens.none(tokens.features.shape[1]),
    "one column early": lambda tokens: ImageTokens(tokens.features, tokens.positions - np.array([0, 1])),
    "in another order": lambda tokens: ImageTokens(tokens.features[::-1].copy(), tokens.positions),
    "a percent off": lambda tokens: ImageTokens(tokens.features * np.float32(1.01), tokens.positions),
}


def gate(served: Served, *, misplaced: Any = None, **altered: Any) -> dict[str, bool]:
    """The parity gate on the deepest level, its image tokens or what is known of the vision side changed: by check."""
    engines, level = served.runtime.engines, served.ladder.levels[0].name
    assert engines.vision is not None
    assert engines.spec.vision is not None
    side = engines.vision.single_pass(engines.vision.names[0])
    cases = recorded_cases(served.runtime.bundle.folder / PARITY_FILE)[level]
    decoder = engines.decoder(level)
    runner = decoder if misplaced is None else Misplacing(decoder, misplaced)
    known = engines.spec.vision.model_copy(update=altered)
    passed = {r.check: r.passed for r in check_decoder(runner, engines.layout(level), cases, side, known)}
    assert len(passed) == 8
    return passed


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_the_gate_stops_image_tokens_that_are_wrong(served: Served, change: Any) -> None:
    passed = gate(served, misplaced=change)
    assert all(ok == (not check.startswith("pictures-")) for check, ok in passed.items())


@pytest.mark.parametrize("served", ["qwen2-vl"], indirect=True)
@pytest.mark.parametrize("grid", [None, (3, 2), (1, 6)])
def test_the_gate_stops_positions_that_do_not_count_rows_and_columns(served: Served, grid: Any) -> None:
    passed = gate(served, grid=grid)
    assert all(ok == (not check.startswith("pictures-")) for check, ok in passed.items())


@pytest.mark.parametrize("served", ["molmo2"], indirect=True)
def test_the_gate_sees_whether_what_belongs_together_comes_together(served: Served) -> None:
    passed = gate(served, mutual_tokens=())
    assert [check for check, ok in passed.items() if not ok] == ["pictures-chunked"]


@pytest.mark.parametrize("served", ["qwen2-vl"], indirect=True)
def test_a_picture_of_another_size_is_refused(served: Served) -> None:
    prompts = prompts_of(served.model, LENGTHS[:1])
    pictures = prompts.pictures | {"images": np.zeros((1, 2, 28, 24), np.float32)}
    with pytest.raises(RequestError, match="reads pictures of 2 x 3 image tokens only"):
        served.runtime.generate(prompts.tokens, 1, **pictures)


@pytest.mark.parametrize("served", ["qwen2-vl"], indirect=True)
def test_rows_of_the_service_go_on_behind_their_pictures(served: Served) -> None:
    """Requests that share steps: one with two pictures, one with one, one of text, in steps of a few tokens."""
    prompts = MadeUpPrompts.with_pictures(served.model.spec, LENGTHS, np.random.default_rng(3))
    engine = RuntimeEngine(served.runtime.engines, 3)
    tickets, answers = [], []
    for number in range(3):
        alone = prompts.row(number)
        batch = PromptBatch.of(served.model.spec, alone.tokens, None, *map(alone.pictures.get, PICTURE_INPUTS))
        size = len(batch.tokens[0])
        ticket = Ticket(number, 0.0, size, NEW_TOKENS, Contract(), (1.0,), None, 0, (0.0, 0.0))  # type: ignore[arg-type]
        answer = Answer(batch.tokens[0], NEW_TOKENS, Sampling(), frozenset(), lambda *_: None, batch.pictures)
        engine.open(ticket, answer)
        for first in range(0, size, 4):
            engine.extend(ticket, 0, first, min(4, size - first))
        engine.begin(ticket)
        tickets.append(ticket)
        answers.append(answer)
    engine.decode(tickets, 0, NEW_TOKENS - 1)
    engine.close()
    found = [answer.tokens[answer.num_prompt :] for answer in answers]
    assert found == generate_eagerly(served.model, prompts.padded_left)


def test_the_gates_stop_a_vision_side_of_another_depth(served: Served) -> None:
    engines, (deep, shallow) = served.runtime.engines.vision, served.vision_ladder.levels
    assert engines is not None
    cases = recorded_cases(served.runtime.bundle.folder / PARITY_FILE)[f"{VISION_PREFIX}{deep.name}"]
    assert [record.passed for record in check_single_pass(engines.single_pass(deep.name), cases)] == [True]
    assert [record.passed for record in check_single_pass(engines.single_pass(shallow.name), cases)] == [False]
    path = served.runtime.bundle.engine_path(f"{VISION_PREFIX}{deep.name}", "onnxruntime", "ort")
    block_path = engines.spec.block_path
    assert audit(path, deep.mask, block_path) == []
    found = audit(path, shallow.mask, block_path)
    assert any("initializer" in finding for finding in found)
    assert f"{deep.depth} attention nodes for {shallow.depth} kept blocks" in found


def test_a_prompt_of_one_token_may_be_joined_too(served: Served) -> None:
    prompts = prompts_of(served.model, LENGTHS[:1])
    token = prompts.tokens[:, 1:2]
    places = np.full_like(prompts.pictures["image_input_idx"], -1)
    places[0, 0, 0] = 0
    pictures = prompts.pictures | {"image_input_idx": places}
    logits = served.runtime.forward({"input_ids": token, **pictures})[0, -1]
    assert served.runtime.generate(token, 1, stop_tokens=(), **pictures).tokens == [[logits.argmax()]]
    with served.runtime.start(token, **pictures) as session:
        assert session.run()[0] == pytest.approx(logits, abs=1e-6)


def test_every_pair_of_levels_answers_as_the_eager_model_does(served: Served) -> None:
    model, side = served.model, served.model.vision_side
    assert side is not None
    prompts = prompts_of(model)
    answers = []
    for level, vision in itertools.product(served.ladder.levels, served.vision_ladder.levels):
        with masked(model, level.mask), masked(side, vision.mask):
            wanted = generate_eagerly(model, prompts)
        for chunk_tokens in (None, 3):
            found = served.runtime.generate(
                prompts.tokens,
                NEW_TOKENS,
                level=level.name,
                vision_level=vision.name,
                attention_mask=attention_mask(prompts),
                stop_tokens=(),
                chunk_tokens=chunk_tokens,
                **prompts.pictures,
            )
            assert found.tokens == wanted
        answers.append(wanted)
    assert len(set(map(str, answers))) > 1


def test_logits_of_a_padded_batch(served: Served) -> None:
    prompts = prompts_of(served.model)
    arguments = eager_arguments(served.model, prompts)
    with torch.no_grad():
        wanted = served.model(**arguments).logits.numpy()
        exact_model = LoadedModel(copy.deepcopy(served.model.module).double(), served.model.spec, served.model.adapter)
        in_double = {name: t.double() if t.is_floating_point() else t for name, t in arguments.items()}
        set_experts(exact_model.module)
        with _InDouble():
            exact = exact_model(**in_double).logits.numpy()
    real = attention_mask(prompts) != 0
    found = served.runtime.forward(
        {"input_ids": prompts.tokens, "attention_mask": attention_mask(prompts), **prompts.pictures}
    )
    assert np.abs(found[real] - wanted[real]).max() <= tolerance_of(wanted[real], exact[real])
    without = served.runtime.forward({"input_ids": prompts.tokens, "attention_mask": attention_mask(prompts)})
    has_picture = np.arange(len(prompts.tokens)) < 2
    assert np.abs(without - found)[has_picture].max() > 1e-3
    assert without[~has_picture] == pytest.approx(found[~has_picture], abs=tolerance_of(wanted[real], exact[real]))


def set_experts(module: Any) -> None:
    if getattr(module.config.get_text_config(decoder=True), "num_experts", None):
        module.set_experts_implementation("eager")


def test_depth_may_change_between_two_tokens(served: Served) -> None:
    prompts = prompts_of(served.model)
    deep, shallow = (level.name for level in served.ladder.levels)
    pictures = {"attention_mask": attention_mask(prompts), "stop_tokens": (), **prompts.pictures}
    first = served.runtime.generate(prompts.tokens, 1, level=shallow, **pictures)
    switched = served.runtime.generate(prompts.tokens, 3, level=shallow, switches={1: deep}, **pictures)
    # The deeper level runs the prompt again, pictures included, and goes on behind the shallower one's first token.
    with served.runtime.start(
        prompts.tokens, level=deep, **{k: v for k, v in pictures.items() if k != "stop_tokens"}
    ) as session:
        session.append(np.array([row[0] for row in first.tokens]))
        rest = np.stack([session.step(), session.step()], axis=1)
    assert [row[1:] for row in switched.tokens] == rest.tolist()


def test_weights_lie_in_the_bundle_once_for_all_graphs(served: Served) -> None:
    folder = served.runtime.bundle.folder
    ranges: dict[str, set[tuple[str, ...]]] = {}
    for path in sorted(folder.glob("*.onnx")):
        for name, tensor in read_external(path).items():
            ranges.setdefault(name, set()).add((tensor.entries["location"], tensor.entries["offset"]))
    assert {len(places) for places in ranges.values()} == {1}
    assert any("embed_tokens" in name for name in ranges)


def test_the_same_recipe_gives_the_same_bytes(served: Served, tmp_path: Path) -> None:
    options = BuildOptions(vision_ladder=served.vision_ladder, cache_folder=served.traces)
    again = bx.build(served.model, served.ladder, out=tmp_path / "again", options=options)
    assert again.manifest.to_bytes() == served.runtime.bundle.manifest.to_bytes()


def test_reading_pictures_is_a_part_of_the_plan_that_depth_does_not_change(served: Served) -> None:
    bx.profile(served.runtime, quick=True, time_limit_s=2.0)
    plans = [
        served.runtime.plan(prompt_tokens=12, new_tokens=2, policy=f"fixed:{level.name}", num_crops=count)
        for level in served.ladder.levels
        for count in (0, 3)
    ]
    without, with_crops = plans[::2], plans[1::2]
    assert {plan.vision_ms for plan in without} == {0.0}
    assert len({plan.vision_ms for plan in with_crops}) == 1
    for one, other in zip(without, with_crops, strict=True):
        assert other.vision_ms > 0
        assert other.ttft_ms == pytest.approx(one.ttft_ms + other.vision_ms)


def test_requests_that_cannot_be_served(served: Served) -> None:
    runtime, prompts = served.runtime, prompts_of(served.model, LENGTHS[:1])
    with pytest.raises(RequestError, match="no picture is given"):
        runtime.generate(prompts.tokens, image_input_idx=prompts.pictures["image_input_idx"])
    with pytest.raises(RequestError, match="no level 'd99'"):
        runtime.generate(prompts.tokens, vision_level="d99", **prompts.pictures)


@pytest.mark.parametrize("served", ["pre-norm"], indirect=True)
def test_a_question_about_a_picture_on_the_command_line(served: Served, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    folder, question = str(served.runtime.bundle.folder), "Which digit?"
    command = ["generate", folder, "--prompt", question, "--max-new-tokens", "4", "--json"]

    def ask(*more: str) -> Result:
        return CliRunner().invoke(app, [*command, *more])

    found = ask("--image", str(tmp_path / "picture.png"), "--vision-level", served.vision_ladder.levels[1].name)
    assert found.exit_code == 0, found.output
    inputs = dict(load_processor(served.runtime.bundle)(question, [pixels]))
    side = served.model.vision_side
    assert side is not None
    batch = {name: torch.from_numpy(array[None]) for name, array in inputs.items()}
    module: Any = served.model.module
    with masked(side, served.vision_ladder.levels[1].mask):
        wanted = module.generate(**batch, max_new_tokens=4, do_sample=False)[0, len(inputs["input_ids"]) :]
    tokens = json.loads(found.stdout)["tokens"]
    assert tokens == wanted.tolist()[: len(tokens)]
    assert len(tokens) == 4 or wanted[len(tokens)] in served.model.spec.stop_tokens
    assert json.loads(ask().stdout)["tokens"] != tokens
    processor = load_processor(served.runtime.bundle)
    num_text = len(processor(question)["input_ids"])
    assert processor.predict(40, 30) == (len(inputs["input_ids"]) - num_text, len(inputs["images"]))
    missing = ask("--image", str(tmp_path / "none.png"))
    assert missing.exit_code == 2
    assert "none.png" in missing.output


def test_a_ladder_for_a_vision_side_that_there_is_not() -> None:
    text = bx.load_model("demo:code-lm")
    full = DepthLadder.from_masks([DepthMask.full(text.num_blocks)])
    with pytest.raises(ConfigError, match="reads one thing only"):
        bx.build(text, full, out="never", options=BuildOptions(vision_ladder=full))
