"""Encoders of texts: padding changes nothing, words are aligned, and a pretrained model stays what it was."""

import json
import shutil
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import polars as pl
import pytest
import torch

from polytask import registry, sharing
from polytask.data.preprocess import InputSpec, TablePreprocessor
from polytask.data.pretrained import read_tokenizer
from polytask.data.ragged import present_words
from polytask.data.schema import TableSchema
from polytask.data.source import TensorSource
from polytask.data.text import SHAPES
from polytask.errors import DataError, RecipeError, ShapeError
from polytask.models import MultiTaskModel
from polytask.models.encoders.bilstm import BiLSTM
from polytask.models.encoders.hub import hub
from polytask.tasks import binary, tagging

TEXTS = ["Fly me to Rome tomorrow", "unaffable Oslo", "go", "to Rome"]


def read(texts, **options):
    frame = pl.DataFrame({"s": texts})
    made = TablePreprocessor.fit(frame, {"s": InputSpec("text", **options)})
    return made.schema, made.transform(frame)["s"]


def both(folder, **options):
    """A schema, inputs, and an encoder, for each kind."""
    torch.manual_seed(0)
    schema, inputs = read(TEXTS)
    yield BiLSTM(schema, embedding=6, characters=4, filters=5, hidden=7, layers=2, **options), inputs
    schema, inputs = read(TEXTS, tokenizer=str(folder), longest=20)
    yield hub(schema, str(folder)), inputs


def test_features_are_those_of_the_text_and_then_of_its_words(folder):
    for encoder, inputs in both(folder):
        found = encoder(inputs)
        assert found.shape == (4, 6, encoder.out_features[1])
        assert ((found[:, 1:] == 0).all(2) == ~present_words(inputs)).all()


def test_padding_changes_nothing(folder):
    for encoder, inputs in both(folder):
        encoder.eval()
        source = TensorSource(inputs, {"t": torch.zeros(4)})
        whole = encoder(inputs)
        wider = {
            key: torch.nn.functional.pad(t, (0, 3) if t.dim() == 2 else (0, 2, 0, 3), value=-1)
            for key, t in inputs.items()
        }
        torch.testing.assert_close(encoder(wider)[:, :6], whole)
        for row in range(4):
            alone = encoder(source.take(torch.tensor([row])).inputs)
            torch.testing.assert_close(alone[0], whole[row, : alone.shape[1]])


def test_gradients_reach_every_parameter(folder):
    for encoder, inputs in both(folder):
        encoder(inputs).square().sum().backward()
        lacking = [name for name, p in encoder.named_parameters() if p.grad is None]
        assert lacking == []


def test_an_empty_text_is_no_word(folder):
    schema, inputs = read(["", "go"])
    found = BiLSTM(schema, hidden=4).eval()(inputs)
    assert found.isfinite().all()
    assert (found[0] == 0).all()
    schema, inputs = read(["", "go"], tokenizer=str(folder), longest=20)
    assert hub(schema, str(folder))(inputs).isfinite().all()


def test_unseen_words_are_learned_from_dropped_ones():
    schema, inputs = read(TEXTS)
    torch.manual_seed(0)
    encoder = BiLSTM(schema, hidden=4, word_dropout=0.5)
    encoder(inputs).sum().backward()
    assert encoder.words.weight.grad[0].abs().sum() > 0
    assert torch.equal(encoder.eval()(inputs), encoder(inputs))


def test_words_are_aligned_with_their_first_piece(folder):
    _, inputs = read(["unaffable Oslo , to", "", "GO"], tokenizer=str(folder), longest=20)
    assert inputs["tokens"][0].tolist() == [2, 8, 9, 10, 11, 13, 6, 3]
    assert inputs["words"].tolist() == [[1, 4, 5, 6], [-1] * 4, [1, -1, -1, -1]]
    assert [SHAPES[s] for s in inputs["shapes"][2, :3]] == ["special", "UPPER", "special"]


