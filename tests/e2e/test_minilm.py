"""all-MiniLM-L6-v2 on a real server compared with the published model, and clients for embeddings.

The reference (`tests.minilm`) shares no code with the server or llama.cpp. Needs the native libraries, the published
model and numpy. One server for the file.
"""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import PATIENCE, ServerProcess, start_server

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin, and others need the cores
np = pytest.importorskip("numpy", reason="the package numpy is not installed: run build_scripts/test.py")

N_TEXTS = 200
SENTENCES = (
    "A man is eating food.",
    "The girl is carrying a baby.",
    "Dr. Smith's e-mail isn't read before 9:30 a.m. (usually)!",
    "Größe, Äpfel und Straßen; déjà vu à la façade.",
    "北京是中国的首都。",
    "Ελληνικά γράμματα και русский текст",
    "x = [1, 2.5, -3e7]; print(f'{x!r}')  # code",
    "😀 smile 🇫🇷",
    "   blanks \t and\nlines   ",
    "I",
    "?!",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "a" * 100,
    "ﬁ Ⅳ ½ ™ İstanbul",
)
# not among them: words of more than 100 characters, which BERT calls unknown and llama.cpp reads
WORDS = """the a of and to in is was he for it with as his on be at by had not are but from or have an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than into them can
only other time new some could these two may first then do any like my now over such our man even most made after also did
many off before must well back through years where much your way down should because long each just state those people too
mr little good world make very year still see own work men day get here old life both between being under three never know
same last another while us might great go come since against right came take used himself few house american use place
during high without again home around small however found mrs part school thought went say general once upon war left
number course until always away something fact water though less public put think almost hand enough far took head yet""".split()


@pytest.fixture(scope="module")
def minilm(published_minilm):
    """The published model."""
    from tests.minilm import MiniLM

    return MiniLM(published_minilm)


@pytest.fixture(scope="module")
def model(minilm, models_folder) -> Path:
    """It as f16."""
    return minilm.write_gguf(models_folder / "minilm.gguf")


@pytest.fixture(scope="module")
def server(libs_folder, model) -> Iterator[ServerProcess]:
    """One server for all tests of this file; its log is shown when one fails."""
    with start_server(["-m", str(model), "-t", "1", "--embeddings"]) as running:
        yield running
        print(running.log)


@pytest.fixture(scope="module")
def client(server):
    """OpenAI's client."""
    openai = pytest.importorskip("openai", reason="the package openai is not installed: run build_scripts/test.py")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE) as one:
        yield one


def texts() -> list[str]:
    """Sentences of people, then mixed words of all lengths up to what the model can read."""
    draw = random.Random(6)
    long = (64, 100, 150, 220, 300, 400)
    lengths = [*(1 + i % 40 for i in range(N_TEXTS - len(SENTENCES) - len(long))), *long]
    return [*SENTENCES, *(" ".join(draw.choice(WORDS) for _ in range(n)) + draw.choice(".?!") for n in lengths)]


@pytest.mark.covers("E06", "Q37")
def test_200_texts_of_all_lengths_have_the_published_vectors(client, minilm):
    inputs = texts()
    n_tokens = [len(minilm.tokens(text)) for text in inputs]
    assert len(inputs) == N_TEXTS and min(n_tokens) < 5 and max(n_tokens) > 360
    order = random.Random(1).sample(range(N_TEXTS), N_TEXTS)  # long and short ones share batches
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=[inputs[i] for i in order])
    assert answer.usage.prompt_tokens == sum(n_tokens), "the same words became the same tokens"
    assert [item.index for item in answer.data] == list(range(N_TEXTS))
    worst = min(
        (float(np.dot(item.embedding, minilm.vector(inputs[i]))), inputs[i]) for item, i in zip(answer.data, order)
    )
    assert worst[0] > 0.9999, worst
    lengths = [float(np.linalg.norm(item.embedding)) for item in answer.data]
    assert max(abs(length - 1) for length in lengths) < 1e-5


@pytest.mark.covers("B15")
def test_as_many_tokens_as_the_model_can_read_and_not_one_more(server, minilm):
    text = " ".join(["word"] * 510)
    assert len(minilm.tokens(text)) == 512
    answer = server.post("/v1/embeddings", {"input": text}).json()
    assert np.dot(answer["data"][0]["embedding"], minilm.vector(text)) > 0.9999
    refused = server.post("/v1/embeddings", {"input": text + " word"})
    assert refused.status_code == 400 and "513 tokens" in refused.text and "too large to process" in refused.text


def test_what_is_alike_in_meaning_is_near(client):
    answer = client.embeddings.create(
        model="m",
        input=["A cat sits on the mat", "A kitten is resting on a rug", "Quarterly revenue fell by three percent"],
    )
    cat, kitten, revenue = (item.embedding for item in answer.data)
    assert np.dot(cat, kitten) > 0.5 > np.dot(cat, revenue) + 0.3


@pytest.mark.covers("Q38")
@pytest.mark.parametrize("format", ["float", "base64"])
def test_openai_s_client_in_both_formats(client, minilm, format):
    """Its own default is base64, which it turns into numbers."""
    answer = client.embeddings.create(model="m", input="hello world", encoding_format=format)
    value = answer.data[0].embedding
    vector = value if format == "float" else np.frombuffer(base64.b64decode(value), "<f4")
    assert len(vector) == 384 and np.dot(vector, minilm.vector("hello world")) > 0.9999


def test_tokens_and_fewer_dimensions(client, minilm):
    tokens = minilm.tokens("hello world")
    answer = client.embeddings.create(model="m", input=[tokens, tokens], dimensions=128)
    expected = minilm.vector("hello world")[:128]
    for item in answer.data:
        assert np.dot(item.embedding, expected / np.linalg.norm(expected)) > 0.9999


def test_langchain(server, minilm):
    module = pytest.importorskip(
        "langchain_openai", reason="langchain-openai is not installed: run build_scripts/test.py"
    )
    # cutting texts to OpenAI's own limits would need OpenAI's vocabulary from the network
    one = module.OpenAIEmbeddings(
        base_url=server.url + "/v1", api_key="none", model="m", max_retries=0, check_embedding_ctx_length=False
    )
    vectors = [*one.embed_documents(["hello", "world"]), one.embed_query("query")]
    for vector, text in zip(vectors, ["hello", "world", "query"]):
        assert np.dot(vector, minilm.vector(text)) > 0.9999


@pytest.mark.covers("E05")
def test_the_native_route_of_2024(server, minilm):
    answer = server.post("/embedding", {"content": "hello world"}).json()
    assert np.dot(answer["embedding"], minilm.vector("hello world")) > 0.9999


def test_the_model_says_what_it_can(server):
    assert server.get("/v1/models").json()["data"][0]["meta"]["pooling"] == "mean"
    refused = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert refused.status_code == 501 and "embeddings" in refused.json()["error"]["message"]
