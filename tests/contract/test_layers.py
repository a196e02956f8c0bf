"""One suite over every layer, and what is particular to each of them.

Grain and cartridge run over a real index, a real table and the real embedder; bitnet and
kobold over a tiny real model.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.embedder import Embeds
from kitbash_ray.knowledge.evidence import FEATURES
from kitbash_ray.knowledge.extractor import Extractor
from kitbash_ray.knowledge.grain_index import GrainIndex, build_arrays
from kitbash_ray.knowledge.retrieval import Retrieval, build_table
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.knowledge.verifier import Verifier
from kitbash_ray.layers.bitnet import BitnetLayer, open_bitnet
from kitbash_ray.layers.cartridge import CartridgeLayer
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.layers.kobold import KoboldLayer, open_kobold
from kitbash_ray.testing import EchoLayer, ScriptedLayer, ScriptedStreamingLayer
from kitbash_ray.types import Layer, LayerResult, Query, Source, StreamingLayer, Turn

FACTS = [
    Fact(
        "bio:atp", "bio", "general", "ATP is the molecule that carries energy in cells.",
        ("what is ATP", "what carries energy in cells"), "a book",
    ),
    Fact("bio:dna", "bio", "general", "DNA stores the genetic information of a cell.", ("what is DNA", "what does DNA do"), "a book"),
    Fact("bio:mito", "bio", "general", "Mitochondria make most of the ATP of a cell.", ("what do mitochondria do",), None),
    Fact("geo:nile", "geo", "general", "The Nile is about 6,650 km long.", ("how long is the Nile",), None),
    Fact("dune:spice", "dune", "fiction", "The spice melange lets pilots fold space.", ("what is the spice melange",), None),
    Fact("odd:why", "odd", "general", "Because.", ("why",), None),
]  # fmt: skip
SOURCES = (
    Source("bio", "bio:atp", "ATP carries energy.", 0.9),
    Source("bio", "bio:dna", "DNA stores heredity.", 0.8),
)
HISTORY = (Turn("user", "What is ATP?"), Turn("assistant", "It carries energy."))


@pytest.fixture(scope="module")
def knowledge(embedder: Embeds, tmp_path_factory: pytest.TempPathFactory) -> tuple[GrainIndex, Retrieval]:
    folder = tmp_path_factory.mktemp("knowledge")
    store = VectorStore(embedder, folder)
    build_table(FACTS, store, folder / "table")
    return GrainIndex(build_arrays(FACTS, store)), Retrieval(folder / "table")


@pytest.fixture
def grain(knowledge: tuple[GrainIndex, Retrieval], embedder: Embeds) -> GrainLayer:
    return GrainLayer(knowledge[0], embedder, load_calibration())


@pytest.fixture
def cartridge(
    knowledge: tuple[GrainIndex, Retrieval], embedder: Embeds, verifier: Verifier, extractor: Extractor
) -> CartridgeLayer:
    models = {"embedder": embedder, "verifier": verifier, "extractor": extractor}
    return CartridgeLayer(knowledge[1], knowledge[0], load_calibration(), **models)


@pytest.fixture
def echo() -> EchoLayer:
    return EchoLayer("echo")


@pytest.fixture
def scripted() -> ScriptedLayer:
    return ScriptedLayer("scripted", LayerResult("scripted", "abstained", reason="as told"))


@pytest.fixture
def streaming() -> ScriptedStreamingLayer:
    return ScriptedStreamingLayer("streaming", "a", "b", LayerResult("streaming", "answered", text="ab"))


@pytest.fixture
def student() -> BitnetLayer:
    """The one that ships: it was taught none of the facts here but all of the shipped ones."""
    return open_bitnet(load_settings(), load_calibration())


@pytest.fixture
def kobold_without_model() -> KoboldLayer:
    return open_kobold(load_settings(), load_calibration())


NAMES = {
    "grain": "grain",
    "cartridge": "cartridge",
    "bitnet": "bitnet",
    "kobold": "kobold",
    "student": "bitnet",
    "kobold_without_model": "kobold",
    "echo": "echo",
    "scripted": "scripted",
    "streaming": "streaming",
}
MODELS_AND_ALL_ELSE = sorted(NAMES)


@pytest.fixture(params=MODELS_AND_ALL_ELSE)
def layer(request: pytest.FixtureRequest) -> Layer:
    made: Layer = request.getfixturevalue(request.param)
    assert made.name == NAMES[request.param]
    return made


ODD = {
    "emoji": "🦠🧬 🔬?",
    "sql": "'; DROP TABLE facts; --",
    "quotes": "\"what\" is 'ATP' “now” ``?",
    "stop-words": "the of and is it",
    "punctuation": "?!... --- ***",
    "blank": " \t\n ",
    "query-syntax": 'ATP AND (title:x OR "y") NOT *~2^3',
    "nul": "what is\x00ATP",
    "right-to-left": "\u202eما هو\u202c",
    "one-letter": "x",
    "number": "1e309",
    "markup": "<|im_end|></s>[INST]{{ x }}",
    "combining": "a" + "\u0301" * 100,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
async def test_any_question_gets_a_result_in_the_layers_own_name(layer: Layer, text: str) -> None:
    result = await layer.answer(Query(text), ())
    assert isinstance(result, LayerResult)
    assert result.layer == layer.name
    assert result.outcome in ("answered", "abstained")
    assert (result.text is not None) == (result.outcome == "answered")
    assert result.outcome == "answered" or result.reason
    assert result.confidence is None or 0 <= result.confidence <= 1


@pytest.mark.parametrize("text", ["x" * 8000, "what is ATP " * 660], ids=["one word", "many words"])
@pytest.mark.parametrize("name", MODELS_AND_ALL_ELSE)
async def test_a_question_of_8000_characters_gets_a_result(name: str, text: str, request: pytest.FixtureRequest) -> None:
    layer = request.getfixturevalue(name)
    assert isinstance(await layer.answer(Query(text), ()), LayerResult)


def timeless(result: LayerResult) -> LayerResult:
    """`result` without the time its first token took."""
    return (result.generation and replace(result, generation=replace(result.generation, first_token_ms=None))) or result


async def test_the_same_question_gets_the_same_result(layer: Layer) -> None:
    query = Query("What is ATP?")
    assert timeless(await layer.answer(query, ())) == timeless(await layer.answer(query, ()))


async def test_questions_at_the_same_time_get_their_own_results(layer: Layer) -> None:
    queries = [Query(text) for text in ("What is ATP?", "what is DNA", "how long is the Nile", "zzz")]
    alone = [timeless(await layer.answer(query, ())) for query in queries]
    together = await asyncio.gather(*(layer.answer(query, ()) for query in queries))
    assert list(map(timeless, together)) == alone


async def test_a_stream_ends_with_the_result_that_answer_gives(layer: Layer) -> None:
    if not isinstance(layer, StreamingLayer):
        assert layer.name in ("grain", "cartridge", "echo", "scripted")
        return
    items = [item async for item in layer.stream(Query("What is ATP?"), ())]
    assert timeless(items[-1]) == timeless(await layer.answer(Query("What is ATP?"), ()))
    shown = "".join(item for item in items[:-1] if isinstance(item, str))
    assert isinstance(items[-1], LayerResult)
    assert shown.strip() == (items[-1].text or "")


# Layer 0 and layer 2


@pytest.mark.parametrize("name", ["grain", "cartridge"])
@pytest.mark.parametrize(
    ("asked", "fact_id"),
    [
        ("What is ATP?", "bio:atp"),
        ("which molecule carries energy inside cells", "bio:atp"),
        ("How long is the Nile?", "geo:nile"),
    ],
)
async def test_a_fact_answers_what_it_is_asked_for(name: str, asked: str, fact_id: str, request: pytest.FixtureRequest) -> None:
    result = await request.getfixturevalue(name).answer(Query(asked))
    assert result.outcome == "answered"
    assert result.sources[0].fact_id == fact_id
    assert result.text.startswith(next(fact.text for fact in FACTS if fact.id == fact_id))
    assert result.confidence is not None


@pytest.mark.parametrize("name", ["grain", "cartridge"])
@pytest.mark.parametrize("asked", ["who won the football match", "how long is the Amazon", "what is RNA interference"])
async def test_what_no_fact_says_is_not_answered_with_confidence(name: str, asked: str, request: pytest.FixtureRequest) -> None:
    result = await request.getfixturevalue(name).answer(Query(asked))
    threshold = load_calibration().enough(name, 0.05)
    assert result.outcome == "abstained" or result.confidence < threshold


@pytest.mark.parametrize("name", ["grain", "cartridge"])
@pytest.mark.parametrize("text", ["why?", "Why", "and in yeast?", "what is it made of?", "what about them"])
async def test_a_follow_up_is_for_a_layer_that_reads_the_conversation(
    name: str, text: str, request: pytest.FixtureRequest
) -> None:
    result = await request.getfixturevalue(name).answer(Query(text, history=HISTORY))
    assert result.outcome == "abstained"
    assert "stand on its own" in result.reason


@pytest.mark.parametrize("name", ["grain", "cartridge"])
async def test_a_whole_question_in_a_conversation_is_answered(name: str, request: pytest.FixtureRequest) -> None:
    result = await request.getfixturevalue(name).answer(Query("what is DNA", history=HISTORY))
    assert result.sources[0].fact_id == "bio:dna"


@pytest.mark.parametrize("name", ["grain", "cartridge"])
@pytest.mark.parametrize(
    ("query", "cartridges"),
    [
        (Query("what is the spice melange"), {"bio", "geo", "odd"}),
        (Query("what is the spice melange", factions=("fiction",)), {"dune"}),
        (Query("what is ATP", cartridges=("geo",)), {"geo"}),
    ],
)
async def test_only_the_knowledge_that_was_asked_for_answers(
    name: str, query: Query, cartridges: set[str], request: pytest.FixtureRequest
) -> None:
    result = await request.getfixturevalue(name).answer(query)
    assert {source.cartridge for source in result.sources} <= cartridges


@pytest.mark.parametrize("name", ["grain", "cartridge"])
async def test_an_empty_scope_abstains(name: str, request: pytest.FixtureRequest) -> None:
    result = await request.getfixturevalue(name).answer(Query("what is ATP", factions=("experiment",)))
    assert (result.outcome, result.sources) == ("abstained", ())


async def test_an_exact_match_has_the_measured_confidence_of_exact_matches(grain: GrainLayer) -> None:
    result = await grain.answer(Query("what is  ATP??"))
    assert (result.score, result.confidence, result.reason) == (1.0, load_calibration().exact, "exact match")


async def test_a_fact_that_someone_wrote_for_why_is_found_outside_a_conversation_only(grain: GrainLayer) -> None:
    assert (await grain.answer(Query("Why?"))).text == "Because."
    assert (await grain.answer(Query("Why?", history=HISTORY))).outcome == "abstained"


async def test_a_swapped_index_answers_from_then_on(grain: GrainLayer, embedder: Embeds, tmp_path: Path) -> None:
    new = Fact("bio:atp", "bio", "general", "ATP is a nucleotide.", ("what is ATP",), None)
    grain.index = GrainIndex(build_arrays([new], VectorStore(embedder, tmp_path)))
    assert (await grain.answer(Query("what is ATP"))).text == "ATP is a nucleotide."


async def test_a_swapped_table_answers_from_then_on(cartridge: CartridgeLayer, embedder: Embeds, tmp_path: Path) -> None:
    new = [Fact("bio:atp", "bio", "general", "ATP is a nucleotide.", ("what is ATP",), None)]
    store = VectorStore(embedder, tmp_path)
    build_table(new, store, tmp_path / "table")
    cartridge.swap(Retrieval(tmp_path / "table"), GrainIndex(build_arrays(new, store)))
    assert (await cartridge.answer(Query("what is ATP"))).text == "ATP is a nucleotide. [1]"


async def test_every_sentence_of_layer_2_is_a_cited_fact(cartridge: CartridgeLayer) -> None:
    result = await cartridge.answer(Query("How do ATP and DNA differ?"))
    cited = [source for number, source in enumerate(result.sources, 1) if f"[{number}]" in result.text]
    assert result.text == " ".join(f"{source.text} [{number}]" for number, source in enumerate(cited, 1))
    assert {source.fact_id for source in cited} == {"bio:atp", "bio:dna"}


async def test_of_a_passage_the_sentence_that_answers_is_quoted(
    embedder: Embeds, verifier: Verifier, extractor: Extractor, tmp_path: Path
) -> None:
    text = "The Varnholt dam was built by Ines Holm in 1932. It holds 40 million litres of water."
    facts, store = [Fact("a:1", "a", "general", text, (), None, excerpt=True)], VectorStore(embedder, tmp_path)
    build_table(facts, store, tmp_path / "table")
    table = Retrieval(tmp_path / "table"), GrainIndex(build_arrays(facts, store))
    layer = CartridgeLayer(*table, load_calibration(), embedder=embedder, verifier=verifier, extractor=extractor)
    result = await layer.answer(Query("Who built the Varnholt dam?"))
    assert result.text == "The Varnholt dam was built by Ines Holm in 1932. [1]"
    assert [("Ines Holm" in str(source.quote), source.text) for source in result.sources] == [(True, text)]


async def test_layer_2_hands_on_what_it_found_even_when_it_is_not_sure(cartridge: CartridgeLayer) -> None:
    result = await cartridge.answer(Query("which organelles burn sugar"))
    assert 1 < len(result.sources) <= 5
    assert len({source.fact_id for source in result.sources}) == len(result.sources)


@pytest.mark.parametrize("name", ["grain", "cartridge"])
async def test_a_confidence_comes_with_the_evidence_it_was_made_of(name: str, request: pytest.FixtureRequest) -> None:
    result = await request.getfixturevalue(name).answer(Query("what gives a cell its energy"))
    fit = load_calibration().layers[name]
    assert fit.confidence(result.evidence) == pytest.approx(result.confidence, abs=0.02)


async def test_layer_2_alone_reads_question_and_fact_together(grain: GrainLayer, cartridge: CartridgeLayer) -> None:
    at = FEATURES.index("verified")
    question = Query("Which molecule carries the energy in a cell?")
    assert (await grain.answer(question)).evidence[at] == 0.0
    assert (await cartridge.answer(question)).evidence[at] != 0.0