def test_a_tokenizer_that_counts_spaces_as_letters_aligns_as_well(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(sorted(letters))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(tmp_path / "tokenizer.json"))
    _, inputs = read(["to Oslo"], tokenizer=str(tmp_path), longest=20)
    assert inputs["words"].tolist() == [[0, 3]]  # t, o and the space come before O


PAIRS = pl.DataFrame({"s": ["to Rome", "go"], "t": ["unaffable", "go to Oslo"]})


def pairs(**options):
    made = TablePreprocessor.fit(PAIRS, {"s": InputSpec("text", pair="t", **options)})
    return made.schema, made.transform(PAIRS)["s"]


def test_pairs_of_texts_are_one_sequence(folder):
    schema, inputs = pairs()
    assert "[sep]" in schema.texts[0].words
    assert (inputs["words"] >= 0).sum(1).tolist() == [4, 5]
    assert TableSchema.from_dict(schema.to_dict()) == schema
    schema, inputs = pairs(tokenizer=str(folder), longest=20)
    assert inputs["tokens"][0].tolist() == [2, 6, 7, 3, 8, 9, 10, 3]
    assert inputs["segments"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert inputs["words"].tolist() == [[1, 2, 4, -1], [1, 3, 4, 5]]
    encoder = hub(schema, str(folder)).eval()
    told = encoder(inputs)
    untold = encoder({**inputs, "segments": torch.zeros_like(inputs["segments"])})
    assert not torch.allclose(told[0, 0], untold[0, 0])


def test_long_texts_are_cut_and_that_is_said(folder):
    with pytest.warns(UserWarning, match="'s': 2 of 3 texts have more than 4 tokens"):
        _, inputs = read(["to me to", "go , go", "go"], tokenizer=str(folder), longest=4)
    assert inputs["tokens"].shape == (3, 4)
    assert inputs["words"].tolist() == [[1, 2, 0], [1, 2, 0], [1, -1, -1]]


def test_the_layers_are_those_of_the_pretrained_model(folder):
    import transformers

    schema, inputs = read(TEXTS, tokenizer=str(folder), longest=20)
    encoder = hub(schema, str(folder)).eval()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    real = inputs["tokens"] >= 0
    found = model(input_ids=inputs["tokens"].clamp_min(0), attention_mask=real.long()).last_hidden_state
    features = encoder(inputs)
    torch.testing.assert_close(features[:, 0], found[:, 0])
    torch.testing.assert_close(features[0, 1:], found[0, inputs["words"][0]])
    mean = hub(schema, str(folder), pool="mean").eval()(inputs)
    torch.testing.assert_close(mean[1, 0], found[1, : int(real[1].sum())].mean(0))
    assert len(encoder.stages) == 3
    assert len(hub(schema, str(folder), layers=2).stages) == 2


def test_how_a_word_is_written_starts_without_effect_and_is_learned(folder):
    schema, inputs = read(["GO to", "go to"], tokenizer=str(folder), longest=20)
    plain, cased = hub(schema, str(folder)).eval(), hub(schema, str(folder), case=True).eval()
    torch.testing.assert_close(plain(inputs), cased(inputs))
    torch.testing.assert_close(cased(inputs)[0], cased(inputs)[1])
    cased(inputs).square().sum().backward()
    assert cased.writing.weight.grad[SHAPES.index("UPPER")].abs().sum() > 0


def test_encoders_are_made_again_from_their_marks_without_the_model(folder):
    for encoder, inputs in both(folder):
        schema = read(TEXTS, **({} if isinstance(encoder, BiLSTM) else {"tokenizer": str(folder), "longest": 20}))[0]
        mark = json.loads(json.dumps(registry.mark_of(encoder)))
        assert str(folder) not in json.dumps(mark)
        again = registry.build("encoders", mark["name"], mark["options"], schema=schema)
        again.load_state_dict(encoder.state_dict())
        torch.testing.assert_close(again.eval()(inputs), encoder.eval()(inputs))


KEEPS_WORDS = {
    "hard": {}, "separate": {}, "mmoe": {}, "cgc": {}, "ple": {}, "dselect_k": {}, "cross_stitch": {}, "sluice": {},
    "film": {}, "adapters": {}, "lora": {"rank": 2}, "task_routing": {}, "soft": {}, "mtan": {}, "ltb": {},
    "hierarchical": {"feeds": {"good": ["tags"]}, "layers": [6]},
}  # fmt: skip


@pytest.mark.parametrize("name", KEEPS_WORDS)
def test_sharings_keep_the_words(name, folder):
    for encoder, inputs in both(folder):
        if name == "lora" and isinstance(encoder, BiLSTM):
            continue  # it corrects nn.Linear layers, and an LSTM has none
        made = registry.build("sharings", name, KEEPS_WORDS[name], encoder=encoder)
        tasks = [tagging("tags", ["B-X", "I-X", "O"]), binary("good")]
        model = MultiTaskModel(made, tasks, example=inputs)
        found = model(inputs)
        assert found["tags"].shape == (4, 5, 3)
        assert (found["tags"].isnan().any(2) == ~present_words(inputs)).all()
        assert found["good"].shape == (4,)
        (found["good"].sum() + found["tags"].nansum()).backward()


def test_copies_start_from_the_pretrained_weights(folder):
    schema, inputs = read(TEXTS, tokenizer=str(folder), longest=20)
    encoder = hub(schema, str(folder), case=True)
    apart = MultiTaskModel(sharing.Separate(encoder), [binary("a"), binary("b")], example=inputs).eval()
    found = apart.sharing(inputs, ["a", "b"])
    torch.testing.assert_close(found["a"], found["b"])
    torch.testing.assert_close(found["a"], encoder(inputs))


def test_private_layers_keep_the_words_and_batch_norm_is_refused(folder):
    encoder, inputs = next(both(folder))
    model = MultiTaskModel(sharing.Hard(encoder, private=[5], norm="layer"), [tagging("t", ["B-X", "O"])])
    assert model(inputs)["t"].shape == (4, 5, 2)
    with pytest.raises(RecipeError, match="norm: batch does not go with the positions of texts"):
        MultiTaskModel(sharing.Hard(encoder, private=[5], norm="batch"), [tagging("t", ["B-X", "O"])])


def test_tags_need_words():
    with pytest.raises(ShapeError, match="needs features of every word; these have the shape"):
        MultiTaskModel(sharing.Hard(torch.nn.Linear(3, 4)), [tagging("t", ["B-X", "O"])])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden": 0}, "hidden 0"),
        ({"pool": "first"}, "pool is 'first'. Use one of: max, mean"),
        ({"dropout": 1}, "dropout is 1"),
    ],
)
def test_wrong_options_of_the_bilstm_are_named(options, text):
    with pytest.raises(RecipeError, match=text):
        BiLSTM(read(TEXTS)[0], **options)


