"""A student trained for real, for a few steps: resuming, the file for llama.cpp, the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from kitbash_ray.cli import app  # noqa: E402
from kitbash_ray.engines.llama_cpp import load_gguf  # noqa: E402
from kitbash_ray.errors import ModelError  # noqa: E402
from kitbash_ray.knowledge.library import Library  # noqa: E402
from kitbash_ray.layers.bitnet import student_layer  # noqa: E402
from kitbash_ray.layers.known_answers import read_answers, write_answers  # noqa: E402
from kitbash_ray.learn.corpus import Corpus, load_corpus  # noqa: E402
from kitbash_ray.learn.exam import examine  # noqa: E402
from kitbash_ray.learn.export import TEMPLATE, export, read_student, read_vocabulary  # noqa: E402
from kitbash_ray.learn.manifest import Manifest, Scores, read_manifest, write_manifest  # noqa: E402
from kitbash_ray.learn.recipe import Recipe, Shape  # noqa: E402
from kitbash_ray.learn.student import VECTOR, Student, rounded, ternary  # noqa: E402
from kitbash_ray.learn.tokenizer import ANSWER, QUESTION, Vocabulary, asked  # noqa: E402
from kitbash_ray.learn.train import Training, telling  # noqa: E402
from kitbash_ray.questions import Question  # noqa: E402

WriteCartridge = Callable[..., Path]

SHAPE = Shape(width=256, inner=256, blocks=2, heads=4, vocabulary=400, context=128)
RECIPE = Recipe(shape=SHAPE, steps=3, batch=4, warmup=1, longest=32)
GOLD, IRON = "Gold melts at 1064 °C.", "Iron rusts in damp air."


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On shared cores two threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def corpus(write_cartridge: WriteCartridge, library_folder: Path) -> Corpus:
    write_cartridge(
        "metals",
        ("gold", GOLD, "When does gold melt?", "What is the melting point of gold?"),
        ("iron", IRON, "Why does iron rust?", "What makes iron rust?"),
    )
    return load_corpus(Library(library_folder).load())


def training(corpus: Corpus, recipe: Recipe = RECIPE) -> Training:
    vocabulary = Vocabulary.learn(corpus.texts, recipe.shape.vocabulary)
    vectors = np.random.default_rng(0).normal(size=(len(corpus.meanings), VECTOR))
    return Training(corpus, vocabulary, recipe, (vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float32))


@pytest.fixture
def taught(corpus: Corpus, tmp_path: Path) -> Training:
    found = training(corpus)
    found.run(tmp_path / "checkpoint.pt")
    return found


def weights(found: Training) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in found.student.state_dict().items()}


def test_ternary_weights_have_three_values() -> None:
    matrix = ternary(torch.randn(256, 256))
    assert len(matrix.unique()) == 3
    assert matrix.unique().sum() == 0


def test_rounded_activations_have_255_steps_in_each_block() -> None:
    x = torch.randn(3, 512)
    steps = rounded(x).unflatten(-1, (-1, 256)) / (x.unflatten(-1, (-1, 256)).abs().amax(-1, keepdim=True) / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert (rounded(x) - x).abs().max() < x.abs().max() / 250


def test_a_norm_that_is_rounded_too_has_the_gradient_of_the_norm() -> None:
    norm = Student(SHAPE).output_norm
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    found = []
    for function in (norm.rounded, norm.forward):
        x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (function(x) * torch.linspace(-1, 1, 256)).sum().backward()
        found.append((x.grad, norm.weight.grad.clone()))
        norm.weight.grad = None
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_later_token_changes_nothing_before_it() -> None:
    student = Student(SHAPE)
    with torch.no_grad():
        one, other = student(torch.tensor([[5, 6, 7, 8]])), student(torch.tensor([[5, 6, 7, 9]]))
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.equal(one[:, 3], other[:, 3])


def test_a_row_is_told_from_the_others_by_its_first_tokens() -> None:
    assert telling([[1, 2, 3], [1, 2, 4], [5]]) == [3, 3, 1]


def test_a_run_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(corpus: Corpus, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=5)
    whole = training(corpus, recipe)
    whole.run(tmp_path / "whole.pt")

    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    first = training(corpus, recipe)
    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path / "half.pt", interrupt)
    second = training(corpus, recipe)
    assert second.resume(tmp_path / "half.pt") is None
    assert second.step == 2
    second.run(tmp_path / "half.pt")
    assert second.loss == whole.loss
    for name, tensor in weights(whole).items():
        assert np.array_equal(tensor, weights(second)[name]), name


def test_a_checkpoint_of_another_recipe_is_not_gone_on_from(taught: Training, corpus: Corpus, tmp_path: Path) -> None:
    other = training(corpus, replace(RECIPE, steps=9))
    assert other.resume(tmp_path / "checkpoint.pt") == "the recipe has changed since the checkpoint"
    assert other.step == 0


def test_a_checkpoint_of_other_facts_is_not_gone_on_from(
    taught: Training, write_cartridge: WriteCartridge, library_folder: Path, tmp_path: Path
) -> None:
    write_cartridge("more", ("tin", "Tin is a metal."))
    other = training(load_corpus(Library(library_folder).load()))
    assert other.resume(tmp_path / "checkpoint.pt") == "the cartridges have changed since the checkpoint"


def test_a_damaged_checkpoint_is_not_gone_on_from(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut short")
    assert training(corpus).resume(tmp_path / "checkpoint.pt") == "the checkpoint cannot be read"


@pytest.mark.parametrize(("kind", "away"), [("TQ2_0", 0.05), ("Q8_0", 0.1), ("F16", 0.1)])
def test_llama_cpp_says_the_same_next_tokens_as_pytorch(taught: Training, tmp_path: Path, kind: str, away: float) -> None:
    path = tmp_path / "student.gguf"
    export(taught.student, taught.vocabulary, path, kind)
    row = [*taught.vocabulary.prompts(["When does gold melt?"])[0], *taught.vocabulary.tokens([GOLD])[0]]
    llama = load_gguf(path, n_ctx=128, n_threads=1, logits_all=True)
    llama.eval(row)
    with torch.no_grad():
        ours = read_student(path)(torch.tensor([row]))[0].numpy()
    theirs = np.asarray(llama.scores[: len(row)])
    assert np.abs(theirs - ours).max() < away  # llama.cpp keeps keys and values in 16 bits
    assert (theirs.argmax(1) == ours.argmax(1)).mean() > 0.9


def test_a_student_in_a_file_has_the_shape_and_the_ternary_weights_of_the_one_that_was_taught(
    taught: Training, tmp_path: Path
) -> None:
    export(taught.student, taught.vocabulary, tmp_path / "student.gguf")
    found = read_student(tmp_path / "student.gguf")
    assert found.shape == SHAPE
    for ours, theirs in zip(taught.student.matrices(), found.matrices(), strict=True):
        assert torch.equal(ternary(ours.detach()).sign(), theirs.detach().sign())


@pytest.mark.parametrize(
    "text",
    [
        "when does gold melt",
        "Größe: 25 °C, 3.14 — “x”",
        "tabs\tand  two spaces",
        "日本語 😀",
        "git's `HEAD~1`",
        "a\n\nb ",
        " 1234567 ",
    ],
)
def test_llama_cpp_reads_a_text_as_the_same_tokens(taught: Training, tmp_path: Path, text: str) -> None:
    export(taught.student, taught.vocabulary, tmp_path / "student.gguf")
    llama = load_gguf(tmp_path / "student.gguf", n_ctx=128)
    [ours] = taught.vocabulary.tokens([text])
    assert llama.tokenize(text.encode(), add_bos=False, special=True) == ours
    assert read_vocabulary(tmp_path / "student.gguf").tokens([text]) == [ours]
    assert taught.vocabulary.text(ours) == text


@pytest.mark.parametrize("typed", ["What is ATP?", "  When does GOLD melt ?! ", "Version 3.11?"])
def test_the_chat_template_makes_the_prompt_of_the_last_question(taught: Training, tmp_path: Path, typed: str) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    export(taught.student, taught.vocabulary, tmp_path / "student.gguf")
    llama = load_gguf(tmp_path / "student.gguf", n_ctx=128)
    assert llama.metadata["tokenizer.chat_template"] == TEMPLATE
    render = Jinja2ChatFormatter(template=TEMPLATE, eos_token="<|end|>", bos_token="")
    messages: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Before?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": typed},
    ]
    prompt = render(messages=messages).prompt
    assert prompt == f"{QUESTION}{asked(typed)}{ANSWER}"
    tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
    assert [tokens] == taught.vocabulary.prompts([typed])


def test_the_student_learns_two_facts_and_names_them(corpus: Corpus, tmp_path: Path) -> None:
    found = training(corpus, replace(RECIPE, steps=40, batch=16, learning_rate=3e-3))
    found.run(tmp_path / "checkpoint.pt")
    export(found.student, found.vocabulary, tmp_path / "student.gguf")
    write_answers(tmp_path / "answers.jsonl", corpus.sources)
    layer = student_layer(tmp_path, "student", max_tokens=64)
    questions = [Question("When does gold melt?", ("metals:gold",)), Question("What makes iron rust?", ("metals:iron",))]
    scores, said = examine(layer, questions)
    assert scores == Scores(right=2, wrong=0, declined=0, refused=0, answered=0)
    assert [item.result.text for item in said] == [GOLD, IRON]
    assert all(item.tokens > 0 for item in said)


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    manifest = Manifest("kitbash-student", "ab", RECIPE, Scores(1, 2, 3, 4, 5), ("a:b", "c:d"))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_missing_manifest_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="kitbash distil"):
        read_manifest(tmp_path)


def test_another_model_is_no_student(tiny_gguf: Path) -> None:
    with pytest.raises(ModelError, match="no student"):
        read_student(tiny_gguf)


def test_distil_writes_the_three_files_and_says_how_good_the_student_is(
    corpus: Corpus, library_folder: Path, tmp_path: Path
) -> None:
    question = {"query": "How hot is melting gold?", "expected": ["metals:gold"], "kind": "paraphrase"}
    (library_folder / "metals" / "questions.jsonl").write_text(json.dumps(question))
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["distil", "--out", str(out), "--cartridges", str(library_folder), "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["answers.jsonl", "manifest.json", "student.gguf"]
    assert "2 facts taught" in result.output
    manifest = read_manifest(out)
    assert manifest.facts == ("metals:gold", "metals:iron")
    assert manifest.recipe == Recipe(steps=2)
    assert sum(getattr(manifest.scores, name) for name in Scores.__struct_fields__) == 1
    assert [source.text for source in read_answers(out / "answers.jsonl")] == [GOLD, IRON]