def test_wrong_options_and_models_of_the_hub_are_named(folder, tmp_path):
    schema, _ = read(TEXTS, tokenizer=str(folder), longest=20)
    with pytest.raises(RecipeError, match="hub needs model"):
        hub(schema)
    with pytest.raises(RecipeError, match=r"layers is 9; .* has 3"):
        hub(schema, str(folder), layers=9)
    with pytest.raises(RecipeError, match="longest is 256, but the model reads 40"):
        hub(read(TEXTS, tokenizer=str(folder))[0], str(folder))
    with pytest.raises(DataError, match=r"cannot be read as a pretrained model: .*it has: nothing"):
        hub(schema, str(tmp_path))


def hub_at(url, cache, monkeypatch):
    """What the environment says of the hub, HF_ENDPOINT above all, is read once, when the client is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def test_a_hub_that_does_not_answer_is_named_at_once(folder, monkeypatch, tmp_path):
    """The client by itself tries again for minutes."""
    schema, _ = read(TEXTS, tokenizer=str(folder), longest=20)
    hub_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    calls = (lambda: hub(schema, "no-such/model"), lambda: read_tokenizer("no-such/model"))
    started = time.monotonic()
    for call in calls:
        with pytest.raises(DataError, match=r"the hub at http://127\.0\.0\.1:9 does not answer .* model: \./bert"):
            call()
    assert time.monotonic() - started < 5
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in calls:
        with pytest.raises(DataError, match=r"not whole, on this machine, and HF_HUB_OFFLINE is set.*give its path"):
            call()


def test_a_hub_that_answers_that_it_has_no_such_model(folder, monkeypatch, tmp_path):
    class Empty(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub_at(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
        with pytest.raises(DataError, match=r"the hub does not give it out: .*404.* Check its name"):
            read_tokenizer("no-such/model")
        server.shutdown()


def test_what_was_fetched_before_needs_no_hub(folder, monkeypatch, tmp_path):
    commit = "0" * 40
    kept = tmp_path / "models--some--model"
    shutil.copytree(folder, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    hub_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    schema, inputs = read(TEXTS, tokenizer="some/model", longest=20)
    torch.testing.assert_close(hub(schema, "some/model").eval()(inputs), hub(schema, str(folder)).eval()(inputs))


def test_models_of_another_build_are_refused(tmp_path, folder):
    import transformers

    config = transformers.GPT2Config(vocab_size=14, n_embd=8, n_layer=1, n_head=2, n_positions=40)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    schema, _ = read(TEXTS, tokenizer=str(folder), longest=20)
    with pytest.raises(RecipeError, match=r"built like BERT .* this one is of the type 'gpt2'"):
        hub(schema, str(tmp_path))


def test_roberta_and_distilbert_run_in_layers_too(tmp_path, folder):
    import transformers

    small = {"vocab_size": 14, "max_position_embeddings": 42}
    made = {
        "roberta": transformers.RobertaConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, pad_token_id=1, **small
        ),
        "distilbert": transformers.DistilBertConfig(dim=8, n_layers=2, n_heads=2, hidden_dim=16, **small),
    }
    schema, inputs = read(TEXTS, tokenizer=str(folder), longest=20)
    for name, config in made.items():
        path = tmp_path / name
        transformers.AutoModel.from_config(config).save_pretrained(path)
        assert hub(schema, str(path))(inputs).shape == (4, 6, 8)


def test_tables_that_are_no_single_text_are_refused(folder):
    schema, _ = read(TEXTS)
    with pytest.raises(DataError, match="'bilstm' reads one text column; the inputs are: none"):
        BiLSTM(TableSchema())
    with pytest.raises(DataError, match="'hub' reads the tokens of a pretrained model"):
        hub(schema, str(folder))
    with pytest.raises(DataError, match="'bilstm' reads words; leave out tokenizer"):
        BiLSTM(read(TEXTS, tokenizer=str(folder), longest=20)[0])
    with pytest.raises(DataError, match=r"one text column .tokens, words.; found 0"):
        BiLSTM(schema)({"numbers": torch.zeros(2, 3)})
    encoder = BiLSTM(schema)
    with pytest.raises(RuntimeError, match="run after its begin"):
        encoder.stages[0](torch.zeros(2, 3, 150))


@pytest.mark.slow
def test_a_real_pretrained_model_tells_what_sentences_mean():
    texts = ["a man is eating food", "someone eats a meal", "shares fell on monday", "the stock market went down"]
    schema, inputs = read(texts, tokenizer="all-minilm-l6-v2", longest=64)
    encoder = hub(schema, "all-minilm-l6-v2", pool="mean").eval()
    assert sum(p.numel() for p in encoder.parameters()) == 22_565_376
    with torch.no_grad():
        whole = torch.nn.functional.normalize(encoder(inputs)[:, 0], dim=1)
    near = whole @ whole.T
    assert min(near[0, 1], near[2, 3]) > 0.5
    assert near[:2, 2:].max() < 0.3
